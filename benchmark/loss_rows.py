"""Passes of losses -> rows, ratios to k2 and to the bare matrix products, growth of memory, and tables."""

from statistics import median
from typing import Any, Dict, List, Optional, Sequence, Tuple

from benchmark.rows import middle, quotient
from benchmark.shapes import num_nodes
from benchmark.turns import Measurement
from rnnt_kd.tables import markdown, shown

FLOOR = "matmul"  # no loss: nothing to compare with one, and memory that is there before

Row = Dict[str, Any]


def rows_of_group(jobs: Sequence[Measurement]) -> List[Row]:
    """A row for each job that ran.

    "peer" is None for ours, "impl" for others; "batches" has frames, nodes, seconds and peak_mb of each batch;
    "time_vs_k2", "memory_vs_k2", "time_vs_matmul" are quotients of medians, None where the other is not there.
    """
    rows = [_row(job) for job in jobs if job.cannot is None]
    none: Dict[str, Any] = {"seconds": None, "peak_mb": None}
    k2, matmul = (next((row for row in rows if row["peer"] == peer), none) for peer in ("k2", "matmul"))
    for row in rows:
        is_loss = row["peer"] != FLOOR
        row["time_vs_k2"] = quotient(row["seconds"], k2["seconds"]) if is_loss else None
        row["memory_vs_k2"] = quotient(row["peak_mb"], k2["peak_mb"]) if is_loss else None
        row["time_vs_matmul"] = quotient(row["seconds"], matmul["seconds"])
    return rows


def name_of(row: Row) -> str:
    return row["peer"] or f"ours ({row['impl']})"


def disagreements(jobs: Sequence[Measurement], tolerance: float) -> List[str]:
    """Sentences on subjects that should have computed the same loss and did not.

    Compared, by batch: the pruned losses without a teacher, those with one online, the full-lattice
    losses; and the loss with the cached teacher with that of the online one, ``tolerance`` + 1 %.
    """
    found = []
    first: Dict[Tuple[str, str], Measurement] = {}
    for job in jobs:
        lattice, variant = job.facts.get("lattice"), job.specification["variant"]
        if job.cannot is not None or not lattice:
            continue
        judge = first.setdefault((lattice, "online" if variant == "cache" else variant), job)
        is_rounded = variant != judge.specification["variant"]
        for index, (value, expected) in enumerate(zip(job.losses, judge.losses)):
            assert value is not None and expected is not None
            if not abs(value - expected) <= (tolerance + 0.01 * is_rounded) * max(1.0, abs(expected)):
                found.append(f"{job.name}: loss {value:.5g} on batch {index}, where {judge.name} has {expected:.5g}")
                break
    return found


def results_table(rows: Sequence[Row]) -> str:
    head = ("by", "teacher", "C", "batch", "seconds", "low..high", "peak MB")
    cells = []
    for row in rows:
        is_loss = row["peer"] != FLOOR
        cells.append([name_of(row), row["variant"] if is_loss else "", row["vocab"], row["batch"], *times(row)])
        cells[-1] += [f"{row['peak_mb']:.1f}" if is_loss else "", shown(row["time_vs_k2"], ".3f")]
        cells[-1] += [shown(row[key], ".3f") for key in ("memory_vs_k2", "time_vs_matmul")]
    return markdown([*head, "time ÷ k2", "memory ÷ k2", "time ÷ matmul"], cells, left=2)


def times(row: Row) -> List[str]:
    """Two cells: seconds, and the lowest and highest of them."""
    style = ".4f" if row["seconds"] < 1 else ".3f"
    return [f"{row['seconds']:{style}}", f"{row['low']:{style}}..{row['high']:{style}}"]


def growth(rows: Sequence[Row]) -> List[Tuple[str, str, Optional[float], Optional[float]]]:
    """(name, variant, bytes a class, bytes a node) of each subject: how its peak memory grows with C, at the smallest
    batch size, and with the nodes of the lattice, at the smallest C; None where only one size was run."""
    found = []
    losses = [row for row in rows if row["peer"] != FLOOR]
    for name, variant in dict.fromkeys((name_of(row), row["variant"]) for row in losses):
        mine = [row for row in losses if (name_of(row), row["variant"]) == (name, variant)]
        batch, vocab = (min(row[key] for row in mine) for key in ("batch", "vocab"))
        by_class = [(row["vocab"], row["peak_mb"] * 1e6) for row in mine if row["batch"] == batch]
        at_vocab = [entry for row in mine if row["vocab"] == vocab for entry in row["batches"]]
        by_node = [(entry["nodes"], entry["peak_mb"] * 1e6) for entry in at_vocab]
        found.append((name, variant, _slope(by_class), _slope(by_node)))
    return found


def growth_table(rows: Sequence[Row], joiner_dim: int, bytes_a_number: int) -> str:
    """``joiner_dim`` and ``bytes_a_number`` give the least that any loss needs: the weight's gradient."""
    cells = [[name, variant, *(shown(value, ".0f") for value in values)] for name, variant, *values in growth(rows)]
    cells.append(["(gradient of the output layer alone)", "", str((joiner_dim + 1) * bytes_a_number), ""])
    return markdown(["peak memory grows by", "teacher", "bytes a class", "bytes a node"], cells, left=2)


def _row(job: Measurement) -> Row:
    specification = job.specification
    subject, prune_range = specification["subject"], specification["prune_range"]
    batches = [
        {
            "frames": max(T for T, _ in shapes),
            "nodes": num_nodes(shapes, prune_range),
            "seconds": median(seconds),
            "peak_mb": peak / 1e6,
        }
        for shapes, seconds, peak in zip(specification["batches"], job.seconds, job.peak_bytes)
    ]
    return {
        "variant": specification["variant"],
        "impl": job.facts["impl"],
        "peer": None if subject == "ours" else subject,
        "vocab": specification["vocab"],
        "batch": len(specification["batches"][0]),
        **middle(job),
        "batches": batches,
    }


def _slope(points: Sequence[Tuple[float, float]]) -> Optional[float]:
    """Of the line of least squares; None without two different x."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)

"""From measured passes to rows: medians, ratios, and what they say about the goals.

A batch's time is the median over its rounds; a row's time is the median over its batches, and so are
its lowest and highest.  Memory: the median over the batches.  1 MB is 10**6 bytes.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from rnnt_kd.benchmark.rounds import Job
from rnnt_kd.benchmark.shapes import num_nodes

JSON_KEYS = (
    *("variant", "impl", "peer", "vocab", "batch", "seconds", "peak_mb"),
    *("time_vs_k2", "memory_vs_k2", "time_vs_matmul"),
)
FLOORS = ("matmul", "matmul_onednn")
MEASURED_AT_BATCH = 8  # what the goals are about, with J = 512 and s_range 5


@dataclass
class Row:
    """One subject at one vocabulary and batch size.  ``peer`` is None for ours, ``impl`` for others."""

    variant: str
    impl: Optional[str]
    peer: Optional[str]
    vocab: int
    batch: int
    seconds: float
    low: float
    high: float
    peak_mb: float
    rounds: int
    batches: List[Dict[str, float]]  # frames, nodes, seconds, peak_mb of each batch
    time_vs_k2: Optional[float] = None
    memory_vs_k2: Optional[float] = None
    time_vs_matmul: Optional[float] = None

    @property
    def name(self) -> str:
        return self.peer if self.peer is not None else f"ours ({self.impl})"

    @property
    def is_floor(self) -> bool:
        """Matrix products and no loss: nothing to compare with a loss, and memory that is there before."""
        return self.peer in FLOORS

    def to_json(self) -> Dict[str, Any]:
        return {key: getattr(self, key) for key in JSON_KEYS}


def rows_of_group(jobs: Sequence[Job]) -> List[Row]:
    """The rows of the jobs that ran, with their ratios to k2 and to the matrix products among them."""
    rows = [row_of(job) for job in jobs if job.cannot is None]
    k2 = _find(rows, "k2")
    products = _find(rows, "matmul")
    for row in rows:
        if k2 is not None and not row.is_floor:
            row.time_vs_k2 = row.seconds / k2.seconds
            row.memory_vs_k2 = row.peak_mb / k2.peak_mb if k2.peak_mb else None
        if products is not None:
            row.time_vs_matmul = row.seconds / products.seconds
    return rows


def disagreements(jobs: Sequence[Job], tolerance: float) -> List[str]:
    """Sentences on subjects that should have computed the same loss and did not.

    Compared, by batch: the pruned losses without a teacher, those with one online, the full-lattice
    losses; and the loss with the cached teacher with that of the online one, ``tolerance`` + 1 %.
    """
    found = []
    first: Dict[Tuple[str, str], Job] = {}
    for job in jobs:
        lattice, variant = job.facts.get("lattice"), job.specification["variant"]
        if job.cannot is not None or not lattice:
            continue
        judge = first.setdefault((lattice, "online" if variant == "cache" else variant), job)
        is_rounded = variant != judge.specification["variant"]
        for index, (value, expected) in enumerate(zip(job.losses, judge.losses)):
            if not abs(value - expected) <= (tolerance + 0.01 * is_rounded) * max(1.0, abs(expected)):
                found.append(f"{job.name}: loss {value:.5g} on batch {index}, where {judge.name} has {expected:.5g}")
                break
    return found


class Goal(NamedTuple):
    """``what`` is <= ``limit``; ``value`` is what came out."""

    what: str
    limit: float
    value: float

    @property
    def is_reached(self) -> bool:
        return self.value <= self.limit


# (variant, vocabulary) -> time ÷ k2, memory ÷ k2, time ÷ matmul
CPU_GOALS = {
    ("cache", 500): (0.8, 0.6, 3.0),
    ("cache", 5000): (0.5, 0.3, 1.6),
    ("online", 500): (1.1, 0.7, None),
    ("online", 5000): (0.7, 0.35, None),
}


def goals(rows: Sequence[Row], device: str) -> List[Goal]:
    """What the project promises, beside what these rows show.

    On a CPU, against ``k2_indexed`` and ``matmul_onednn`` as well: what is promised should rest neither
    on k2's pruning nor on the matrix products of another library than ours.
    """
    found = []
    for row in rows:
        if row.peer is not None:
            continue
        where = f"{row.variant}, C={row.vocab}" + (f", {row.impl}" if len({r.impl for r in rows if r.impl}) > 1 else "")
        if device == "cuda":
            found += _goals_against(row, _find(rows, "naive", row), where, (0.5, 0.25))
            found += [Goal(f"{where}: time ÷ matmul", 2.0, row.time_vs_matmul)] if row.time_vs_matmul else []
            continue
        if row.batch == MEASURED_AT_BATCH and (row.variant, row.vocab) in CPU_GOALS:
            time_limit, memory_limit, products_limit = CPU_GOALS[row.variant, row.vocab]
            for peer in ("k2", "k2_indexed"):
                other = _find(rows, peer, row, variant="none")
                found += _goals_against(row, other, where, (time_limit, memory_limit))
            for floor in FLOORS:
                other = _find(rows, floor, row, variant="none")
                if products_limit is not None and other is not None:
                    found.append(Goal(f"{where}: time ÷ {floor}", products_limit, row.seconds / other.seconds))
        if row.vocab == 500 and row.variant == "none":
            found += _goals_against(row, _find(rows, "torchaudio", row), where, (0.1, 0.1))
    return found


class Slope(NamedTuple):
    """How the peak memory of a row grows; None where only one size was run."""

    name: str
    variant: str
    bytes_a_class: Optional[float]
    bytes_a_node: Optional[float]


def slopes(rows: Sequence[Row]) -> List[Slope]:
    """Peak memory against C at the smallest batch size, and against the nodes of the lattice at the smallest C."""
    found = []
    for name, variant in dict.fromkeys((row.name, row.variant) for row in rows if not row.is_floor):
        mine = [row for row in rows if (row.name, row.variant) == (name, variant)]
        smallest_batch, smallest_vocab = min(row.batch for row in mine), min(row.vocab for row in mine)
        by_class = [(row.vocab, row.peak_mb * 1e6) for row in mine if row.batch == smallest_batch]
        by_node = [
            (batch["nodes"], batch["peak_mb"] * 1e6)
            for row in mine
            if row.vocab == smallest_vocab
            for batch in row.batches
        ]
        found.append(Slope(name, variant, _slope(by_class), _slope(by_node)))
    return found


def row_of(job: Job) -> Row:
    """The row of a job that ran, without ratios."""
    specification = job.specification
    subject, prune_range = specification.get("subject", "ours"), specification["prune_range"]
    seconds = [median(values) for values in job.seconds]
    batches = [
        {
            "frames": max(T for T, _ in shapes),
            "nodes": num_nodes(shapes, prune_range),
            "seconds": batch_seconds,
            "peak_mb": peak / 1e6,
        }
        for shapes, batch_seconds, peak in zip(specification["batches"], seconds, job.peak_bytes)
    ]
    return Row(
        variant=specification["variant"],
        impl=job.facts.get("impl"),
        peer=None if subject == "ours" else subject,
        vocab=specification["vocab"],
        batch=len(specification["batches"][0]),
        seconds=median(seconds),
        low=median(min(values) for values in job.seconds),
        high=median(max(values) for values in job.seconds),
        peak_mb=median(job.peak_bytes) / 1e6,
        rounds=len(job.seconds[0]),
        batches=batches,
    )


def _find(rows: Sequence[Row], peer: str, like: Optional[Row] = None, variant: Optional[str] = None) -> Optional[Row]:
    """The row of ``peer``; of the sizes of ``like``, if that is given, and of its variant or ``variant``."""
    for row in rows:
        if row.peer != peer:
            continue
        if like is None or (row.variant, row.vocab, row.batch) == (variant or like.variant, like.vocab, like.batch):
            return row
    return None


def _goals_against(row: Row, other: Optional[Row], where: str, limits: Tuple[float, float]) -> List[Goal]:
    if other is None:
        return []
    return [
        Goal(f"{where}: time ÷ {other.peer}", limits[0], row.seconds / other.seconds),
        Goal(f"{where}: memory ÷ {other.peer}", limits[1], row.peak_mb / other.peak_mb if other.peak_mb else 0.0),
    ]


def _slope(points: Sequence[Tuple[float, float]]) -> Optional[float]:
    """Of the line of least squares; None without two different x."""
    if len({x for x, _ in points}) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)

"""Time and memory against vocabulary, frames and batch size, as one picture of six panels."""

import importlib.util
from pathlib import Path
from typing import Callable, List, Sequence, Tuple

from rnnt_kd.benchmark.results import Row
from rnnt_kd.errors import UserError

SUFFIXES = (".png", ".svg", ".pdf")
PANELS = ("vocabulary C", "frames T of the batch", "utterances B in the batch")
STYLES = {"none": "-", "online": "--", "cache": ":"}

Point = Tuple[float, float]


def check(path: Path) -> None:
    """Raises UserError: no matplotlib, or a suffix that says no format.  Cheap, before hours of measuring."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot", "matplotlib is not installed", "", "install it, or leave --plot away")
    if path.suffix not in SUFFIXES:
        raise UserError("--plot", str(path), "a name that ends in " + ", ".join(SUFFIXES))


def plot_results(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write ``path`` (its suffix says the format).  One line a subject, over all sizes that were run.

    Against C and B: medians, at the smallest size of the other.  Against T: each batch of the
    largest C that every subject has, at the smallest batch size.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    subjects = list(dict.fromkeys((row.name, row.variant) for row in rows))
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(name for name, _ in subjects))}
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7.2), sharey="row", constrained_layout=True)
    for name, variant in subjects:
        mine = [row for row in rows if (row.name, row.variant) == (name, variant)]
        teacher = "no teacher" if variant == "none" else f"teacher {variant}"
        label = name if mine[0].is_floor else f"{name}, {teacher}"
        style = dict(color=colours[name], linestyle=STYLES[variant], marker="o", markersize=4, linewidth=1.5)
        for upper, (points_of_time, points_of_memory) in enumerate(_all_points(mine, rows)):
            axes[0, upper].plot(*_columns(points_of_time), label=label, **style)
            if not mine[0].is_floor:  # its memory is there before it starts
                axes[1, upper].plot(*_columns(points_of_memory), **style)
    smallest_vocab, smallest_batch = min(row.vocab for row in rows), min(row.batch for row in rows)
    notes = (f"B = {smallest_batch}", f"C = {_vocab_for_frames(rows)}, B = {smallest_batch}", f"C = {smallest_vocab}")
    for column, (quantity, note) in enumerate(zip(PANELS, notes)):
        axes[0, column].set_title(f"against {quantity.split(' ')[0]}  ({note})", fontsize=10)
        axes[1, column].set_xlabel(quantity)
        for axis in axes[:, column]:
            axis.set_yscale("log")
            axis.grid(True, which="both", alpha=0.25)
            if column != 1:
                _mark_sizes(axis, sorted({row.vocab if column == 0 else row.batch for row in rows}))
    axes[0, 0].set_ylabel("seconds, forward + backward")
    axes[1, 0].set_ylabel("peak MB above the inputs")
    figure.suptitle(title, fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=4, fontsize=9)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _all_points(mine: Sequence[Row], rows: Sequence[Row]) -> List[Tuple[List[Point], List[Point]]]:
    """(time, memory) of each panel."""
    batch, vocab = min(row.batch for row in rows), min(row.vocab for row in rows)
    against_vocab = [row for row in mine if row.batch == batch]
    against_batch = [row for row in mine if row.vocab == vocab]
    batches = [
        entry for row in mine if (row.vocab, row.batch) == (_vocab_for_frames(rows), batch) for entry in row.batches
    ]

    def points(items: Sequence, x: Callable, y: Callable) -> List[Point]:
        return sorted((x(item), y(item)) for item in items)

    return [
        (
            points(against_vocab, lambda row: row.vocab, lambda row: row.seconds),
            points(against_vocab, lambda row: row.vocab, lambda row: row.peak_mb),
        ),
        (
            points(batches, lambda entry: entry["frames"], lambda entry: entry["seconds"]),
            points(batches, lambda entry: entry["frames"], lambda entry: entry["peak_mb"]),
        ),
        (
            points(against_batch, lambda row: row.batch, lambda row: row.seconds),
            points(against_batch, lambda row: row.batch, lambda row: row.peak_mb),
        ),
    ]


def _vocab_for_frames(rows: Sequence[Row]) -> int:
    """The largest C that every subject was measured at, else the smallest."""
    subjects = {(row.name, row.variant) for row in rows}
    everywhere = [
        vocab
        for vocab in {row.vocab for row in rows}
        if {(row.name, row.variant) for row in rows if row.vocab == vocab} == subjects
    ]
    return max(everywhere) if everywhere else min(row.vocab for row in rows)


def _columns(points: Sequence[Point]) -> Tuple[List[float], List[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _mark_sizes(axis, sizes: Sequence[int]) -> None:
    """Ticks where something was measured; a logarithmic axis where the sizes differ much."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if sizes[-1] > 4 * sizes[0]:
        axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())

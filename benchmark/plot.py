"""Time and memory against vocabulary, frames and batch size, as one picture of six panels."""

import importlib.util
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Tuple

from benchmark.loss_rows import FLOOR, Row, name_of
from rnnt_kd.errors import UserError

SUFFIXES = (".png", ".svg", ".pdf")
PANELS = ("vocabulary C", "frames T of the batch", "utterances B in the batch")
STYLES = {"none": "-", "online": "--", "cache": ":"}


def check(path: Path) -> None:
    """Raises UserError: no matplotlib, or a suffix that says no format.  Cheap, before hours of measuring."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot", "matplotlib is not installed", "", "install it, or drop --plot")
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

    batch, vocab = (min(row[key] for row in rows) for key in ("batch", "vocab"))
    vocab_of_frames = _vocab_of_frames(rows)
    subjects = list(dict.fromkeys(map(_subject, rows)))
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(name for name, _ in subjects))}
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7.2), sharey="row", constrained_layout=True)
    for name, variant in subjects:
        mine = [row for row in rows if _subject(row) == (name, variant)]
        is_floor = mine[0]["peer"] == FLOOR  # its memory is there before it starts
        teacher = "no teacher" if variant == "none" else f"teacher {variant}"
        label = name if is_floor else f"{name}, {teacher}"
        style = dict(color=colours[name], linestyle=STYLES[variant], marker="o", markersize=4, linewidth=1.5)
        entries = [row["batches"] for row in mine if (row["vocab"], row["batch"]) == (vocab_of_frames, batch)]
        points = (
            ("vocab", [row for row in mine if row["batch"] == batch]),
            ("frames", [entry for batches in entries for entry in batches]),
            ("batch", [row for row in mine if row["vocab"] == vocab]),
        )
        for column, (x, items) in enumerate(points):
            axes[0, column].plot(*_columns(items, x, "seconds"), label=label, **style)
            if not is_floor:
                axes[1, column].plot(*_columns(items, x, "peak_mb"), **style)
    notes = (f"B = {batch}", f"C = {vocab_of_frames}, B = {batch}", f"C = {vocab}")
    for column, (quantity, note) in enumerate(zip(PANELS, notes)):
        axes[0, column].set_title(f"against {quantity.split(' ')[0]}  ({note})", fontsize=10)
        axes[1, column].set_xlabel(quantity)
        for axis in axes[:, column]:
            axis.set_yscale("log")
            axis.grid(True, which="both", alpha=0.25)
            if column != 1:
                _mark_sizes(axis, sorted({row["batch" if column else "vocab"] for row in rows}))
    axes[0, 0].set_ylabel("seconds, forward + backward")
    axes[1, 0].set_ylabel("peak MB above the inputs")
    figure.suptitle(title, fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncol=4, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _subject(row: Row) -> Tuple[str, str]:
    return name_of(row), row["variant"]


def _vocab_of_frames(rows: Sequence[Row]) -> int:
    """The largest C that every subject was measured at, else the smallest."""
    vocabs = {row["vocab"] for row in rows}
    by_vocab = {vocab: {_subject(row) for row in rows if row["vocab"] == vocab} for vocab in vocabs}
    everywhere = [vocab for vocab, subjects in by_vocab.items() if subjects == set(map(_subject, rows))]
    return max(everywhere) if everywhere else min(vocabs)


def _columns(items: Iterable[Dict[str, Any]], x: str, y: str) -> Tuple[List[float], List[float]]:
    points = sorted((item[x], item[y]) for item in items)
    return [x for x, _ in points], [y for _, y in points]


def _mark_sizes(axis, sizes: Sequence[int]) -> None:
    """Ticks where something was measured; a logarithmic axis where the sizes differ much."""
    from matplotlib.ticker import NullFormatter, NullLocator

    if sizes[-1] > 4 * sizes[0]:
        axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())

"""Word error rates as bars, and what they are made of."""

from typing import Any, Dict, Iterator

from matplotlib.patches import Patch

from rnnt_kd.report.plots.inline_svg import COLOURS
from rnnt_kd.report.plots.style import KINDS, Plot, bar_axes, figure_beside, finished, label, legend_of
from rnnt_kd.report.read import FinishedExperiment

PARTS = {  # errors -> colour, hatch, words
    "sub": (COLOURS["--accent-1"], "", "substitutions"),
    "del": (COLOURS["--accent-2"], "////", "deletions"),
    "ins": (COLOURS["--accent-5"], "....", "insertions"),
}
BEHIND = {"boxstyle": "square,pad=0.1", "facecolor": COLOURS["--card"], "linewidth": 0, "alpha": 0.75}  # of figures


def rates(experiment: FinishedExperiment) -> Iterator[Plot]:
    """%WER of each system, with its interval or its seeds; and %CER where characters are counted."""
    for test_set in experiment.scored_sets():
        yield _rates(experiment, test_set, "wer")
        if experiment.counts_characters(test_set):
            yield _rates(experiment, test_set, "cer")


def _rates(experiment: FinishedExperiment, test_set: str, rate: str) -> Plot:
    several, name = experiment.has_several_seeds(), f"%{rate.upper()}"
    dots = " of ".join(["single seeds"] * several + ["single folds"] * experiment.has_folds())
    title = f"{f'Mean {name} over seeds' if several else name}, {test_set}"
    figure, ax = bar_axes([system.name for system in experiment.systems], right=42)
    longest, words = 0.0, []
    for place, system in enumerate(experiment.systems):
        row = system.rows[test_set]
        figures = row if rate == "wer" else row["characters"] or {}
        value, interval = figures.get(rate), figures.get("ci95")
        if value is None:
            ax.text(0, place, " not finished", fontsize=10, va="center", style="italic", color=COLOURS["--muted"])
            words.append(f"{system.name} not finished")
            continue
        key = (system.name, test_set)
        singles = [row for row in experiment.seeds if dots and (row["system"], row["test_set"]) == key]
        singles = [row for row in singles if not row.get("token_bonus")]
        seeds = [row[rate] for row in singles if row.get(rate) is not None]
        ax.barh(place, value, height=0.62, color=KINDS[system.kind].colour, alpha=0.8, linewidth=0)
        if interval:
            ax.plot(interval, [place, place], color=COLOURS["--fg"], linewidth=1.2, marker="|", markersize=6)
        ax.plot(seeds, [place] * len(seeds), "o", color=COLOURS["--fg"], markersize=3, alpha=0.7)
        longest = max(longest, value, *(interval or ()), *seeds)
        figure_beside(ax, place, f"{value:.2f}")
        words.append(f"{system.name} {value:.2f}")
    ax.set_xlim(0, 1.02 * longest or 1)
    label(ax, name)
    return finished(
        figure,
        title,
        ", ".join(words),
        f"Dots: {dots}." if dots else "Lines: 95 % intervals.",
    )


def errors(experiment: FinishedExperiment) -> Iterator[Plot]:
    """Substitutions, deletions, insertions of each system, per cent of the words, stacked; mean of a seed."""
    for test_set in experiment.scored_sets():
        rows = [system.rows[test_set] for system in experiment.systems]
        rows = [row for row in rows if row["words"] and None not in [row[f"{key}_mean"] for key in PARTS]]
        figure, ax = bar_axes([row["system"] for row in rows], right=16, top=28)
        for place, row in enumerate(rows):
            start = 0.0
            for key, (colour, hatch, _) in PARTS.items():
                share = 100.0 * row[f"{key}_mean"] / row["words"]
                style: Dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": COLOURS["--grid"]}
                ax.barh(place, share, left=start, height=0.62, linewidth=0.4, **style)
                if share > 0.9:
                    ax.annotate(
                        f"{row[f'{key}_mean']:.0f}", (start + share / 2, place), fontsize=10, ha="center", va="center",
                        color=COLOURS["--fg"], bbox=BEHIND,
                    )  # fmt: skip
                start += share
        label(ax, "% of the words")
        handles = [
            Patch(facecolor=colour, hatch=hatch, label=words, edgecolor=COLOURS["--grid"])
            for colour, hatch, words in PARTS.values()
        ]
        width = ax.get_position().width * figure.width
        legend_of(ax, handles, ncols=3, bbox_to_anchor=(0.02 - (figure.width - width - 16) / width, 1.01))
        words = "; ".join(
            f"{row['system']} " + ", ".join(f"{row[f'{key}_mean']:g} {key}" for key in PARTS) for row in rows
        )
        note = "Mean of a seed." if experiment.has_several_seeds() else ""
        yield finished(figure, f"Kinds of errors, {test_set}", words, note)

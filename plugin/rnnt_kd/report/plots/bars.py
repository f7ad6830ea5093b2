"""Word error rates as bars, and what they are made of."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

from matplotlib.patches import Patch

from rnnt_kd.report.plots.inline_svg import COLOURS, inline_svg, pixel_figure
from rnnt_kd.report.plots.style import FONT, KINDS, ROW, WIDTH, label, left_of, legend_of, quiet

PARTS = {  # errors -> colour, hatch
    "sub": (COLOURS["--accent-1"], "", "substitutions"),
    "del": (COLOURS["--accent-2"], "////", "deletions"),
    "ins": (COLOURS["--accent-5"], "....", "insertions"),
}

Bar = Tuple[str, str, Optional[float], Optional[Sequence[float]]]  # name, kind, value, its interval


def draw_rates(bars: Sequence[Bar], title: str, points: Optional[Dict[str, List[float]]] = None) -> str:
    """A bar a system with its interval; ``points``: single values (of seeds), drawn on the bar.  "-" where none is."""
    points = points or {}
    height = 14 + ROW * len(bars) + 34
    figure = pixel_figure(WIDTH, height)
    left = left_of(name for name, *_ in bars)
    on = figure.add_axes((left, 10, WIDTH - left - 42, ROW * len(bars)))
    values = [value or 0.0 for _, _, value, _ in bars]
    ends = [max(value, *(interval or (0,))) for value, (_, _, _, interval) in zip(values, bars)]
    ends = [max(end, *points.get(bar[0], [0.0])) for end, bar in zip(ends, bars)]
    on.set_xlim(0, 1.02 * max(ends, default=1) or 1)
    on.set_ylim(len(bars) - 0.5, -0.5)
    for place, (name, kind, value, interval) in enumerate(bars):
        if value is None:
            on.text(0, place, " not finished", fontsize=10, va="center", style="italic", color=COLOURS["--muted"])
            continue
        on.barh(place, value, height=0.62, color=KINDS[kind].colour, alpha=0.8, linewidth=0)
        if interval:
            on.plot(interval, [place, place], color=COLOURS["--fg"], linewidth=1.2, marker="|", markersize=6)
        drawn = points.get(name, [])
        on.plot(drawn, [place] * len(drawn), "o", color=COLOURS["--fg"], markersize=3, alpha=0.7)
        on.annotate(
            f"{value:.2f}", (1, place), (5, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=FONT, va="center", color=COLOURS["--fg"],
        )  # fmt: skip
    quiet(on, "x")
    on.set_yticks(range(len(bars)), [name for name, *_ in bars], color=COLOURS["--fg"], fontsize=FONT)
    label(on, "%WER")
    said = ", ".join(f"{name} {'not finished' if value is None else f'{value:.2f}'}" for name, _, value, _ in bars)
    return inline_svg(figure.figure, f"bars {title}", f"{title}: {said}.")


def draw_errors(rows: Sequence[Dict[str, Any]], title: str) -> str:
    """Substitutions, deletions, insertions of each system, per cent of the words, one on the other."""
    height = 30 + ROW * len(rows) + 34
    figure = pixel_figure(WIDTH, height)
    left = left_of(row["system"] for row in rows)
    on = figure.add_axes((left, 28, WIDTH - left - 16, ROW * len(rows)))
    on.set_ylim(len(rows) - 0.5, -0.5)
    for place, row in enumerate(rows):
        start = 0.0
        for key, (colour, hatch, _) in PARTS.items():
            share = 100.0 * row[key] / row["words"]
            on.barh(
                place,
                share,
                left=start,
                height=0.62,
                color=colour,
                hatch=hatch,
                edgecolor=COLOURS["--grid"],
                linewidth=0.4,
            )
            if share > 0.9:
                on.annotate(
                    str(row[key]), (start + share / 2, place), fontsize=10, ha="center", va="center",
                    color=COLOURS["--fg"],
                    bbox={"boxstyle": "square,pad=0.1", "facecolor": COLOURS["--card"], "linewidth": 0, "alpha": 0.75},
                )  # fmt: skip
            start += share
    quiet(on, "x")
    on.set_yticks(range(len(rows)), [row["system"] for row in rows], color=COLOURS["--fg"], fontsize=FONT)
    label(on, "% of the words")
    handles = [
        Patch(facecolor=colour, hatch=hatch, label=words, edgecolor=COLOURS["--grid"])
        for colour, hatch, words in PARTS.values()
    ]
    legend_of(on, handles, ncols=3, bbox_to_anchor=(-left / (WIDTH - left - 16) + 0.02, 1.01))
    said = "; ".join(f"{row['system']} {row['sub']} sub, {row['del']} del, {row['ins']} ins" for row in rows)
    return inline_svg(figure.figure, f"errors {title}", f"{title}: {said}.")

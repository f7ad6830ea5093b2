"""What the page's plots share: sizes, colours and marks of the kinds of systems, axes without clutter.

Plots are 372 px wide, so a phone shows them whole and a wide screen several beside one another.  Colour is never
alone: a kind has its mark and its dashes, too.
"""

from typing import Dict, Literal, NamedTuple, Sequence, Tuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rnnt_kd.report.plots.inline_svg import COLOURS, PixelFigure, inline_svg, pixel_figure, text_width

WIDTH = 372
ROW = 19  # px of a bar
FONT = 11


class Plot(NamedTuple):
    """A figure of the page: heading, SVG element, caption."""

    title: str
    svg: str
    note: str = ""


class Kind(NamedTuple):
    colour: str
    mark: str
    dashes: Tuple[int, Tuple[float, ...]]
    words: str


KINDS: Dict[str, Kind] = {
    "teacher": Kind(COLOURS["--muted"], "s", (0, ()), "teacher"),
    "plain": Kind(COLOURS["--accent-2"], "o", (0, (4, 1.5)), "not distilled"),
    "kd": Kind(COLOURS["--accent-3"], "D", (0, ()), "distilled, teacher's cache"),
    "online": Kind(COLOURS["--accent-4"], "^", (0, (1.5, 1.2)), "distilled, online teacher"),
}


def finished(figure: PixelFigure, title: str, words: str, note: str = "") -> Plot:
    """The plot; ``words`` say what it shows to those who cannot see it."""
    return Plot(title, inline_svg(figure.figure, title, f"{title}: {words}."), note)


def quiet(ax: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Small muted ticks, a faint grid behind, no box."""
    ax.patch.set_alpha(0.0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, pad=4, colors=COLOURS["--muted"], labelsize=10)
    ax.tick_params(which="minor", length=0, labelsize=9, colors=COLOURS["--muted"])
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["--grid"])
    ax.grid(True, axis=grid, color=COLOURS["--grid"], linewidth=0.6)


def label(ax: Axes, x: str = "", y: str = "") -> None:
    """Names of the axes; that of y stands above it, level."""
    ax.set_xlabel(x, color=COLOURS["--muted"], fontsize=10, loc="right")
    if y:
        ax.text(0, 1, y, transform=ax.transAxes, color=COLOURS["--muted"], fontsize=10, va="bottom", ha="left")


def bar_axes(names: Sequence[str], right: int, top: int = 8) -> Tuple[PixelFigure, Axes]:
    """A figure for a horizontal bar a name, ``right`` px beside it for figures."""
    figure, left = pixel_figure(WIDTH, top + ROW * len(names) + 34), left_of(names)
    ax = figure.add_axes((left, top, WIDTH - left - right, ROW * len(names)))
    ax.set_ylim(len(names) - 0.5, -0.5)
    quiet(ax, "x")
    ax.set_yticks(range(len(names)), names, color=COLOURS["--fg"], fontsize=FONT)
    return figure, ax


def figure_beside(ax: Axes, place: int, text: str) -> None:
    """Text to the right of a bar."""
    ax.annotate(
        text, (1, place), (5, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=FONT, va="center", color=COLOURS["--fg"],
    )  # fmt: skip


def legend(ax: Axes, kinds, lines: bool = False, **place) -> None:
    """The legend of the kinds of systems that are drawn."""
    handles = [
        Line2D(
            [], [], color=kind.colour, marker=None if lines else kind.mark, markersize=5,
            linestyle=kind.dashes if lines else "none", label=kind.words,
        )
        for name, kind in KINDS.items() if name in kinds
    ]  # fmt: skip
    legend_of(ax, handles, **place)


def legend_of(ax: Axes, handles, **place) -> None:
    values = {"loc": "lower left", "bbox_to_anchor": (0, 1.06), "ncols": 2, "borderaxespad": 0, "columnspacing": 1.2}
    ax.legend(
        handles=handles,
        frameon=False,
        fontsize=10,
        labelcolor=COLOURS["--fg"],
        handletextpad=0.5,
        **{**values, **place},
    )


def left_of(names) -> float:
    """Room for the longest name."""
    return min(190.0, 12 + max((text_width(name, 5.9) for name in names), default=5.9))

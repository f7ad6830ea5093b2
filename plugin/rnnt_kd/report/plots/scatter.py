"""Word error rate against what a system costs: parameters that are not zero, bytes, zeros."""

from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from rnnt_kd.report.plots.inline_svg import COLOURS, PixelFigure, pixel_figure
from rnnt_kd.report.plots.style import KINDS, WIDTH, Plot, finished, label, legend, legend_of, quiet
from rnnt_kd.report.read import FinishedExperiment, FinishedSystem, Row

HEIGHT = 300
FORMATS = {  # shown of sizes.json
    "float32": "o", "float16": "v", "int8": "s", "sparse": "D", "sparse int8": "*", "sparse int4": "X",
}  # fmt: skip

NOT_DISTILLED = "not distilled"
MOST_NAMES = 10  # more would stand on one another


class Point(NamedTuple):
    name: str
    kind: str
    x: float
    y: float


def sizes(experiment: FinishedExperiment) -> Iterator[Plot]:
    """%WER against parameters that are not zero; a line leads from each system to its distilled twins."""
    for test_set in experiment.scored_sets():
        families: Dict[str, List[Point]] = {}
        for system in experiment.systems:
            x, y = system.rows[test_set]["nonzero_params"], system.rows[test_set]["wer"]
            if y is not None and x:
                families.setdefault(system.family, []).append(Point(system.name, system.kind, x, y))
        points = [point for members in families.values() for point in members]
        figure = pixel_figure(WIDTH, HEIGHT)
        ax = figure.add_axes((34, 58, WIDTH - 52, HEIGHT - 58 - 36))
        _logarithmic(ax, [point.x for point in points])
        for family, members in families.items():
            members = sorted(members, key=lambda point: point.y)
            line = [point.x for point in members], [point.y for point in members]
            ax.plot(*line, color=COLOURS["--muted"], linewidth=0.8, zorder=1)
            for point in members:
                kind = KINDS[point.kind]
                ax.plot(point.x, point.y, kind.mark, color=kind.colour, markersize=6.5, zorder=2)
            near = [other for name, other in families.items() if name != family and _is_near(other[0], members[0])]
            is_below = any(max(point.y for point in other) > members[-1].y for other in near)
            if len(families) <= MOST_NAMES:
                _name(ax, family, members[0 if is_below else -1], -15 if is_below else 7, ha="center")
        _rates(ax, [point.y for point in points])
        label(ax, "parameters that are not zero", "%WER")
        legend(ax, {point.kind for point in points}, bbox_to_anchor=(0, 1.09))
        words = "; ".join(f"{point.name} {point.x:,.0f} {point.y:.2f} %" for point in points)
        note = "A line joins a system with its distilled twins."
        yield finished(figure, f"%WER against non-zero parameters, {test_set}", words, note)


def file_bytes(experiment: FinishedExperiment) -> Iterator[Plot]:
    """%WER against the bytes of the files, in each format."""
    systems = {system.name: system for system in experiment.systems}
    rows = [row for row in experiment.sizes if row["system"] in systems and row["format"] in FORMATS]
    rows = [row for row in rows if row.get("wer") is not None]
    if not rows:
        return
    figure = pixel_figure(WIDTH, HEIGHT + 16)
    ax = figure.add_axes((34, 74, WIDTH - 52, HEIGHT - 58 - 36))
    _logarithmic(ax, [row["bytes"] for row in rows])
    smallest: Dict[str, Point] = {}
    for row in rows:
        system = systems[row["system"]]
        point = Point(system.name, system.kind, row["bytes"], row["wer"])
        ax.plot(point.x, point.y, FORMATS[row["format"]], color=KINDS[point.kind].colour, markersize=6, alpha=0.85)
        smallest[system.family] = min(smallest.get(system.family, point), point, key=lambda one: (one.x, -one.y))
    if len(smallest) <= MOST_NAMES:
        room = 0.1 * max(row["wer"] for row in rows)
        for family, point in smallest.items():
            others = smallest.values()
            in_its_way = any(1 < other.x / point.x < 2 and abs(other.y - point.y) < room for other in others)
            _name(ax, family, point, 6, ha="right" if in_its_way else "left")
    _rates(ax, [row["wer"] for row in rows])
    label(ax, "bytes of the files", "%WER")
    kinds, forms = dict.fromkeys(systems[row["system"]].kind for row in rows), {row["format"] for row in rows}
    handles = [Line2D([], [], color=KINDS[kind].colour, linewidth=4, label=KINDS[kind].words) for kind in kinds]
    handles += [
        Line2D([], [], color=COLOURS["--fg"], marker=mark, linestyle="none", markersize=5, label=form)
        for form, mark in FORMATS.items()
        if form in forms
    ]
    legend_of(ax, handles, ncols=3, bbox_to_anchor=(-0.1, 1.09))
    words = "; ".join(f"{row['system']} {row['format']} {row['bytes']:,} bytes {row['wer']:.2f} %" for row in rows)
    note = "Names stand at a system's smallest file; its distilled twins are about as large."
    yield finished(figure, "%WER against bytes", words, note)


def sparsity(experiment: FinishedExperiment) -> Iterator[Plot]:
    """%WER against the sparsity; one line for each way to distil."""
    for test_set in experiment.scored_sets():
        sparse = [system for system in experiment.systems if system.listed.role == "sparse_student"]
        scored = [system for system in sparse if system.rows[test_set]["wer"] is not None]
        if len({system.listed.sparsity for system in scored}) > 1:
            note = "Bars: standard deviation over seeds. " if experiment.has_several_seeds() else ""
            note += "Six ways at most; the bars above have all systems."
            figure, words = _lines(scored, test_set)
            yield finished(figure, f"%WER against sparsity, {test_set}", words, note)


def _lines(systems: Sequence[FinishedSystem], test_set: str) -> Tuple[PixelFigure, str]:
    """Mean and standard deviation over seeds against sparsity, and the same in words.

    Of several systems of the same sparsity and way (trained longer, say) the one with most seeds, then the first.
    """
    series: Dict[str, Dict[float, Row]] = {}
    for system in sorted(systems, key=lambda system: -len(system.rows[test_set]["seeds"])):
        series.setdefault(way_of(system.listed.kd), {}).setdefault(system.listed.sparsity, system.rows[test_set])
    shown = {way: sorted(points.items()) for way, points in series.items()}
    ways = sorted(shown, key=lambda way: (way != NOT_DISTILLED, -len(shown[way]), way))[:6]
    top = 30 + 15 * len(ways)
    figure = pixel_figure(WIDTH, HEIGHT + 15 * len(ways))
    ax = figure.add_axes((34, top, WIDTH - 52, HEIGHT - 66))
    colours = ["--accent-2", "--accent-3", "--accent-4", "--accent-1", "--accent-6", "--muted"]
    handles = []
    for place, way in enumerate(ways):
        line = "-" if place else KINDS["plain"].dashes
        style: Dict[str, Any] = {
            "color": COLOURS[colours[place]],
            "marker": "oD^sv*"[place],
            "markersize": 5,
            "linestyle": line,
        }
        x = [100 * share for share, _ in shown[way]]
        y = [row["wer"] for _, row in shown[way]]
        ax.errorbar(x, y, [row["wer_sd"] or 0.0 for _, row in shown[way]], capsize=2, linewidth=1.4, **style)
        handles.append(Line2D([], [], label=way, linewidth=1.4, **style))
    rates = [row["wer"] for way in ways for _, row in shown[way]]
    _rates(ax, rates)
    if min(rates) > 0 and max(rates) > 4 * min(rates):  # else one broken system hides what all others do
        ax.set_yscale("log")
        ax.set_ylim(min(rates) / 1.2, max(rates) * 1.2)
        low, high = ax.get_ylim()
        ax.set_yticks([rate for rate in (1, 2, 5, 10, 15, 20, 30, 50, 80) if low <= rate <= high])
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    quiet(ax)
    label(ax, "% of the sparsified weights that are zero", "%WER")
    legend_of(ax, handles, ncols=1, bbox_to_anchor=(-0.1, 1.07), labelspacing=0.2)
    words = "; ".join(
        f"{way}: " + ", ".join(f"{100 * share:g} % zeros {row['wer']:.2f} %" for share, row in shown[way])
        for way in ways
    )
    return figure, words


def _is_near(one: Point, other: Point) -> bool:
    return 0.7 < one.x / other.x < 1.4


def way_of(kd: Optional[Mapping[str, Any]]) -> str:
    """How a system was distilled, in words; what is usual is not said."""
    if kd is None:
        return NOT_DISTILLED
    words = [str(kd.get("weighting") or kd.get("variant") or "distilled")]
    if kd.get("variant") not in (None, "collapsed"):
        words.insert(0, str(kd["variant"]))
    is_online, hears = kd.get("ranges") == "student", kd.get("hears")
    if kd.get("in_place"):
        words.append("in place")  # which is online, of the same view
    else:
        words += ["online"] * is_online + [f"hears {hears}"] * (hears not in (None, "student"))
    for key, usual in (("scale", 1), ("temperature", 1), ("shift", 0), ("features", 0)):
        if kd.get(key) not in (None, usual):
            words.append(f"{key} {kd[key]:g}")
    return ", ".join(words)


def _name(ax: Axes, text: str, point: Point, offset: int, **style) -> None:
    """A family's name, ``offset`` px above a point."""
    place: Dict[str, Any] = {"textcoords": "offset points", "fontsize": 10, "color": COLOURS["--fg"]}
    ax.annotate(text, (point.x, point.y), (0, offset), **place, **style)


def _rates(ax: Axes, rates: Sequence[float]) -> None:
    """Limits of the axis: from 0, unless all are far from it; room for names above."""
    top, low = max(rates, default=1.0), min(rates, default=0.0)
    floor = 0.0 if low < 0.6 * top else low - 0.15 * (top - low) - 0.2
    ax.set_ylim(max(0.0, floor), top + 0.12 * (top - floor) + 0.1)


def _logarithmic(ax: Axes, values: Sequence[float]) -> None:
    quiet(ax)
    low, high = min(values, default=1.0), max(values, default=10.0)
    if low <= 0:
        return
    ax.set_xscale("log")
    ax.set_xlim(low / 1.35, high * 1.35)
    steps = [base * 10**power for power in range(3, 10) for base in (1, 2, 5)]
    ax.set_xticks([value for value in steps if low / 1.35 <= value <= high * 1.35])
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k")
    ax.xaxis.set_minor_formatter(NullFormatter())

"""Word error rate against what a system costs: parameters that are not zero, bytes, zeros."""

from typing import Any, Callable, Dict, List, Sequence, Tuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from rnnt_kd.report.plots.inline_svg import COLOURS, inline_svg, pixel_figure
from rnnt_kd.report.plots.style import KINDS, WIDTH, label, legend, legend_of, quiet

HEIGHT = 300
FORMATS = {"float32": "o", "float16": "v", "int8": "s", "sparse": "D", "sparse int8": "*"}  # shown of sizes.json

Point = Tuple[str, str, float, float]  # name, kind, x, %WER


def draw_sizes(points: Sequence[Point], title: str) -> str:
    """Against parameters that are not zero; a line leads from each system to its distilled twins."""
    figure = pixel_figure(WIDTH, HEIGHT)
    on = figure.add_axes((34, 58, WIDTH - 52, HEIGHT - 58 - 36))
    _logarithmic(on, [x for _, _, x, _ in points])
    families: Dict[Tuple[str, float], List[Point]] = {}
    for point in points:
        families.setdefault((point[0].partition("_kd")[0], point[2]), []).append(point)
    for (family, x), members in families.items():
        heights = [y for *_, y in members]
        on.plot([x, x], [min(heights), max(heights)], color=COLOURS["--muted"], linewidth=0.8, zorder=1)
        for _, kind, _, y in members:
            on.plot(x, y, KINDS[kind].mark, color=KINDS[kind].colour, markersize=6.5, zorder=2)
        near = [other for other in families if other[1] != x and 0.7 < other[1] / x < 1.4]
        below = any(max(y for *_, y in families[other]) > max(heights) for other in near)
        height, offset = (min(heights), -15) if below else (max(heights), 7)
        on.annotate(
            family,
            (x, height),
            (0, offset),
            textcoords="offset points",
            ha="center",
            fontsize=10,
            color=COLOURS["--fg"],
        )
    _rates(on, [y for *_, y in points])
    label(on, "parameters that are not zero", "%WER")
    legend(on, {kind for _, kind, *_ in points}, bbox_to_anchor=(0, 1.09))
    said = "; ".join(f"{name} {x:,.0f} {y:.2f} %" for name, _, x, y in points)
    return inline_svg(figure.figure, f"sizes {title}", f"{title}: {said}.")


def draw_bytes(rows: Sequence[Dict[str, Any]], kind_of: Callable[[str], str], title: str) -> str:
    """Against the bytes of the files, in each format."""
    rows = [row for row in rows if row["format"] in FORMATS and row.get("wer") is not None]
    figure = pixel_figure(WIDTH, HEIGHT + 16)
    on = figure.add_axes((34, 74, WIDTH - 52, HEIGHT - 58 - 36))
    _logarithmic(on, [row["bytes"] for row in rows])
    for row in rows:
        kind = KINDS[kind_of(row["system"])]
        on.plot(row["bytes"], row["wer"], FORMATS[row["format"]], color=kind.colour, markersize=6, alpha=0.85)
    for family in dict.fromkeys(row["system"].partition("_kd")[0] for row in rows):
        members = [row for row in rows if row["system"].partition("_kd")[0] == family]
        least = min(members, key=lambda row: (row["bytes"], -row["wer"]))
        on.annotate(
            family,
            (least["bytes"], least["wer"]),
            (0, 6),
            textcoords="offset points",
            fontsize=9,
            color=COLOURS["--fg"],
        )
    _rates(on, [row["wer"] for row in rows])
    label(on, "bytes of the files", "%WER")
    kinds = dict.fromkeys(kind_of(row["system"]) for row in rows)
    handles = [Line2D([], [], color=KINDS[kind].colour, linewidth=4, label=KINDS[kind].words) for kind in kinds]
    handles += [
        Line2D([], [], color=COLOURS["--fg"], marker=FORMATS[name], linestyle="none", markersize=5, label=name)
        for name in FORMATS
        if name in {row["format"] for row in rows}
    ]
    legend_of(on, handles, ncols=3, bbox_to_anchor=(-0.1, 1.09))
    said = "; ".join(f"{row['system']} {row['format']} {row['bytes']:,} bytes {row['wer']:.2f} %" for row in rows)
    return inline_svg(figure.figure, f"bytes {title}", f"{title}: {said}.")


def draw_against_sparsity(rows: Sequence[Dict[str, Any]], title: str) -> str:
    """Rows of experiments/table.py: mean and standard deviation over seeds; one line for each way to distil.

    Of several systems of the same sparsity and way (trained longer, say) the one with most seeds, then the first.
    """
    series: Dict[str, Dict[float, Dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -len(row.get("seeds") or [])):
        series.setdefault(way_of(row), {}).setdefault(row["sparsity"], row)
    shown = {way: sorted(of_way.values(), key=lambda row: row["sparsity"]) for way, of_way in series.items()}
    ways = sorted(shown, key=lambda way: (way != "not distilled", -len(shown[way]), way))[:6]
    figure = pixel_figure(WIDTH, HEIGHT + 15 * len(ways))
    top = 30 + 15 * len(ways)
    on = figure.add_axes((34, top, WIDTH - 52, HEIGHT - 66))
    colours = ["--accent-2", "--accent-3", "--accent-4", "--accent-1", "--accent-6", "--muted"]
    handles = []
    for place, way in enumerate(ways):
        colour, mark = COLOURS[colours[place]], "oD^sv*"[place]
        line = "-" if place else KINDS["plain"].dashes
        style = {"color": colour, "marker": mark, "markersize": 5, "linestyle": line}
        x = [100 * row["sparsity"] for row in shown[way]]
        y = [row["wer"] for row in shown[way]]
        on.errorbar(x, y, [row.get("wer_sd") or 0.0 for row in shown[way]], capsize=2, linewidth=1.4, **style)
        handles.append(Line2D([], [], label=way, linewidth=1.4, **style))
    rates = [row["wer"] for way in ways for row in shown[way]]
    _rates(on, rates)
    if min(rates) > 0 and max(rates) > 4 * min(rates):  # else one broken system hides what all others do
        on.set_yscale("log")
        on.set_ylim(min(rates) / 1.2, max(rates) * 1.2)
        low, high = on.get_ylim()
        on.set_yticks([rate for rate in (1, 2, 5, 10, 15, 20, 30, 50, 80) if low <= rate <= high])
        on.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        on.yaxis.set_minor_formatter(NullFormatter())
    quiet(on)
    label(on, "% of the sparsified weights that are zero", "%WER")
    legend_of(on, handles, ncols=1, bbox_to_anchor=(-0.1, 1.07), labelspacing=0.2)
    said = "; ".join(
        f"{way}: " + ", ".join(f"{100 * row['sparsity']:g} % zeros {row['wer']:.2f} %" for row in shown[way])
        for way in ways
    )
    return inline_svg(figure.figure, f"sparsity {title}", f"{title}: {said}.")


def way_of(row: Dict[str, Any]) -> str:
    """How a row of an experiment was distilled, in words; what is usual is not said."""
    if not row.get("kd"):
        return "not distilled"
    words = [str(row.get("kd_weighting") or row.get("kd_variant") or "distilled")]
    if row.get("kd_variant") not in (None, "collapsed"):
        words.insert(0, str(row["kd_variant"]))
    if row.get("kd_ranges") == "student":
        words.append("online")
    for key, usual in (("scale", 1), ("temperature", 1)):
        if row.get(f"kd_{key}") not in (None, usual):
            words.append(f"{key} {row[f'kd_{key}']:g}")
    return ", ".join(words)


def _rates(on: Axes, rates: Sequence[float]) -> None:
    """From 0, unless all are far from it; room for names above."""
    top, low = max(rates, default=1.0), min(rates, default=0.0)
    floor = 0.0 if low < 0.6 * top else low - 0.15 * (top - low) - 0.2
    on.set_ylim(max(0.0, floor), top + 0.12 * (top - floor) + 0.1)


def _logarithmic(on: Axes, values: Sequence[float]) -> None:
    quiet(on)
    low, high = min(values, default=1.0), max(values, default=10.0)
    if low <= 0:
        return
    on.set_xscale("log")
    on.set_xlim(low / 1.35, high * 1.35)
    steps = [base * 10**power for power in range(3, 10) for base in (1, 2, 5)]
    on.set_xticks([value for value in steps if low / 1.35 <= value <= high * 1.35])
    on.xaxis.set_major_formatter(FuncFormatter(_short))
    on.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float, _) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k"

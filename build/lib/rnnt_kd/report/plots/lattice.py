"""The picture of one utterance's pruned lattice, as an SVG for the page.

    svg = draw_lattice(utterance)          # report/lattice_data.py -> "<svg ...>...</svg>", to be set inline

Frames run to the right, in seconds, tokens of the reference upwards.  From above: the sound with the words where the
teacher emits them; what teacher, twin and student say of each kept node; each student's divergence from the teacher
there; and the same, weighted and summed over a frame's nodes, which is what distillation with occupancy weighting
minimises.

The picture keeps its natural size, at least 9 px a frame: put it into a box that scrolls (``overflow-x: auto``).  Lines
and text have the page's colours (the CSS variables --fg --muted --grid --accent-2 --accent-3, each with a fallback),
and the cells of a panel are one small translucent image: so light, dark and print styles apply.
"""

from typing import List, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from rnnt_kd.report.lattice_data import ModelOnLattice, UtteranceLattice
from rnnt_kd.report.plots.inline_svg import COLOURS, PixelFigure, inline_svg, pixel_figure, text_width
from rnnt_kd.scoring.characters import has_no_blanks

CELL_WIDTH, CELL_HEIGHT = 9, 13  # px: a frame, a symbol
LEFT, RIGHT, LEAST_WIDTH = 84, 14, 372
TITLE, GAP, SOUND, CURVE = 17, 26, 26, 64  # GAP: room for the seconds
ROW, WIDEST = 15, 7.2  # of the legend; of a letter, in the mean

BLANK, LABEL, REST = (0x6F, 0x8F, 0xB8), (0xF2, 0x8E, 0x2B), (0xB0, 0x1F, 0x9B)  # for colour-blind eyes, too
DIVERGENCE = (0xE0, 0x3C, 0x3C)
SPACE = "\u2581"  # of sentencepiece
FAINT = 0.2  # opacity of a kept node that no path passes
MOST_KL = 4.0  # nats, of an opaque cell
CURVES = {"twin": (COLOURS["--accent-2"], (0, (4, 1.5))), "student": (COLOURS["--accent-3"], "-")}


def draw_lattice(item: UtteranceLattice) -> str:
    """One ``<svg role="img" aria-label=...>`` element, without XML declaration; its ids are unique to the utterance."""
    S, T = len(item.tokens), len(item.starts)
    panel = (S + 1) * CELL_HEIGHT
    words, word_rows = _words(item)
    heights = [
        *(3 * ROW + 10, 12 * word_rows + SOUND + GAP),
        *[TITLE + panel + GAP] * 3,
        2 * ROW + 10,
        *[TITLE + panel + GAP] * 2,
        TITLE + 2 * ROW + 6 + CURVE + GAP + 12,
    ]
    tops = np.cumsum([2, *heights])
    titles = {key: _title(key, model) for key, model in item.models.items()}
    left, longest = _left(item), max(text_width(title, WIDEST) for title in titles.values())
    width = max(left + T * _cell_width(item) + RIGHT, LEAST_WIDTH, 8 + longest)
    figure = pixel_figure(width, tops[-1])

    def axes(top: float, height: float, y_end: float) -> Axes:
        made = figure.add_axes((left, top, T * _cell_width(item), height))
        made.set_xlim(0, T)
        made.set_ylim(0, y_end)
        return made

    _Legend(figure, tops[0]).nodes(item)
    _sound(axes(tops[1] + 12 * word_rows, SOUND, 1.0), item, words)
    for key, top in zip(("teacher", "twin", "student"), tops[2:5]):
        model = item.models[key]
        ax = axes(top + TITLE, panel, S + 1)
        _cells(ax, item, _colours_of_nodes(model))
        _frame(ax, item, titles[key])
        if key != "teacher":
            _path(ax, item.models["teacher"], item, color=COLOURS["--fg"], linewidth=1.0, linestyle=(0, (1.5, 2)))
        _path(ax, model, item, color=COLOURS["--fg"], linewidth=1.3)
    _Legend(figure, tops[5]).divergence()
    for key, top in zip(("twin", "student"), tops[6:8]):
        model = item.models[key]
        ax = axes(top + TITLE, panel, S + 1)
        _cells(ax, item, _colours_of_divergence(model))
        _frame(ax, item, f"KL(teacher || {model.name}), sum {np.nansum(_kl(model)):.1f} nats")
        _path(ax, item.models["teacher"], item, color=COLOURS["--fg"], linewidth=1.0)
    _Legend(figure, tops[8] + TITLE).models(item)
    _curve(axes(tops[8] + TITLE + 2 * ROW + 6, CURVE, 1.0), item)
    return inline_svg(figure.figure, f"{item.system} {item.test_set} {item.utterance}", _in_words(item))


class _Legend:
    """Two or three rows of signs and words, at most ``LEAST_WIDTH`` wide: a phone shows them whole."""

    def __init__(self, figure: PixelFigure, top: float):
        self._axes = figure.add_axes((0, top, LEAST_WIDTH, 3 * ROW))
        self._axes.set_axis_off()
        self._axes.set_xlim(0, LEAST_WIDTH)
        self._axes.set_ylim(3 * ROW, 0)

    def nodes(self, item: UtteranceLattice) -> None:
        for x, colour, text in ((4, LABEL, "next token"), (104, BLANK, "blank"), (174, REST, "another token")):
            self._box(x, 0, (*(value / 255 for value in colour), 1.0))
            self._text(x + 16, 0, text)
        for place, opacity in enumerate((FAINT, 0.4, 0.7, 1.0)):
            self._box(4 + 12 * place, 1, (*(value / 255 for value in BLANK), opacity))
        self._text(56, 1, "how probably a path passes the node")
        self._line(4, 2, "-", 1.3)
        self._text(32, 2, "best path")
        self._line(104, 2, (0, (1.5, 2)), 1.0)
        self._text(132, 2, "teacher's")
        self._axes.add_patch(Rectangle((212, 2 * ROW + 2), 20, 10, fill=False, edgecolor=COLOURS["--muted"]))
        self._text(238, 2, f"kept: {item.prune_range} a frame")

    def divergence(self) -> None:
        for place, kl in enumerate((0.01, 0.1, 1.0, MOST_KL)):
            self._box(4 + 72 * place, 0, (*(value / 255 for value in DIVERGENCE), float(_opacity(np.array(kl))[0])))
            self._text(20 + 72 * place, 0, f"{kl:g}" if kl < MOST_KL else f"{kl:g} nats and more")
        self._line(4, 1, "-", 1.0)
        self._text(32, 1, "the teacher's best path")

    def models(self, item: UtteranceLattice) -> None:
        for row, (key, (colour, style)) in enumerate(CURVES.items()):
            model = item.models[key]
            self._line(4, row, style, 1.4, colour)
            self._text(32, row, f"{model.name}: {model.kd:.1f} nats in all")

    def _box(self, x: float, row: int, colour: Tuple[float, ...]) -> None:
        self._axes.add_patch(Rectangle((x, row * ROW + 2), 11, 11, facecolor=colour, linewidth=0))

    def _line(self, x: float, row: int, style, width: float, colour: str = COLOURS["--fg"]) -> None:
        y = [row * ROW + 7.5] * 2
        self._axes.plot([x, x + 22], y, color=colour, linestyle=style, linewidth=width)

    def _text(self, x: float, row: int, text: str) -> None:
        self._axes.text(x, row * ROW + 11.5, text, color=COLOURS["--fg"], fontsize=11)


def _left(item: UtteranceLattice) -> float:
    """Room for the pieces."""
    return max([LEFT, *(12 + text_width(piece, 6.5) for piece in item.tokens)])


def _title(key: str, model: ModelOnLattice) -> str:
    name = model.name if key == "teacher" else f"{model.name} ({'no distillation' if key == 'twin' else 'distilled'})"
    errors = f"{model.errors} error{'s' if model.errors != 1 else ''}"
    return f"{name}: {errors}; -log p(text) {model.loss:.1f} nats"


def _in_words(item: UtteranceLattice) -> str:
    """The picture for those who cannot see it."""
    sentences = [f"Pruned lattice of {item.utterance}, {item.duration:.1f} seconds: {' '.join(item.ref)}."]
    for key, model in item.models.items():
        sentences.append(f"{_title(key, model)}.")
        if model.kl is not None:
            frame, place = np.unravel_index(int(np.nanargmax(model.kl)), model.kl.shape)
            row = int(item.starts[frame] + place)
            before = f"before {item.tokens[row]}" if row < len(item.tokens) else "after the last token"
            where = f"{frame * item.frame_seconds:.2f} s, {before}"
            sentences.append(f"Largest divergence from the teacher: {model.kl[frame, place]:.2f} nats at {where}.")
    return " ".join(sentences)


# Panels.


def _cells(ax: Axes, item: UtteranceLattice, colours: np.ndarray) -> None:
    """(T, s_range, 4) colours of the kept nodes, 0 to 1, as an image a pixel a cell."""
    T, s_range, _ = colours.shape
    image = np.zeros((len(item.tokens) + 1, T, 4))
    rows = item.starts[:, None] + np.arange(s_range)
    frame, place = np.nonzero(rows < len(image))
    image[rows[frame, place], frame] = colours[frame, place]
    extent = (0, T, 0, len(image))
    ax.imshow(image, origin="lower", extent=extent, aspect="auto", interpolation="none")


def _colours_of_nodes(model: ModelOnLattice) -> np.ndarray:
    """(T, s_range, 4): the three classes' colours mixed by their posteriors, as opaque as the node is occupied."""
    blank, label = (np.nan_to_num(np.exp(x), nan=0.0) for x in (model.log_blank, model.log_label))
    shares = np.stack((blank, label, np.clip(1.0 - blank - label, 0.0, 1.0)), axis=-1)
    mixed = shares @ np.array([BLANK, LABEL, REST]) / 255.0
    opacity = FAINT + (1.0 - FAINT) * np.clip(model.occupancy, 0.0, 1.0) ** 0.5
    return np.concatenate((np.clip(mixed, 0, 1), np.nan_to_num(opacity, nan=0.0)[..., None]), axis=-1)


def _colours_of_divergence(model: ModelOnLattice) -> np.ndarray:
    """(T, s_range, 4): one colour, more opaque where KL is higher."""
    kl = _kl(model)
    return np.concatenate((np.broadcast_to(np.array(DIVERGENCE) / 255.0, (*kl.shape, 3)), _opacity(kl)), -1)


def _kl(model: ModelOnLattice) -> np.ndarray:
    """(T, s_range), of twin or student."""
    assert model.kl is not None
    return model.kl


def _opacity(kl: np.ndarray) -> np.ndarray:
    """(..., 1), with the square root of KL: 1 at ``MOST_KL`` and above, 0 where there is no node."""
    return np.minimum(np.nan_to_num(kl, nan=0.0) / MOST_KL, 1.0)[..., None] ** 0.5


def _frame(ax: Axes, item: UtteranceLattice, title: str) -> None:
    """Title, outline of the kept nodes, grid, pieces and seconds."""
    S, T = len(item.tokens), len(item.starts)
    lower = item.starts.astype(float)
    upper = np.minimum(lower + item.models["teacher"].log_blank.shape[1], S + 1)
    edges = np.arange(T + 1).repeat(2)[1:-1]
    around = np.stack((np.concatenate((edges, edges[::-1])), np.concatenate((upper.repeat(2), lower[::-1].repeat(2)))))
    ax.fill(*_corners(around), fill=False, edgecolor=COLOURS["--muted"], linewidth=0.8, zorder=2)
    ax.set_yticks(np.arange(S + 1) + 0.5, [*(piece if piece != SPACE else "(space)" for piece in item.tokens), "end"])
    _seconds(ax, item)
    lines = np.arange(1, S + 1).repeat(3)
    ends = np.tile([0, T, np.nan], S)  # one path of many lines
    ax.plot(ends, lines, color=COLOURS["--grid"], linewidth=0.5, zorder=0)
    _style(ax)
    _write(ax, 4 - _left(item), 4, title, fontsize=11, fontweight="bold")


def _path(ax: Axes, model: ModelOnLattice, item: UtteranceLattice, **style) -> None:
    """Through the middles of the nodes that the best path reads, to the end."""
    nodes = np.concatenate((model.path, [[len(item.starts), len(item.tokens)]])) + 0.5
    nodes[-1, 0] -= 0.5
    ax.plot(*_corners(nodes.T), solid_joinstyle="round", zorder=3, **style)


def _corners(points: np.ndarray) -> np.ndarray:
    """(2, N) of a line along the axes -> (2, M), without the points between two corners."""
    steps = np.sign(np.diff(points, axis=1))
    points, steps = points[:, np.append(True, steps.any(axis=0))], steps[:, steps.any(axis=0)]
    turns = (np.diff(steps, axis=1) != 0).any(axis=0)
    return points[:, np.concatenate(([True], turns, [True]))]


def _sound(ax: Axes, item: UtteranceLattice, words: List[Tuple[str, int, int]]) -> None:
    """Loudness, and the words where the teacher's best path emits their first letters."""
    loud = item.loudness / max(float(item.loudness.max()), 1e-9)
    ax.stairs(loud, np.arange(len(loud) + 1), fill=True, color=COLOURS["--muted"], linewidth=0)
    _seconds(ax, item)
    ax.set_yticks([])
    _style(ax)
    _write(ax, 4 - _left(item), -SOUND + 8, "sound", color=COLOURS["--muted"])
    for word, frame, row in words:
        _write(ax, frame * _cell_width(item), 3 + 12 * row, word)
        ax.axvline(frame + 0.5, color=COLOURS["--muted"], linewidth=0.6)


def _cell_width(item: UtteranceLattice) -> float:
    """px of a frame: a short utterance fills the least width."""
    return max(CELL_WIDTH, (LEAST_WIDTH - _left(item) - RIGHT) / len(item.starts))


def _words(item: UtteranceLattice) -> Tuple[List[Tuple[str, int, int]], int]:
    """(word, frame of its first letters, row of text), so that no two overlap; and how many rows that takes."""
    path = np.concatenate((item.models["teacher"].path, [[len(item.starts), len(item.tokens)]]))
    rises = np.nonzero(np.diff(path[:, 1]) > 0)[0]
    frames = path[rises, 0]
    placed: List[Tuple[str, int, int]] = []
    ends: List[float] = []
    each = has_no_blanks([item.ref])  # every piece for itself
    firsts = [index for index, piece in enumerate(item.tokens) if each or index == 0 or piece.startswith(SPACE)]
    for first, last in zip(firsts, [*firsts[1:], len(item.tokens)]):
        word = "".join(item.tokens[first:last]).replace(SPACE, "")
        if not word:
            continue
        first += item.tokens[first] == SPACE  # the space alone
        x = float(frames[first]) * _cell_width(item)
        row = next((row for row, end in enumerate(ends) if end <= x), len(ends))
        ends[row : row + 1] = [x + text_width(word, 7.5) + 6]
        placed.append((word, int(frames[first]), row))
    return placed, max(1, len(ends))


def _curve(ax: Axes, item: UtteranceLattice) -> None:
    """The distillation term, frame by frame."""
    weights = np.nan_to_num(item.models["teacher"].occupancy)
    highest = 1e-6
    for key, (colour, style) in CURVES.items():
        height = (weights * np.nan_to_num(_kl(item.models[key]))).sum(axis=1)
        highest = max(highest, float(height.max()))
        ax.step(np.arange(len(height)) + 0.5, height, where="mid", color=colour, linestyle=style, linewidth=1.4)
    ax.set_ylim(0, 1.05 * highest)
    _seconds(ax, item)
    ax.locator_params(axis="y", nbins=3)
    _style(ax)
    ax.set_xlabel("seconds", color=COLOURS["--muted"], loc="left")
    title = "KL x teacher's occupancy, sum of a frame (nats)"
    _write(ax, 4 - _left(item), 10 + 2 * ROW, title, fontsize=11, fontweight="bold")


def _seconds(ax: Axes, item: UtteranceLattice) -> None:
    end = len(item.starts) * item.frame_seconds
    times = np.arange(0.0, end + 1e-9, 0.5)
    ax.set_xticks(times / item.frame_seconds, [f"{time:g}" for time in times])


def _style(ax: Axes) -> None:
    ax.patch.set_alpha(0.0)
    ax.tick_params(length=0, pad=4, colors=COLOURS["--muted"], labelsize=10)
    for spine in ax.spines.values():
        spine.set_color(COLOURS["--grid"])


def _write(ax: Axes, x: float, y: float, text: str, color: str = COLOURS["--fg"], **style) -> None:
    """Text at pixels from the upper left corner of the axes."""
    ax.annotate(text, (0, 1), (x, y), xycoords="axes fraction", textcoords="offset points", color=color, **style)

"""matplotlib figures -> SVG elements that stand in an HTML page and take its colours.

figure = pixel_figure(400, 300);  axes = figure.add_axes((left, top, width, height)) ...
axes.plot(x, y, color=COLOURS["--accent-1"])
svg = inline_svg(figure.figure, salt="a name that is unique in the page", label="for those who cannot see it")
"""

import html
import io
import re
import unicodedata
import warnings
from dataclasses import dataclass
from typing import Tuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

FALLBACKS = {  # CSS variable -> what it is in a page that does not define it
    "--fg": "#222222",
    "--muted": "#6b6b6b",
    "--grid": "#d5d5d5",
    "--good": "#2a7f3f",
    "--bad": "#c0392b",
    "--accent-1": "#4269d0",
    "--accent-2": "#e07b00",
    "--accent-3": "#2a9d8f",
    "--accent-4": "#a463f2",
    "--accent-5": "#97bbf5",
    "--accent-6": "#9c6b4e",
    "--card": "#ffffff",
}
COLOURS = {name: f"#0a0b{index:02x}" for index, name in enumerate(FALLBACKS)}  # what matplotlib is told instead
_STYLE = "font: 10px system-ui, sans-serif; stroke-linejoin: round"


@dataclass(frozen=True)
class PixelFigure:
    """A figure measured in CSS pixels, y from above."""

    figure: Figure
    width: float
    height: float

    def add_axes(self, box: Tuple[float, float, float, float]) -> Axes:
        """(left, top, width, height)."""
        left, top, width, height = box
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))


def pixel_figure(width: float, height: float) -> PixelFigure:
    """An empty one, transparent."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_alpha(0.0)
    return PixelFigure(figure, float(width), float(height))


def inline_svg(figure: Figure, salt: str, label: str) -> str:
    """The element, with ``role="img"`` and ``aria-label``; the same bytes for the same figure."""
    for written in figure.findobj(Text):
        written.set_parse_math(False)  # a dollar is a dollar
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        # the text is set by the browser, in its fonts: what matplotlib's own lacks is not missed
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support", UserWarning)
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>", r"<!--.*?-->"):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)  # its style would be that of the whole page
    used = set(re.findall(r"#([\w-]+)", text))

    def shorter(tag: str) -> str:
        tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", tag)
        tag = re.sub(r"font-family: [^;\"]*; |font-size: 10px; |text-anchor: start; ", "", tag)  # the element has them
        for name, colour in COLOURS.items():
            tag = tag.replace(colour, f"var({name}, {FALLBACKS[name]})")
        tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
        return re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", tag)

    text = re.sub(r"<[^>]*>", lambda match: shorter(match[0]), text)  # what is written between tags stays as it is
    text = re.sub(r"(<g/>|\s)*\n(<g/>|\s)*", "\n", text)
    start, rest = _without_bare_groups(text).split(">", 1)
    start = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', start)
    start = start.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" style="{_STYLE}" ')
    return f"{start}>{rest.strip()}"


def text_width(text: str, letter: float) -> float:
    """About how wide a browser sets it, in px; ``letter``: of a Latin letter, in the mean.

    East Asian letters are square, most others as wide as Latin ones, and marks stand above or below a letter.
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return letter * (len(text) - marks - wide) + 1.8 * letter * wide


def _without_bare_groups(text: str) -> str:
    """Without the groups that have no attribute: half of the elements, and they do nothing."""
    kept, is_kept = [], []
    for part in re.split(r"(<g>|<g [^>]*>|</g>)\n?", text):
        if part.startswith("<g"):
            is_kept.append(part != "<g>")
        if part != "<g>" and (part != "</g>" or is_kept.pop()):
            kept.append(part)
    return "".join(kept)

"""The picture of one utterance's pruned lattice, as an SVG for the page.

    svg = draw_lattice(utterance)          # report/lattice_data.py -> "<svg ...>...</svg>", to be set inline

Frames run to the right, in seconds; tokens of the reference upwards.  Its natural size is about 9 px a frame and never
scaled down: put it into a box that scrolls (``overflow-x: auto``).  All colours of lines and text are CSS variables
(--fg, --muted, --grid, --accent-1 ... --accent-6, each with a fallback), cells are one translucent image a panel, so
the page's light, dark and print styles apply.
"""

from rnnt_kd.report.lattice_data import UtteranceLattice


def draw_lattice(item: UtteranceLattice) -> str:
    """One ``<svg role="img" aria-label=...>`` element, without XML declaration; ids are unique to the utterance."""
    raise NotImplementedError

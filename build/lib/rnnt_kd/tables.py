"""Tables for people: GitHub-flavoured Markdown that reads well as plain text, too."""

from typing import Any, Optional, Sequence

from tabulate import tabulate


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """A table; the first ``left`` columns are aligned left, the others right.  Cells are written as they are."""
    align = ["left" if column < left else "right" for column in range(len(head))]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    return tabulate(cells[1:], cells[0], tablefmt="pipe", colalign=align if rows else None, disable_numparse=True)


def shown(value: Optional[float], style: str, unit: str = "") -> str:
    """A figure in a cell; "-" where there is none."""
    return "-" if value is None else format(value, style) + unit

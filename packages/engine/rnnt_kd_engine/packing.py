"""Matrices with zeros -> groups of rows with the columns that they use.

A *group* is ``rows`` neighbouring outputs (8, 4 or 1) that share a list of columns: those where any of them has a
weight.  So 16x1 and 16x16 blocks make groups of 8 without a zero inside, 4x4 blocks groups of 4, and scattered
weights (and 1x16 blocks) groups of 1.  Which is best for a matrix is a matter of counting: the weights that a
group must carry, its zeros included, times what a weight costs in a tile of that kind.
"""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

import numpy as np

from rnnt_kd_engine.kernels import TILES

# Time a weight and vector of frames takes, relative to a group of 8; and what a group costs beside, in weights.
# Measured on matrices of 96 to 576 rows and columns, 96 to 256 frames.
COST = {8: 1.0, 4: 1.05, 1: 2.5}
GROUP_COST = {8: 80, 4: 40, 1: 4}


@dataclass
class Segment:
    """Groups of one kind: the range [first, last) of the table of groups."""

    rows: int
    first: int
    last: int


@dataclass
class Packed:
    """All matrices of a program, in the arrays that ``operations.run`` takes."""

    groups: List[Tuple[int, int, int, int, int]] = field(default_factory=list)
    columns: List[np.ndarray] = field(default_factory=list)
    parameters: List[np.ndarray] = field(default_factory=list)
    num_columns: int = 0
    num_parameters: int = 0
    _known: Dict[bytes, int] = field(default_factory=dict)  # lists of several rows -> where they begin

    def add_matrix(
        self, weight: np.ndarray, bias: np.ndarray, target: int, rows: Optional[int] = None
    ) -> List[Segment]:
        """Pack (outputs, inputs) float32 for output rows from ``target`` on.

        Args:
          rows: of a group; None: the kind that costs least.
        """
        rows = rows or cheapest_rows(weight)
        whole = len(weight) // rows * rows
        segments = [self._add_groups(weight[:whole], bias[:whole], target, rows)] if whole else []
        if whole < len(weight):
            segments.append(self._add_groups(weight[whole:], bias[whole:], target + whole, 1))
        return segments

    def add_parameters(self, values: np.ndarray) -> int:
        """Returns where they begin."""
        start = self.num_parameters
        self.parameters.append(np.ascontiguousarray(values, np.float32).ravel())
        self.num_parameters += values.size
        return start

    def add_columns(self, columns: np.ndarray) -> int:
        """Returns where they begin; a list that is there already is not stored again.  Each is below 65536."""
        assert len(columns) == 0 or np.max(columns) < 1 << 16, np.max(columns)
        columns = np.asarray(columns, np.uint16)
        start = self._known.setdefault(columns.tobytes(), self.num_columns)
        if start == self.num_columns:
            self.columns.append(columns)
            self.num_columns += len(columns)
        return start

    def finish(self) -> Dict[str, np.ndarray]:
        """The arrays ``groups``, ``columns`` and ``parameters``; the parts are given back on the way."""
        self._known.clear()
        return {
            "groups": np.array(self.groups, np.int32).reshape(-1, 5),
            "columns": _end_to_end(self.columns, self.num_columns, np.uint16),
            "parameters": _end_to_end(self.parameters, self.num_parameters, np.float32),
        }

    def _add_groups(self, weight: np.ndarray, bias: np.ndarray, target: int, rows: int) -> Segment:
        first, at_bias = len(self.groups), self.add_parameters(bias)
        kept, at = [], self.num_parameters
        for row in range(0, len(weight), rows):
            block = weight[row : row + rows]
            used = np.flatnonzero((block != 0).any(axis=0))
            self.groups.append((target + row, self.add_columns(used), len(used), at, at_bias + row))
            kept.append(block[:, used].T.ravel())
            at += len(kept[-1])
        self.add_parameters(np.concatenate(kept))
        return Segment(rows, first, len(self.groups))


def _end_to_end(parts: List[np.ndarray], size: int, dtype) -> np.ndarray:
    """Join ``parts`` and empty the list: their memory is never there twice."""
    joined, end = np.empty(size, dtype), size
    while parts:
        part = parts.pop()
        joined[end - len(part) : end] = part
        end -= len(part)
    assert end == 0, end
    return joined


def cheapest_rows(weight: np.ndarray) -> int:
    """Rows a group for which a product with ``weight`` costs least."""
    return min(TILES, key=lambda rows: _cost(weight, rows))


def _cost(weight: np.ndarray, rows: int) -> float:
    groups = len(weight) // rows
    used = (weight[: groups * rows] != 0).reshape(groups, rows, weight.shape[1]).any(axis=1).sum()
    rest = weight[groups * rows :]
    return COST[rows] * (used * rows + GROUP_COST[rows] * groups) + (_cost(rest, 1) if len(rest) else 0.0)

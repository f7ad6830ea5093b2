"""The lattice in PyTorch alone: any device, nothing to compile, no k2.

``recursion`` is ``k2.mutual_information_recursion`` of 1.23.4 with two differences: T < S and S = 0
are allowed, and where no path exists the score is -inf (loss inf) and its gradient zero,
never NaN.
"""

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.pruned_recursion import ScoresWithGradient, pruned_recursion_with
from rnnt_kd.lattice.scan import scan_lattice


def supports(device: torch.device) -> bool:
    """Every device PyTorch knows."""
    return True


def recursion(
    px: Tensor,
    py: Tensor,
    boundary: Optional[Tensor] = None,
    return_grad: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """Log-probability of all paths from node (0, 0) to (S_b, T_b).

    Args:
      px:        (B, S, T + 1) or (B, S, T), see ``arc_log_probs.py``.
      py:        (B, S + 1, T).
      boundary:  (B, 4) int64, rows [0, 0, S_b, T_b]; None means [0, 0, S, T].

    Returns:
      scores (B,), differentiable; with ``return_grad`` (scores, (px_grad, py_grad)), the
      gradient of ``scores.sum()``: the probability that a path uses each arc.

    Raises:
      UserError: a row of ``boundary`` that does not begin at 0 or does not fit the lattice.
    """
    if boundary is not None:
        check_boundary(boundary, px.shape[1], py.shape[2])
    scores, px_grad, py_grad = ScoresWithGradient.apply(px, py, lambda px, py: scan_lattice(px, py, boundary))
    return (scores, (px_grad, py_grad)) if return_grad else scores


def check_boundary(boundary: Tensor, S: int, T: int) -> None:
    """Raises UserError for a row other than [0, 0, S_b, T_b] with S_b <= S, T_b <= T."""
    assert boundary.dtype == torch.int64 and boundary.ndim == 2 and boundary.shape[1] == 4, boundary
    for row in boundary.tolist():
        if row[0] != 0 or row[1] != 0 or not (0 <= row[2] <= S and 0 <= row[3] <= T):
            raise UserError("boundary", f"row {row}", f"[0, 0, S_b, T_b] with S_b <= {S}, T_b <= {T}")


pruned_recursion = pruned_recursion_with(recursion)

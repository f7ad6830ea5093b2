"""Which nodes of the lattice to keep.  Same for all backends; equal to k2's, number for number.

Shapes: B = batch, T = frames, S = symbols.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnt_kd.errors import UserError


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """The ``s_range`` consecutive symbol positions to keep in every frame.

    In each frame: where the kept nodes carry most of the paths' probability; then
    moved so that starts never go back, begin at 0, never jump over a whole range (or
    over more than one symbol where every arc uses up a frame), and end on S_b at T_b.
    Section 3.2 of arXiv 2206.13236.

    Args:
      px_grad, py_grad:  (B, S, T + 1) or (B, S, T), and (B, S + 1, T): arc occupancies,
                         from ``rnnt_loss_smoothed(..., return_grad=True)``.
      boundary:          (B, 4) int64, rows [0, 0, S_b, T_b]; required.
      s_range:           requested range; clipped to S + 1.

    Returns:
      (B, T, s_range) int64.  Read the true s_range from its shape.

    Raises:
      UserError: s_range below 2 (regular) or 1: no path would be left.
    """
    B, S, T1 = px_grad.shape
    T = py_grad.shape[2]
    is_regular = T1 == T + 1
    assert T1 in (T, T + 1) and py_grad.shape == (B, S + 1, T), (px_grad.shape, py_grad.shape)
    assert boundary.shape == (B, 4), boundary.shape
    smallest = 2 if is_regular else 1
    if s_range < smallest:
        raise UserError("prune range", f"{s_range} keeps no path", f"at least {smallest}")
    s_range = min(s_range, S + 1)

    # Probability inside the window that starts at s, less what enters it from below.  Summed in
    # the given precision, as k2 does: an argmax follows, and ties must fall alike.
    inside = py_grad.unfold(1, s_range, 1).sum(dim=-1)  # (B, S + 2 - s_range, T)
    entering = pad(px_grad[:, :, :T], (0, 0, 1, 0))[:, : inside.shape[1]]
    starts = (inside - entering).argmax(dim=1)  # (B, T)

    frame = torch.arange(T, device=starts.device)
    last_start = (boundary[:, 2:3] - s_range + 1).clamp(min=0)  # (B, 1)
    starts = torch.where(frame < boundary[:, 3:4] - 1, starts, last_start)

    largest_step = s_range - 1 if is_regular else 1
    starts = _never_fall(starts)
    headroom = _never_fall(largest_step * frame - starts).clamp(min=0)
    starts = largest_step * frame - headroom
    return starts.unsqueeze(2) + torch.arange(s_range, device=starts.device)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> Tuple[Tensor, Tensor]:
    """Encoder (B, T, D) and predictor (B, S + 1, E) outputs on the kept nodes.

    Returns:
      (B, T, s_range, D), a view, and (B, T, s_range, E).
    """
    B, T, s_range = ranges.shape
    assert am.shape[:2] == (B, T) and lm.shape[0] == B, (am.shape, lm.shape, ranges.shape)
    utterance = torch.arange(B, device=ranges.device).reshape(B, 1, 1)
    return am.unsqueeze(2).expand(B, T, s_range, am.shape[2]), lm[utterance, ranges]


def _never_fall(x: Tensor) -> Tensor:
    """(B, T): the smallest of x[t], x[t + 1], ..."""
    return x.flip(1).cummin(dim=1).values.flip(1)

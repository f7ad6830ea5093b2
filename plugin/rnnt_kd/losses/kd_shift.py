"""Moves a teacher's lattice later, for students that emit later.

A streaming student hears a few frames ahead at most, so it emits later than a teacher that hears
everything.  Compared frame by frame, it would be told "blank" where it has to emit and the reverse;
with a shift, its frame t is compared with the teacher's frame max(t - shift, 0)
(Kurata & Saon, Interspeech 2020).

B = batch, T = encoder frames, s_range = kept symbol positions a frame.
"""

from typing import NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor


class ShiftedNodes(NamedTuple):
    """starts (B, T) int64; is_known (B, T, s_range) bool; values, each as given, on the nodes that ``starts`` keep.

    What a value holds where ``is_known`` is False says nothing.
    """

    starts: Tensor
    is_known: Tensor
    values: Tuple[Optional[Tensor], ...]


def later(x: Tensor, shift: int) -> Tensor:
    """(B, T, ...) of the same shape: frame t is frame max(t - shift, 0) of ``x``."""
    assert shift >= 0, shift
    frame = torch.arange(x.shape[1], device=x.device)
    return x.index_select(1, (frame - shift).clamp(min=0))


def shift_nodes(starts: Tensor, values: Sequence[Optional[Tensor]], num_frames: Tensor, shift: int) -> ShiftedNodes:
    """Move the kept nodes, and what is known of them, ``shift`` frames later.

    Args:
      starts:     (B, T) int64, first kept position of each frame, as ``get_rnnt_prune_ranges`` makes them;
                  those of padded frames are at most the last valid one.
      values:     (B, T, s_range, ...) each, on these nodes, or None.
      num_frames: (B,) int64, T_b >= 1.
      shift:      frames, >= 0.

    The moved nodes alone would often end below the end of the text, and then no path would be left.
    So, towards the end, the starts rise by one position a frame (a path that emits once a frame can
    follow) up to the last, but never above those of the teacher unmoved.  In between lie two
    sequences that never fall, begin at 0 and keep to k2's largest step, so the result does, too.
    Nodes added by this correction have no teacher score.
    """
    last = (num_frames - 1).unsqueeze(1)  # (B, 1)
    frame = torch.arange(starts.shape[1], device=starts.device)
    rising = starts.gather(1, last) - (last - frame).clamp(min=0)
    moved = later(starts, shift)
    bent = torch.maximum(moved, torch.minimum(starts, rising))
    s_range = next(value for value in values if value is not None).shape[2]
    place = (bent - moved).unsqueeze(2) + torch.arange(s_range, device=starts.device)  # among the moved frame's nodes
    is_known = place < s_range
    return ShiftedNodes(bent, is_known, tuple(None if x is None else _picked(later(x, shift), place) for x in values))


def _picked(x: Tensor, place: Tensor) -> Tensor:
    """x[b, t, place[b, t, k], ...]; the last position where there is no such place."""
    index = place.clamp(max=x.shape[2] - 1)
    index = index.reshape(*index.shape, *(1,) * (x.ndim - 3)).expand(*index.shape, *x.shape[3:])
    return x.gather(2, index)

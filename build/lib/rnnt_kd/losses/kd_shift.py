"""Moves a teacher's lattice later, for students that emit later, and fits it to their number of frames.

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
    source = (frame - shift).clamp(min=0).expand_as(starts)
    return _read_from(source, bent - moved, bent, values)


def align_nodes(
    starts: Tensor, values: Sequence[Optional[Tensor]], frames: Tensor, num_frames: Tensor, T: int, step: int
) -> ShiftedNodes:
    """Fit the kept nodes of a teacher, and what is known of them, to a student's frames: frame t to frame t.

    Args:
      starts, values:  as in ``shift_nodes``, for the teacher's frames.
      frames:          (B,) int64, the teacher's, >= 1.
      num_frames, T:   (B,) int64, the student's, and to how many the result is padded.
      step:            by how much ``starts`` may rise from frame to frame.

    A frame that the teacher lacks keeps the nodes of its last one, and nothing is known of them.  Where its last frames
    are cropped, the starts of those before rise as late as they can and still reach its last one: nodes added by this
    have no teacher score, either.
    """
    last = (num_frames - 1).unsqueeze(1)  # (B, 1)
    frame = torch.arange(T, device=starts.device)
    source = torch.minimum(frame, (frames - 1).unsqueeze(1))
    there = starts.gather(1, source)
    final = starts.gather(1, (frames - 1).unsqueeze(1))
    risen = torch.maximum(there, final - step * (last - frame).clamp(min=0))
    found = _read_from(source, risen - there, risen, values)
    return found._replace(is_known=found.is_known & (frame < frames.unsqueeze(1)).unsqueeze(2))


def _read_from(source: Tensor, above: Tensor, starts: Tensor, values: Sequence[Optional[Tensor]]) -> ShiftedNodes:
    """Values of the frames ``source`` (B, T) on nodes that begin ``above`` (B, T) positions higher than theirs."""
    s_range = next(value for value in values if value is not None).shape[2]
    place = above.unsqueeze(2) + torch.arange(s_range, device=starts.device)  # among that frame's nodes
    row = torch.arange(len(source), device=source.device).unsqueeze(1)
    return ShiftedNodes(
        starts, place < s_range, tuple(None if x is None else _picked(x[row, source], place) for x in values)
    )


def _picked(x: Tensor, place: Tensor) -> Tensor:
    """x[b, t, place[b, t, k], ...]; the last position where there is no such place."""
    index = place.clamp(max=x.shape[2] - 1)
    index = index.reshape(*index.shape, *(1,) * (x.ndim - 3)).expand(*index.shape, *x.shape[3:])
    return x.gather(2, index)

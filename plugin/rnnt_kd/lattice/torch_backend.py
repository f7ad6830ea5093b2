"""The lattice in PyTorch alone: any device, nothing to compile, no k2.

Same functions, arguments and results as k2 1.23.4 (``k2/rnnt_loss.py`` is the
specification; the mathematics is in arXiv 2206.13236), with these differences:

- T < S and S = 0 are allowed; where no path exists the score is -inf (loss inf)
  and its gradient zero, never NaN;
- ``boundary`` must start at symbol 0 and frame 0;
- ``termination_symbol`` may be any class, as in k2.

Shapes: B = batch, T = frames, S = symbols, C = classes including blank.
``px`` is (B, S, T + 1) for rnnt_type "regular", (B, S, T) for "modified" and
"constrained"; ``py`` is (B, S + 1, T).  ``boundary`` is (B, 4) int64, rows
[0, 0, S_b, T_b].
"""

from typing import Optional, Tuple, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.scan import NEG_INF, scan_lattice

RNNT_TYPES = ("regular", "modified", "constrained")


def supports(device: torch.device) -> bool:
    """Every device PyTorch knows."""
    return True


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """RNN-T loss of the joiner am + lm, interpolated with am alone and lm alone.

    Args:
      lm:       (B, S + 1, C), logits of the predictor side.
      am:       (B, T, C), logits of the encoder side.
      symbols:  (B, S) int64, values in [0, C).
      lm_only_scale, am_only_scale:  shares of the log-probabilities that see only one side.
      delay_penalty:  added to the symbol arcs, (middle frame - t) times this.
      reduction:  "none" (B,), "mean" or "sum" over the batch.

    Returns:
      the loss, or with ``return_grad`` (loss, (px_grad, py_grad)): the probability that
      a path uses each arc, for ``get_rnnt_prune_ranges``.
    """
    px, py = get_rnnt_logprobs_smoothed(
        lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type
    )
    px = _penalise_delay(px, py.shape[2], boundary, delay_penalty)
    if return_grad:
        scores, occupancies = mutual_information_recursion(px, py, boundary, return_grad=True)
        return _reduce(-scores, reduction), occupancies
    return _reduce(-mutual_information_recursion(px, py, boundary), reduction)


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """The ``s_range`` consecutive symbol positions to keep in every frame.

    In each frame: where the kept nodes carry most of the paths' probability; then
    moved so that starts never go back, begin at 0, never jump over a whole range (or
    over more than one symbol where an arc of each kind uses up a frame), and end on
    S_b at T_b.  Section 3.2 of arXiv 2206.13236.

    Args:
      px_grad, py_grad:  arc occupancies, from ``rnnt_loss_smoothed(..., return_grad=True)``.
      boundary:          (B, 4) int64, required.
      s_range:           wish; more than S + 1 becomes S + 1.

    Returns:
      (B, T, s_range) int64.  Read the true s_range from its shape.
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
    num_starts = S + 2 - s_range

    # Probability inside the window that starts at s, minus what only enters it from below.
    # (as in k2, summed in the input's own precision: an argmax follows, ties must fall alike)
    inside = py_grad.unfold(1, s_range, 1).sum(dim=-1)  # (B, num_starts, T)
    entering = torch.nn.functional.pad(px_grad[:, :, :T], (0, 0, 1, 0))[:, :num_starts]
    starts = (inside - entering).argmax(dim=1)  # (B, T)

    frame = torch.arange(T, device=starts.device)
    last_start = (boundary[:, 2:3] - s_range + 1).clamp(min=0)  # (B, 1)
    starts = torch.where(frame < boundary[:, 3:4] - 1, starts, last_start)

    largest_step = s_range - 1 if is_regular else 1
    starts = _lower_bound_from_the_right(starts)
    room = largest_step * frame - starts  # grows by at least 0 a frame where the step is allowed
    starts = largest_step * frame - _lower_bound_from_the_right(room).clamp(min=0)
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


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """RNN-T loss over the kept nodes.

    Args:
      logits:   (B, T, s_range, C), un-normalised.
      symbols:  (B, S) int64.
      ranges:   (B, T, s_range) int64, see ``get_rnnt_prune_ranges``.
      reduction:  "none" (B,), "mean" or "sum" over the batch.
    """
    px, py = get_rnnt_logprobs_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type)
    px = _penalise_delay(px, py.shape[2], boundary, delay_penalty)
    return _reduce(-mutual_information_recursion(px, py, boundary), reduction)


def get_rnnt_logprobs_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor],
    rnnt_type: str = "regular",
) -> Tuple[Tensor, Tensor]:
    """``px, py`` of the whole lattice, -inf outside ``ranges``.  Arguments as above."""
    B, T, s_range, C = logits.shape
    S = symbols.shape[1]
    assert ranges.shape == (B, T, s_range) and symbols.shape == (B, S), (logits.shape, ranges.shape, symbols.shape)
    _check_type(rnnt_type)

    log_total = logits.logsumexp(dim=3)  # (B, T, s_range)
    padded = torch.nn.functional.pad(symbols, (0, 1), value=termination_symbol)
    labels = padded.unsqueeze(1).expand(B, T, S + 1).gather(2, ranges)
    log_label = logits.gather(3, labels.unsqueeze(3)).squeeze(3) - log_total
    log_blank = logits[..., termination_symbol] - log_total

    empty = torch.full((B, T, S + 1), NEG_INF, dtype=logits.dtype, device=logits.device)
    px = empty.scatter(2, ranges, log_label)[:, :, :S].transpose(1, 2)  # (B, S, T)
    py = empty.scatter(2, ranges, log_blank).transpose(1, 2)  # (B, S + 1, T)
    return _finish_px(px, py, boundary, rnnt_type), py


def get_rnnt_logprobs_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
) -> Tuple[Tensor, Tensor]:
    """``px, py`` of ``rnnt_loss_smoothed``, without a (B, T, S + 1, C) tensor."""
    B, T, C = am.shape
    S = symbols.shape[1]
    assert lm.shape == (B, S + 1, C) and symbols.shape == (B, S), (lm.shape, am.shape, symbols.shape)
    _check_type(rnnt_type)
    tiny = torch.finfo(am.dtype).tiny

    # log sum_c exp(am + lm) as a matrix product of exponentials, each with its maximum taken out.
    am_max = am.max(dim=2, keepdim=True).values  # (B, T, 1)
    lm_max = lm.max(dim=2, keepdim=True).values  # (B, S + 1, 1)
    am_exp = (am - am_max).exp()
    lm_exp = (lm - lm_max).exp()
    am_max = am_max.transpose(1, 2)  # (B, 1, T)
    log_total = (lm_exp @ am_exp.transpose(1, 2) + tiny).log() + lm_max + am_max  # (B, S + 1, T)

    lm_sum = lm_exp.sum(dim=2, keepdim=True)  # (B, S + 1, 1)
    unigram = (lm_exp / lm_sum).mean(dim=(0, 1)) + tiny  # (C,), of the batch
    log_total_am = (am_exp @ unigram).log().unsqueeze(1) + am_max  # (B, 1, T)
    log_total_lm = lm_sum.log() + lm_max  # (B, S + 1, 1)
    log_unigram = unigram.log()

    combined_scale = 1.0 - lm_only_scale - am_only_scale

    def interpolate(from_am: Tensor, from_lm: Tensor, from_unigram: Tensor, rows: int) -> Tensor:
        return (
            combined_scale * (from_am + from_lm - log_total[:, :rows])
            + lm_only_scale * (from_lm - log_total_lm[:, :rows])
            + am_only_scale * (from_am + from_unigram - log_total_am)
        )

    symbol_am = am.gather(2, symbols.unsqueeze(1).expand(B, T, S)).transpose(1, 2)  # (B, S, T)
    symbol_lm = lm[:, :S].gather(2, symbols.unsqueeze(2))  # (B, S, 1)
    px = interpolate(symbol_am, symbol_lm, log_unigram[symbols].unsqueeze(2), S)
    blank_am = am[:, :, termination_symbol].unsqueeze(1)  # (B, 1, T)
    blank_lm = lm[:, :, termination_symbol].unsqueeze(2)  # (B, S + 1, 1)
    py = interpolate(blank_am, blank_lm, log_unigram[termination_symbol], S + 1)
    return _finish_px(px, py, boundary, rnnt_type), py


def mutual_information_recursion(
    px: Tensor,
    py: Tensor,
    boundary: Optional[Tensor] = None,
    return_grad: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """Log-probability of all paths from node (0, 0) to (S_b, T_b).

    Args:
      px:  (B, S, T + 1) or (B, S, T), py: (B, S + 1, T); see the head of this file.

    Returns:
      scores (B,), differentiable; with ``return_grad`` (scores, (px_grad, py_grad)), the
      gradient of ``scores.sum()``: the probability that a path uses each arc.
    """
    if boundary is not None:
        _check_boundary(boundary, px.shape[1], py.shape[2])
    scores, px_grad, py_grad = _Recursion.apply(px, py, boundary, return_grad)
    return (scores, (px_grad, py_grad)) if return_grad else scores


class _Recursion(torch.autograd.Function):
    """The gradient is known as soon as the value is: it is kept, and scaled in backward."""

    @staticmethod
    def forward(ctx, px, py, boundary, return_grad):
        needs_grad = return_grad or px.requires_grad or py.requires_grad
        scores, px_grad, py_grad = scan_lattice(px, py, boundary, return_grad=needs_grad)
        if needs_grad:
            ctx.save_for_backward(px_grad, py_grad)
            ctx.mark_non_differentiable(px_grad, py_grad)
        return scores, px_grad, py_grad

    @staticmethod
    @once_differentiable
    def backward(ctx, scores_grad, *_):
        px_grad, py_grad = ctx.saved_tensors
        scale = scores_grad.reshape(-1, 1, 1)
        return px_grad * scale, py_grad * scale, None, None


def _finish_px(px: Tensor, py: Tensor, boundary: Optional[Tensor], rnnt_type: str) -> Tensor:
    """(B, S, T) -> what the recursion of ``rnnt_type`` reads."""
    if rnnt_type == "modified":
        return px
    if rnnt_type == "constrained":  # a symbol is followed by the blank of the new context, in the same frame
        return px + py[:, 1:]
    B, S, T = px.shape
    px = torch.nn.functional.pad(px, (0, 1), value=NEG_INF)
    if boundary is None:
        return px
    # One past the last frame nothing can be emitted.
    return px.scatter(2, boundary[:, 3].reshape(B, 1, 1).expand(B, S, 1), NEG_INF)


def _penalise_delay(px: Tensor, T: int, boundary: Optional[Tensor], delay_penalty: float) -> Tensor:
    if delay_penalty <= 0.0:
        return px
    frame = torch.arange(px.shape[2], device=px.device)
    last = T - 1 if boundary is None else boundary[:, 3].reshape(-1, 1, 1) - 1
    return px + (last - 2 * frame).to(px.dtype) * (delay_penalty / 2)


def _lower_bound_from_the_right(x: Tensor) -> Tensor:
    """(B, T): the smallest of x[t], x[t + 1], ...; never decreases with t."""
    return x.flip(1).cummin(dim=1).values.flip(1)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    raise UserError("reduction", repr(reduction), "none, mean or sum")


def _check_type(rnnt_type: str) -> None:
    if rnnt_type not in RNNT_TYPES:
        raise UserError("rnnt_type", repr(rnnt_type), "one of: " + ", ".join(RNNT_TYPES))


def _check_boundary(boundary: Tensor, S: int, T: int) -> None:
    assert boundary.dtype == torch.int64 and boundary.ndim == 2 and boundary.shape[1] == 4, boundary
    for row in boundary.tolist():
        if row[0] != 0 or row[1] != 0 or not (0 <= row[2] <= S and 0 <= row[3] <= T):
            raise UserError("boundary", f"row {row}", f"[0, 0, S_b, T_b] with S_b <= {S}, T_b <= {T}")

"""Joiner outputs -> px, py: the log-probabilities of the arcs, as k2 lays them out.

Shapes: B = batch, T = frames, S = symbols, C = classes including blank.
``px`` is (B, S, T + 1) for rnnt_type "regular", (B, S, T) for "modified" and
"constrained"; ``py`` is (B, S + 1, T).  ``boundary`` is (B, 4) int64, rows
[0, 0, S_b, T_b].  Equations: ``k2/rnnt_loss.py`` of k2 1.23.4, and arXiv 2206.13236.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rnnt_kd.errors import UserError

RNNT_TYPES = ("regular", "modified", "constrained")
NEG_INF = float("-inf")


def arcs_of_nodes(
    log_blank: Tensor, log_label: Tensor, ranges: Tensor, S: int, boundary: Optional[Tensor], rnnt_type: str
) -> Tuple[Tensor, Tensor]:
    """``px, py`` of the whole lattice from the posteriors on the kept nodes, each (B, T, s_range)."""
    B, T, _ = ranges.shape
    nothing = torch.full((B, T, S + 1), NEG_INF, dtype=log_blank.dtype, device=log_blank.device)
    px = nothing.scatter(2, ranges, log_label)[:, :, :S].transpose(1, 2)  # (B, S, T)
    py = nothing.scatter(2, ranges, log_blank).transpose(1, 2)  # (B, S + 1, T)
    return _as_read_by_the_recursion(px, py, boundary, rnnt_type), py


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
    """``px, py`` of the joiner am + lm, interpolated with am alone and lm alone.

    Never makes a (B, T, S + 1, C) tensor.  "am alone" has the mean of the batch's lm
    probabilities for a unigram.

    Args:
      lm:       (B, S + 1, C), logits of the predictor side.
      am:       (B, T, C), logits of the encoder side.
      symbols:  (B, S) int64, values in [0, C).
      lm_only_scale, am_only_scale:  shares of the log-probabilities that see only one side.
    """
    B, T, C = am.shape
    S = symbols.shape[1]
    assert lm.shape == (B, S + 1, C) and symbols.shape == (B, S), (lm.shape, am.shape, symbols.shape)
    tiny = torch.finfo(am.dtype).tiny

    # log sum_c exp(am + lm) as a matrix product of exponentials, each with its maximum taken out.
    am_max = am.max(dim=2, keepdim=True).values  # (B, T, 1)
    lm_max = lm.max(dim=2, keepdim=True).values  # (B, S + 1, 1)
    am_exp = (am - am_max).exp()
    lm_exp = (lm - lm_max).exp()
    am_max = am_max.transpose(1, 2)  # (B, 1, T)
    log_total = (lm_exp @ am_exp.transpose(1, 2) + tiny).log() + lm_max + am_max  # (B, S + 1, T)

    lm_sum = lm_exp.sum(dim=2, keepdim=True)  # (B, S + 1, 1)
    unigram = (lm_exp / lm_sum).mean(dim=(0, 1)) + tiny  # (C,)
    log_unigram = unigram.log()
    log_total_am = (am_exp @ unigram).log().unsqueeze(1) + am_max  # (B, 1, T)
    log_total_lm = lm_sum.log() + lm_max  # (B, S + 1, 1)

    combined_scale = 1.0 - lm_only_scale - am_only_scale

    def interpolate(am_score: Tensor, lm_score: Tensor, unigram_score: Tensor, rows: int) -> Tensor:
        combined = am_score + lm_score - log_total[:, :rows]
        lm_only = lm_score - log_total_lm[:, :rows]
        am_only = am_score + unigram_score - log_total_am
        return combined_scale * combined + lm_only_scale * lm_only + am_only_scale * am_only

    label_am = am.gather(2, symbols.unsqueeze(1).expand(B, T, S)).transpose(1, 2)  # (B, S, T)
    label_lm = lm[:, :S].gather(2, symbols.unsqueeze(2))  # (B, S, 1)
    px = interpolate(label_am, label_lm, log_unigram[symbols].unsqueeze(2), S)
    blank_am = am[:, :, termination_symbol].unsqueeze(1)  # (B, 1, T)
    blank_lm = lm[:, :, termination_symbol].unsqueeze(2)  # (B, S + 1, 1)
    py = interpolate(blank_am, blank_lm, log_unigram[termination_symbol], S + 1)
    return _as_read_by_the_recursion(px, py, boundary, rnnt_type), py


def penalise_delay(px: Tensor, T: int, boundary: Optional[Tensor], delay_penalty: float) -> Tensor:
    """Add (middle frame - t) * ``delay_penalty`` to the symbol arcs; negative values do nothing, as in k2."""
    if delay_penalty <= 0.0:
        return px
    frame = torch.arange(px.shape[2], device=px.device)
    last = T - 1 if boundary is None else boundary[:, 3].reshape(-1, 1, 1) - 1
    return px + (last - 2 * frame).to(px.dtype) * (delay_penalty / 2)


def _as_read_by_the_recursion(px: Tensor, py: Tensor, boundary: Optional[Tensor], rnnt_type: str) -> Tensor:
    """px (B, S, T), the label's log-probability on each node -> the symbol arc's."""
    if rnnt_type == "modified":
        return px
    if rnnt_type == "constrained":  # the blank of the next position follows, in the same frame
        return px + py[:, 1:]
    if rnnt_type != "regular":
        raise UserError("rnnt_type", repr(rnnt_type), "one of: " + ", ".join(RNNT_TYPES))
    px = pad(px, (0, 1), value=NEG_INF)
    if boundary is None:
        return px
    B, S, _ = px.shape  # one past the last frame nothing can be emitted
    return px.scatter(2, boundary[:, 3].reshape(B, 1, 1).expand(B, S, 1), NEG_INF)

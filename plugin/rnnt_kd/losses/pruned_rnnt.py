"""RNN-T loss on a pruned lattice, with a teacher on the same nodes.

    L = L_rnnt + kd_scale * L_kd
    L_kd = sum over kept nodes of weight[t, s] * D(teacher || student at [t, s])

Letters: B = batch, T = frames after subsampling, S = symbols, C = classes including
blank, s_range = symbol positions kept in a frame.  All log-probabilities are natural.

The work is in float32 (float64 for float64 logits), whatever autocast says.
"""

import contextlib
from types import ModuleType
from typing import Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses.choices import get_variant, get_weighting
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    *,
    teacher_logits: Optional[Tensor] = None,
    kd_scale: float = 1.0,
    kd_variant: str = "collapsed",
    kd_weighting: str = "uniform",
    kd_temperature: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """``k2.rnnt_loss_pruned``, plus a distillation term where there is a teacher.

    Args:
      logits:              (B, T, s_range, C), un-normalised output of the student's joiner.
      symbols:             (B, S) int64, values in [0, C); padding may hold anything.
      ranges:              (B, T, s_range) int64, from ``get_rnnt_prune_ranges`` of the student.
      termination_symbol:  blank.
      boundary:            (B, 4) int64, rows [0, 0, S_b, T_b]; None: no padding.
      rnnt_type:           "regular", "modified" or "constrained".
      delay_penalty:       as in k2; the distillation term does not know it.
      reduction:           "none" (B,), "mean" or "sum" over the batch, for both terms.
      teacher_logits:      (B, T, s_range, C), of the teacher on the same ``ranges``; gets no
                           gradient.  None: k2's value and gradient.
      kd_scale:            factor of the distillation term.
      kd_variant:          a function of ``losses/kd_variants.py``.
      kd_weighting:        a function of ``losses/kd_weightings.py``.
      kd_temperature:      > 0; divides the logits of both in the comparison (not in the weights).
      backend:             "auto", "k2" or "torch".

    Raises:
      UserError: unknown name, shapes that do not fit, or an utterance without any path.
    """
    logits, nodes, module = _prepare(
        logits, symbols, ranges, termination_symbol, boundary, rnnt_type, reduction, backend
    )
    with _no_autocast(logits):
        loss = module.rnnt_loss_pruned(
            logits, nodes.symbols, ranges, termination_symbol, nodes.boundary, rnnt_type, delay_penalty, reduction
        )
        if teacher_logits is None or kd_scale == 0.0:
            return loss
        kd_losses = _kd_losses(
            logits, teacher_logits, nodes, module, kd_variant, kd_weighting, kd_temperature, None
        )
        return loss + kd_scale * _reduce(kd_losses, reduction)


def rnnt_kd_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    reduction: str = "mean",
    *,
    kd_variant: str,
    kd_weighting: str,
    kd_temperature: float = 1.0,
    kd_class_scales: Optional[Tuple[float, float, float]] = None,
    backend: str = "auto",
) -> Tensor:
    """The distillation term of ``rnnt_loss_pruned`` alone, unscaled.

    Zero, with zero gradient, where teacher and student agree.  Arguments as above, and

      kd_class_scales:  factors of the classes blank, label and rest, each >= 0.
    """
    logits, nodes, module = _prepare(
        logits, symbols, ranges, termination_symbol, boundary, rnnt_type, reduction, backend
    )
    with _no_autocast(logits):
        kd_losses = _kd_losses(
            logits, teacher_logits, nodes, module, kd_variant, kd_weighting, kd_temperature, kd_class_scales
        )
        return _reduce(kd_losses, reduction)


def _prepare(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor],
    rnnt_type: str,
    reduction: str,
    backend: str,
) -> Tuple[Tensor, KeptNodes, ModuleType]:
    """What both public functions need; all checks that cost next to nothing."""
    if reduction not in ("none", "mean", "sum"):
        raise UserError("reduction", repr(reduction), "none, mean or sum")
    if rnnt_type not in ("regular", "modified", "constrained"):
        raise UserError("rnnt_type", repr(rnnt_type), "regular, modified or constrained")
    if logits.ndim != 4 or logits.shape[:3] != ranges.shape or symbols.shape[0] != logits.shape[0]:
        raise UserError(
            "transducer loss",
            f"logits {tuple(logits.shape)}, ranges {tuple(ranges.shape)}, symbols {tuple(symbols.shape)}",
            "(B, T, s_range, C), (B, T, s_range) and (B, S)",
        )
    if not 0 <= termination_symbol < logits.shape[3]:
        raise UserError("termination symbol", str(termination_symbol), f"a class, 0 to {logits.shape[3] - 1}")
    module = get_backend(backend, logits.device)
    nodes = kept_nodes(symbols, ranges, termination_symbol, boundary, rnnt_type)
    is_wrong = (nodes.labels < 0) | (nodes.labels >= logits.shape[3])
    if bool(is_wrong.any()):
        wrong = int(nodes.labels[is_wrong][0])
        raise UserError("symbols", f"symbol {wrong}", f"classes of the joiner, 0 to {logits.shape[3] - 1}")
    return _at_least_float32(logits), nodes, module


def _kd_losses(
    logits: Tensor,
    teacher_logits: Tensor,
    nodes: KeptNodes,
    module: ModuleType,
    kd_variant: str,
    kd_weighting: str,
    kd_temperature: float,
    kd_class_scales: Optional[Tuple[float, float, float]],
) -> Tensor:
    """(B,), the distillation term of each utterance."""
    compare, weigh = get_variant(kd_variant), get_weighting(kd_weighting)
    if not kd_temperature > 0.0:
        raise UserError("kd temperature", str(kd_temperature), "a number above 0")
    if kd_class_scales is not None and (len(kd_class_scales) != 3 or min(kd_class_scales) < 0.0):
        raise UserError("kd class scales", str(kd_class_scales), "three numbers >= 0, for blank, label and rest")
    if teacher_logits.shape != logits.shape:
        raise UserError(
            "teacher logits",
            f"shape {tuple(teacher_logits.shape)}",
            f"the student's (B, T, s_range, C) = {tuple(logits.shape)}",
            "teacher and student must share vocabulary, frame rate and ranges",
        )
    teacher_logits = _at_least_float32(teacher_logits.detach()).to(logits.dtype)

    with torch.no_grad():
        weights = _normalise(weigh(nodes, logits.detach(), teacher_logits, module), nodes)
    if kd_temperature != 1.0:
        logits, teacher_logits = logits / kd_temperature, teacher_logits / kd_temperature
    divergence = compare(logits, teacher_logits, nodes.labels, nodes.termination_symbol, kd_class_scales)
    return (weights * divergence).sum(dim=(1, 2))


def _normalise(weights: Tensor, nodes: KeptNodes) -> Tensor:
    """Zero on padding; the sum over an utterance is T_b + S_b, the number of arcs on a path.

    So the term has the unit of the RNN-T loss, and ``kd_scale`` carries over between
    weightings, prune ranges and the full lattice.
    """
    weights = torch.where(nodes.node_mask, weights, torch.zeros_like(weights))
    total = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)
    return weights * (nodes.num_arcs / total).to(weights.dtype).reshape(-1, 1, 1)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _no_autocast(x: Tensor):
    if x.device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)

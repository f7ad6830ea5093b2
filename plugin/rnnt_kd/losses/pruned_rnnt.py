"""RNN-T loss on a pruned lattice, with a teacher on the same nodes.

    L = L_rnnt + kd_scale * L_kd
    L_kd = sum over kept nodes of weight[t, s] * D(teacher || student at [t, s])

Letters: B = batch, T = frames after subsampling, S = symbols, C = classes including
blank, s_range = symbol positions kept in a frame.  All log-probabilities are natural.

The work is in float32 (float64 for float64 logits), whatever autocast says.
"""

from types import ModuleType
from typing import Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.node_log_probs import node_log_probs
from rnnt_kd.losses.choices import get_variant, needs_logits
from rnnt_kd.losses.kept_nodes import KeptNodes, check_classes, kept_nodes
from rnnt_kd.losses.node_scores import NodeScores
from rnnt_kd.losses.precision import at_least_float32, no_autocast
from rnnt_kd.losses.terms import check_options, kd_losses, reduce, rnnt_losses


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
      backend:             "auto", or a lattice backend; see ``rnnt_kd.lattice``.

    Raises:
      UserError: unknown name, shapes that do not fit, or an utterance without any path.
    """
    check_options(reduction, rnnt_type, kd_temperature)
    logits, nodes, module = _prepare(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, backend)
    with no_autocast(logits):
        scores = scores_of_logits(logits, nodes)
        loss = reduce(rnnt_losses(scores, nodes, module, delay_penalty), reduction)
        if teacher_logits is None or kd_scale == 0.0:
            return loss
        kd = distillation(logits, scores, teacher_logits, nodes, module, kd_variant, kd_weighting, kd_temperature, None)
        return loss + kd_scale * reduce(kd, reduction)


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
    check_options(reduction, rnnt_type, kd_temperature, kd_class_scales)
    logits, nodes, module = _prepare(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, backend)
    with no_autocast(logits):
        scores = scores_of_logits(logits, nodes)
        kd = distillation(
            logits, scores, teacher_logits, nodes, module, kd_variant, kd_weighting, kd_temperature, kd_class_scales
        )
        return reduce(kd, reduction)


def scores_of_logits(logits: Tensor, nodes: KeptNodes) -> NodeScores:
    """What ``node_scores`` computes, from whole logits (B, T, s_range, C).  Padded nodes hold anything."""
    return NodeScores(*node_log_probs(logits, nodes.labels, nodes.termination_symbol))


def distillation(
    logits: Tensor,
    scores: NodeScores,
    teacher_logits: Tensor,
    nodes: KeptNodes,
    backend: ModuleType,
    kd_variant: str,
    kd_weighting: str,
    kd_temperature: float,
    kd_class_scales: Optional[Tuple[float, float, float]],
) -> Tensor:
    """(B,), the distillation term of each utterance; ``scores`` are those of ``logits``."""
    compare = get_variant(kd_variant)
    if teacher_logits.shape != logits.shape:
        raise UserError(
            "teacher logits",
            f"shape {tuple(teacher_logits.shape)}",
            f"the student's (B, T, s_range, C) = {tuple(logits.shape)}",
            "teacher and student must share vocabulary, frame rate and ranges",
        )
    teacher_logits = at_least_float32(teacher_logits.detach()).to(logits.dtype)
    with torch.no_grad():
        teacher_scores = scores_of_logits(teacher_logits, nodes)

    def divergence() -> Tensor:
        student, teacher = logits, teacher_logits
        if kd_temperature != 1.0:
            student, teacher = logits / kd_temperature, teacher_logits / kd_temperature
        if needs_logits(compare):
            return compare(student, teacher, nodes.labels, nodes.termination_symbol, kd_class_scales)
        if kd_temperature == 1.0:
            return compare(scores, teacher_scores, kd_class_scales)
        with torch.no_grad():
            tempered = scores_of_logits(teacher, nodes)
        return compare(scores_of_logits(student, nodes), tempered, kd_class_scales)

    return kd_losses(divergence, scores, teacher_scores, nodes, backend, kd_weighting)


def _prepare(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor],
    rnnt_type: str,
    backend: str,
) -> Tuple[Tensor, KeptNodes, ModuleType]:
    """What both public functions need; all checks that cost next to nothing."""
    if logits.ndim != 4 or logits.shape[:3] != ranges.shape or symbols.shape[0] != logits.shape[0]:
        raise UserError(
            "transducer loss",
            f"logits {tuple(logits.shape)}, ranges {tuple(ranges.shape)}, symbols {tuple(symbols.shape)}",
            "(B, T, s_range, C), (B, T, s_range) and (B, S)",
        )
    module = get_backend(backend, logits.device)
    nodes = kept_nodes(symbols, ranges, termination_symbol, boundary, rnnt_type)
    check_classes(nodes, logits.shape[3])
    return at_least_float32(logits), nodes, module

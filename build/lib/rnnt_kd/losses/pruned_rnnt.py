"""RNN-T loss on a pruned lattice from whole logits, with a teacher on the same nodes.

    L = L_rnnt + kd_scale * L_kd
    L_kd = sum over kept nodes of weight[t, s] * D(teacher || student at [t, s])

Letters: B = batch, T = frames after subsampling, S = symbols, C = classes including
blank, s_range = symbol positions kept in a frame.  All log-probabilities are natural.

The work is in float32 (float64 for float64 logits), whatever autocast says.
"""

from typing import Optional, Tuple

from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.losses.distillation import Distillation
from rnnt_kd.losses.node_scores import Logits
from rnnt_kd.losses.precision import at_least_float32
from rnnt_kd.losses.terms import TeacherView, TransducerTerms, transducer_terms


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
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
      use_hat_loss:        as in k2 from 1.24.4 on: p(blank) = sigmoid(its logit), a softmax over the other classes
                           shares out the rest (HAT, arXiv 2003.07705); for student and teacher.
      teacher_logits:      (B, T, s_range, C), of the teacher on the same ``ranges``; gets no
                           gradient.  None: k2's value and gradient.
      kd_scale:            factor of the distillation term.
      kd_variant, kd_weighting, kd_temperature:  see ``losses.distillation.Distillation``.
      backend:             "auto", or a lattice backend; see ``rnnt_kd.lattice``.

    Raises:
      UserError: unknown name, shapes that do not fit, or an utterance without any path.
    """
    kd = Distillation(kd_variant, kd_weighting, kd_temperature)
    lattice = (symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, reduction)
    teacher_logits = teacher_logits if kd_scale != 0.0 else None
    terms = _terms(logits, teacher_logits, *lattice, kd=kd, use_hat_loss=use_hat_loss, backend=backend)
    return terms.rnnt if teacher_logits is None else terms.rnnt + kd_scale * terms.kd


def rnnt_kd_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    reduction: str = "mean",
    use_hat_loss: bool = False,
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
    kd = Distillation(kd_variant, kd_weighting, kd_temperature, kd_class_scales)
    lattice = (symbols, ranges, termination_symbol, boundary, rnnt_type, 0.0, reduction)
    return _terms(logits, teacher_logits, *lattice, kd=kd, use_hat_loss=use_hat_loss, backend=backend).kd


def _terms(
    logits: Tensor, teacher_logits: Optional[Tensor], symbols: Tensor, ranges: Tensor, *lattice, **options
) -> TransducerTerms:
    """Both terms, after what can be told from the shapes of the logits."""
    if logits.ndim != 4 or logits.shape[:3] != ranges.shape or symbols.shape[0] != logits.shape[0]:
        raise UserError(
            "transducer loss",
            f"logits {tuple(logits.shape)}, ranges {tuple(ranges.shape)}, symbols {tuple(symbols.shape)}",
            "(B, T, s_range, C), (B, T, s_range) and (B, S)",
        )
    student, teacher = Logits(at_least_float32(logits)), None
    if teacher_logits is not None:
        if teacher_logits.shape != logits.shape:
            raise UserError(
                "teacher logits",
                f"shape {tuple(teacher_logits.shape)}",
                f"the student's (B, T, s_range, C) = {tuple(logits.shape)}",
                "teacher and student must share vocabulary, frame rate and ranges",
            )
        constants = at_least_float32(teacher_logits.detach()).to(student.values.dtype)
        teacher = TeacherView(Logits(constants))
    return transducer_terms(student, symbols, ranges, *lattice, teacher=teacher, **options)

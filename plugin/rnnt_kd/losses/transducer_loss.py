"""The pruned transducer loss with a teacher term, without anybody's logits.

    am, lm = joiner.encoder_proj(encoder_out), joiner.predictor_proj(predictor_out)
    loss = pruned_transducer_loss(am, lm, output.weight, output.bias, symbols, ranges, blank, boundary,
                                  teacher=JoinerParts(...) or NodeScores(...) or None)

The value and the gradient of ``rnnt_loss_pruned``, whose logits (B, T, s_range, C) are never built; beyond ``memory``
they are not kept either, and with ``memory=0`` what the loss needs grows with B * T * s_range and not with C.
B = batch, T = frames after subsampling, S = symbols, C = classes with blank, J = joiner dimension.

The work is in float32 (float64 for float64 inputs), whatever autocast says.
"""

from types import ModuleType
from typing import Callable, Optional, Tuple, Union

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.losses.distillation import Distillation
from rnnt_kd.losses.node_scores import JoinerParts, NodeScores, Posteriors
from rnnt_kd.losses.terms import TeacherView, TransducerTerms, transducer_terms

Teacher = Union[None, JoinerParts, NodeScores]


def pruned_transducer_loss(
    am: Tensor,
    lm: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    *,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    memory: Optional[int] = None,
    teacher: Teacher = None,
    kd_scale: float = 1.0,
    kd_variant: str = "collapsed",
    kd_weighting: str = "uniform",
    kd_temperature: float = 1.0,
    kd_class_scales: Optional[Tuple[float, float, float]] = None,
    tempered_teacher: Optional[NodeScores] = None,
    entropy_scale: float = 0.0,
    backend: Union[str, ModuleType] = "auto",
    impl: str = "auto",
) -> Tensor:
    """RNN-T loss over the kept nodes, plus ``kd_scale`` times the distillation term, plus ``entropy_scale`` times
    ``losses.terms.alignment_entropies``, which make the student decide on one alignment.

    Args:
      am:        (B, T, J), the student's encoder side, projected; or pruned, (B, T, s_range, J).
      lm:        (B, S + 1, J), its predictor side, projected; or pruned, (B, T, s_range, J).
      weight, bias:  (C, J) and (C,) or None, of the joiner's output layer: the logits of a node
                     are ``weight @ activation(am + lm) + bias``.
      symbols:   (B, S) int64, values in [0, C) and not blank; padding may hold anything.
      ranges:    (B, T, s_range) int64, from ``get_rnnt_prune_ranges`` or the teacher's cache.
      termination_symbol:  blank.
      boundary:  (B, 4) int64, rows [0, 0, S_b, T_b]; None: no padding.
      rnnt_type, delay_penalty, reduction, use_hat_loss:  as in ``rnnt_loss_pruned``.
      activation:  elementwise; anything but ``torch.tanh`` runs in PyTorch.
      memory:    bytes that may be kept for the backward pass: ``losses.node_scores.JoinerParts``.
      teacher:   ``JoinerParts`` of the teacher (its joiner runs here, on the same nodes), or
                 ``NodeScores`` (computed before, or from the cache); gets no gradient.
      kd_variant, kd_weighting, kd_temperature, kd_class_scales:  see ``losses.distillation.Distillation``.
      tempered_teacher:  with a ``NodeScores`` teacher and a temperature other than 1, its scores at
                 that temperature; ``teacher``, at 1, gives the weights.
      backend:   "auto", or a lattice backend; see ``rnnt_kd.lattice``.
      impl:      "auto", or an implementation of the node scores; see ``losses/node_scores``.

    Float dtypes may be mixed; gradients come back in the inputs' dtypes.

    Raises:
      UserError: shapes, devices or labels that do not fit, an unknown name, an utterance without
        any path, or a teacher that cannot serve this variant.
    """
    rnnt, kd = pruned_transducer_terms(
        am, lm, weight, bias, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, reduction,
        use_hat_loss, activation=activation, memory=memory, teacher=teacher if kd_scale != 0.0 else None,
        kd_variant=kd_variant, kd_weighting=kd_weighting, kd_temperature=kd_temperature,
        kd_class_scales=kd_class_scales, tempered_teacher=tempered_teacher, entropy_scale=entropy_scale,
        backend=backend, impl=impl,
    )  # fmt: skip
    return rnnt + kd_scale * kd


def pruned_transducer_terms(
    am: Tensor,
    lm: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    *lattice,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    memory: Optional[int] = None,
    teacher: Teacher = None,
    kd_variant: str = "collapsed",
    kd_weighting: str = "uniform",
    kd_temperature: float = 1.0,
    kd_class_scales: Optional[Tuple[float, float, float]] = None,
    tempered_teacher: Optional[NodeScores] = None,
    teacher_mask: Optional[Tensor] = None,
    **options,
) -> TransducerTerms:
    """Both terms of ``pruned_transducer_loss``, apart and unscaled.  Arguments as there, and

    teacher_mask:  (B, T, s_range) bool, False where the teacher knows nothing of a node.  There is no comparison
                   there, and for the teacher's paths p(blank) = p(label) = 1/2.  None: it knows all.
    """
    kd = Distillation(kd_variant, kd_weighting, kd_temperature, kd_class_scales)
    view = None
    if isinstance(teacher, JoinerParts):
        view = TeacherView(teacher, teacher_mask)
    elif isinstance(teacher, NodeScores):
        view = TeacherView(Posteriors(teacher, tempered_teacher), teacher_mask)
    elif teacher is not None:
        raise UserError("teacher", type(teacher).__name__, "JoinerParts, NodeScores or None")
    student = JoinerParts(am, lm, weight, bias, activation, memory)
    return transducer_terms(student, *lattice, teacher=view, kd=kd, **options)

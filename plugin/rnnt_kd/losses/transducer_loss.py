"""The pruned transducer loss with a teacher term, without anybody's logits.

    am, lm = joiner.encoder_proj(encoder_out), joiner.predictor_proj(predictor_out)
    loss = pruned_transducer_loss(am, lm, output.weight, output.bias, symbols, ranges, blank, boundary,
                                  teacher=JoinerParts(...) or NodeScores(...) or None)

The value and the gradient of ``rnnt_loss_pruned``, whose logits (B, T, s_range, C) are neither
built nor kept: memory grows with B * T * s_range and not with C.  B = batch, T = frames after
subsampling, S = symbols, C = classes with blank, J = joiner dimension.

The work is in float32 (float64 for float64 inputs), whatever autocast says.
"""

import math
from types import ModuleType
from typing import Callable, Optional, Tuple, Union

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.losses.choices import get_variant, get_weighting, needs_logits
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes
from rnnt_kd.losses.node_scores import JoinerParts, NodeScores, joiner_logits, node_scores
from rnnt_kd.losses.precision import at_least_float32
from rnnt_kd.losses.pruned_rnnt import distillation, scores_of_logits
from rnnt_kd.losses.terms import TransducerTerms, check_options, kd_losses, reduce, rnnt_losses

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
    *,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    teacher: Teacher = None,
    kd_scale: float = 1.0,
    kd_variant: str = "collapsed",
    kd_weighting: str = "uniform",
    kd_temperature: float = 1.0,
    kd_class_scales: Optional[Tuple[float, float, float]] = None,
    tempered_teacher: Optional[NodeScores] = None,
    backend: Union[str, ModuleType] = "auto",
    impl: str = "auto",
) -> Tensor:
    """RNN-T loss over the kept nodes, plus ``kd_scale`` times the distillation term.

    Args:
      am:        (B, T, J), the student's encoder side, projected; or pruned, (B, T, s_range, J).
      lm:        (B, S + 1, J), its predictor side, projected; or pruned, (B, T, s_range, J).
      weight, bias:  (C, J) and (C,) or None, of the joiner's output layer: the logits of a node
                     are ``weight @ activation(am + lm) + bias``.
      symbols:   (B, S) int64, values in [0, C) and not blank; padding may hold anything.
      ranges:    (B, T, s_range) int64, from ``get_rnnt_prune_ranges`` or the teacher's cache.
      termination_symbol:  blank.
      boundary:  (B, 4) int64, rows [0, 0, S_b, T_b]; None: no padding.
      rnnt_type, delay_penalty, reduction:  as in ``rnnt_loss_pruned``.
      activation:  elementwise; anything but ``torch.tanh`` runs in PyTorch.
      teacher:   ``JoinerParts`` of the teacher (its joiner runs here, on the same nodes), or
                 ``NodeScores`` (computed before, or from the cache); gets no gradient.
      kd_variant, kd_weighting, kd_temperature, kd_class_scales:  as in ``rnnt_kd_loss``.
      tempered_teacher:  with a ``NodeScores`` teacher and a temperature other than 1, its scores at
                 that temperature; ``teacher``, at 1, gives the weights.
      backend:   "auto", or a lattice backend; see ``rnnt_kd.lattice``.
      impl:      "auto", or an implementation of the node scores; see ``losses/node_scores``.

    Float dtypes may be mixed; gradients come back in the inputs' dtypes.

    Raises:
      UserError: shapes, devices or labels that do not fit, an unknown name, an utterance without
        any path, or a teacher that cannot serve this variant.
    """
    terms = pruned_transducer_terms(
        am,
        lm,
        weight,
        bias,
        symbols,
        ranges,
        termination_symbol,
        boundary,
        rnnt_type,
        delay_penalty,
        reduction,
        activation=activation,
        teacher=teacher if kd_scale != 0.0 else None,
        kd_variant=kd_variant,
        kd_weighting=kd_weighting,
        kd_temperature=kd_temperature,
        kd_class_scales=kd_class_scales,
        tempered_teacher=tempered_teacher,
        backend=backend,
        impl=impl,
    )
    return terms.rnnt + kd_scale * terms.kd


def pruned_transducer_terms(
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
    *,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    teacher: Teacher = None,
    kd_variant: str = "collapsed",
    kd_weighting: str = "uniform",
    kd_temperature: float = 1.0,
    kd_class_scales: Optional[Tuple[float, float, float]] = None,
    tempered_teacher: Optional[NodeScores] = None,
    teacher_mask: Optional[Tensor] = None,
    backend: Union[str, ModuleType] = "auto",
    impl: str = "auto",
) -> TransducerTerms:
    """Both terms of ``pruned_transducer_loss``, apart and unscaled.  Arguments as there, and

    teacher_mask:  (B, T, s_range) bool, with a ``NodeScores`` teacher: False where it knows nothing of a
                   node.  There is no comparison there, and for the teacher's paths
                   p(blank) = p(label) = 1/2.  None: it knows all.
    """
    check_options(reduction, rnnt_type, kd_temperature, kd_class_scales)
    compare = get_variant(kd_variant)
    get_weighting(kd_weighting)  # a wrong name is an error with a teacher and without
    module = get_backend(backend, am.device)
    student = JoinerParts(am, lm, weight, bias, activation)
    nodes = kept_nodes(symbols, ranges, termination_symbol, boundary, rnnt_type)
    if isinstance(teacher, JoinerParts):
        _check_vocabulary(teacher, student)
    elif isinstance(teacher, NodeScores):
        teacher = as_constants(teacher, nodes, teacher_mask)
    elif teacher is not None:
        raise UserError("teacher", type(teacher).__name__, "JoinerParts, NodeScores or None")

    assert teacher_mask is None or isinstance(teacher, NodeScores), "a mask is for posteriors computed before"
    if teacher is not None and needs_logits(compare):
        return _with_logits(
            student, teacher, nodes, module, delay_penalty, reduction, kd_variant, kd_weighting, kd_temperature,
            kd_class_scales,
        )  # fmt: skip
    scores = node_scores(student, nodes, impl=impl)
    rnnt = reduce(rnnt_losses(scores, nodes, module, delay_penalty), reduction)
    if teacher is None:
        return TransducerTerms(rnnt, torch.zeros_like(rnnt))

    with torch.no_grad():
        teacher_scores = _as_scores(teacher, nodes, 1.0, None, teacher_mask, impl)
        tempered = teacher_scores
        if kd_temperature != 1.0:
            tempered = _as_scores(teacher, nodes, kd_temperature, tempered_teacher, teacher_mask, impl)

    def divergence() -> Tensor:
        student_scores = scores
        if kd_temperature != 1.0:
            student_scores = node_scores(student, nodes, temperature=kd_temperature, impl=impl)
        return compare(student_scores, NodeScores(*(x.to(student_scores[0].dtype) for x in tempered)), kd_class_scales)

    kd = kd_losses(divergence, scores, teacher_scores, nodes, module, kd_weighting, teacher_mask)
    return TransducerTerms(rnnt, reduce(kd, reduction))


def _with_logits(
    student: JoinerParts,
    teacher: Union[JoinerParts, NodeScores],
    nodes: KeptNodes,
    backend: ModuleType,
    delay_penalty: float,
    reduction: str,
    kd_variant: str,
    *kd_options,
) -> TransducerTerms:
    """For a variant that compares every class: whole logits of both, and memory that grows with C."""
    if isinstance(teacher, NodeScores):
        raise UserError(
            "kd variant",
            f"{kd_variant!r} compares whole logits, and this teacher has posteriors of blank, label and rest",
            "a variant that needs no more, such as collapsed",
            "choose one, or let the teacher run online (--kd-ranges student)",
        )
    logits = joiner_logits(student, nodes)
    with torch.no_grad():
        teacher_logits = joiner_logits(teacher, nodes)
    scores = scores_of_logits(logits, nodes)
    rnnt = rnnt_losses(scores, nodes, backend, delay_penalty)
    kd = distillation(logits, scores, teacher_logits, nodes, backend, kd_variant, *kd_options)
    return TransducerTerms(reduce(rnnt, reduction), reduce(kd, reduction))


def _as_scores(
    teacher: Union[JoinerParts, NodeScores],
    nodes: KeptNodes,
    temperature: float,
    tempered: Optional[NodeScores],
    teacher_mask: Optional[Tensor],
    impl: str,
) -> NodeScores:
    """The teacher's posteriors at ``temperature``."""
    if isinstance(teacher, JoinerParts):
        return node_scores(teacher, nodes, temperature=temperature, impl=impl)
    if temperature == 1.0:
        return teacher
    if tempered is None:
        raise UserError(
            "kd temperature",
            f"{temperature}, and a teacher given by its posteriors at temperature 1",
            "its posteriors at that temperature, too",
            "make the cache with this temperature, or give tempered_teacher",
        )
    return as_constants(tempered, nodes, teacher_mask)


def _check_vocabulary(teacher: JoinerParts, student: JoinerParts) -> None:
    if teacher.weight.shape[:1] != student.weight.shape[:1]:
        raise UserError(
            "teacher",
            f"{teacher.weight.shape[0]} classes",
            f"the student's {student.weight.shape[0]}",
            "teacher and student must share the BPE model",
        )


def as_constants(scores: NodeScores, nodes: KeptNodes, teacher_mask: Optional[Tensor]) -> NodeScores:
    """Without gradient, in float32 at least, and as ``NodeScores`` promises at the edges.

    That is 0 on padded nodes, which a cache leaves undefined; and where no symbol arc leaves a node,
    what was given to a label belongs to the rest.  Where nothing is known, blank and label have even odds.
    """
    for name, values in zip(NodeScores._fields, scores):
        if values.shape != nodes.ranges.shape or values.device != nodes.ranges.device:
            raise UserError(
                "teacher scores",
                f"{name} {tuple(values.shape)} on {values.device}",
                f"(B, T, s_range) = {tuple(nodes.ranges.shape)} on {nodes.ranges.device}",
                "teacher and student must share frame rate and ranges",
            )
        if not values.is_floating_point():
            raise UserError("teacher scores", f"{name} of {values.dtype}", "log-probabilities in floating point")
    log_blank, log_label, log_rest = (at_least_float32(x.detach()) for x in scores)
    if teacher_mask is not None:
        assert teacher_mask.shape == log_blank.shape, (teacher_mask.shape, log_blank.shape)
        log_blank, log_label = (x.masked_fill(~teacher_mask, math.log(0.5)) for x in (log_blank, log_label))
        log_rest = log_rest.masked_fill(~teacher_mask, LOG_ZERO)
    is_last = nodes.labels == nodes.termination_symbol
    log_rest = torch.where(is_last, torch.logaddexp(log_rest, log_label), log_rest)
    log_label = log_label.masked_fill(is_last, LOG_ZERO)
    return NodeScores(*(x.masked_fill(~nodes.node_mask, 0.0) for x in (log_blank, log_label, log_rest)))

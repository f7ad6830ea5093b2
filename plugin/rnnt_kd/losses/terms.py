"""The two terms of the loss, from whatever says how likely blank, label and rest are on a node.

    rnnt = -log-probability of all paths over the kept nodes
    kd   = sum over kept nodes of weight[t, s] * D(teacher || student at [t, s])

One algorithm for whole logits (``Logits``), for a joiner whose logits are never built (``JoinerParts``) and for
posteriors computed before (``Posteriors``): each answers ``scores(nodes, temperature)`` and ``logits(nodes)``.

B = batch, T = frames after subsampling, S = symbols, C = classes with blank, s_range = kept symbol positions a frame.
The work is in float32 (float64 for float64 inputs), whatever autocast says.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.losses.choices import get_variant, get_weighting, needs_logits
from rnnt_kd.losses.distillation import Distillation
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes
from rnnt_kd.losses.node_scores import JoinerParts, Logits, NodeScores, Posteriors
from rnnt_kd.losses.precision import at_least_float32, no_autocast


class TransducerTerms(NamedTuple):
    """``rnnt``, with what ``entropy_scale`` adds, and, unscaled, ``kd``: (B,) or 0-dim, as ``reduction`` says; kd is 0
    without a teacher."""

    rnnt: Tensor
    kd: Tensor


class OtherHalf(NamedTuple):
    """The teacher of a batch whose halves are two views of the same utterances: the student, on the other half."""


@dataclass(frozen=True)
class TeacherView:
    """What a teacher says of a batch.

    on_nodes:  its joiner or its logits, or its posteriors on the student's nodes; gets no gradient.
    is_known:  bool, (B, T, s_range) or (B, T, 1), False where it knows nothing of a node.  There is no comparison
               there, and for the teacher's paths p(blank) = p(label) = 1/2.  None: it knows all.
    ranges:    (B, T, s_range) int64, the nodes that it keeps and the student must; None: the student's own.
    """

    on_nodes: Union[JoinerParts, Logits, Posteriors, OtherHalf]
    is_known: Optional[Tensor] = None
    ranges: Optional[Tensor] = None


def transducer_terms(
    student: Union[JoinerParts, Logits],
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Optional[Tensor] = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    *,
    teacher: Optional[TeacherView] = None,
    kd: Optional[Distillation] = None,
    entropy_scale: float = 0.0,
    backend: Union[str, ModuleType] = "auto",
    impl: str = "auto",
) -> TransducerTerms:
    """RNN-T loss and distillation term over the kept nodes; arguments and errors as in ``pruned_transducer_loss``."""
    if reduction not in ("none", "mean", "sum"):
        raise UserError("reduction", repr(reduction), "none, mean or sum")
    if rnnt_type not in ("regular", "modified", "constrained"):
        raise UserError("rnnt_type", repr(rnnt_type), "regular, modified or constrained")
    if not 0.0 <= entropy_scale < math.inf:
        raise UserError("entropy_scale", repr(entropy_scale), "a number >= 0")
    module = get_backend(backend, ranges.device)
    nodes = kept_nodes(symbols, ranges, termination_symbol, boundary, rnnt_type, use_hat_loss)
    taught = [] if teacher is None else [(teacher, kd or Distillation())]
    rnnt, *terms = lattice_terms(student, nodes, taught, module, delay_penalty, impl, entropy_scale > 0.0)
    if entropy_scale > 0.0:
        rnnt = rnnt + entropy_scale * terms.pop()
    return TransducerTerms(*(reduce(term, reduction) for term in (rnnt, *(terms or [torch.zeros_like(rnnt)]))))


def lattice_terms(
    student: Union[JoinerParts, Logits],
    nodes: KeptNodes,
    taught: Sequence[Tuple[TeacherView, Distillation]],
    backend: ModuleType,
    delay_penalty: float = 0.0,
    impl: str = "auto",
    with_entropy: bool = False,
) -> List[Tensor]:
    """(B,) each, unscaled: the RNN-T loss, for every teacher in ``taught`` its distillation term, and
    ``alignment_entropies`` if asked for."""
    with no_autocast(nodes.ranges):
        for teacher, kd in taught:
            if isinstance(teacher.on_nodes, JoinerParts) and isinstance(student, JoinerParts):
                _check_vocabulary(teacher.on_nodes, student)
            if needs_logits(get_variant(kd.variant)) and isinstance(teacher.on_nodes, Posteriors):
                raise UserError(
                    "kd variant",
                    f"{kd.variant!r} compares whole logits, and this teacher has posteriors of blank, label and rest",
                    "a variant that needs no more, such as collapsed",
                    "choose one, or let the teacher run online (--kd-ranges student)",
                )
        if any(needs_logits(get_variant(kd.variant)) for _, kd in taught):  # memory that grows with C
            student = Logits(student.logits(nodes))
        scores = student.scores(nodes, impl=impl)
        losses = [rnnt_losses(scores, nodes, backend, delay_penalty)]
        losses += [_kd_term(student, scores, nodes, *pair, backend, impl) for pair in taught]
        return losses + [alignment_entropies(scores, nodes, backend)] if with_entropy else losses


def _kd_term(
    student: Union[JoinerParts, Logits],
    scores: NodeScores,
    nodes: KeptNodes,
    teacher: TeacherView,
    kd: Distillation,
    backend: ModuleType,
    impl: str,
) -> Tensor:
    """(B,): one teacher's term; ``scores`` are the student's at temperature 1."""
    compare, theirs, is_known = get_variant(kd.variant), teacher.on_nodes, teacher.is_known
    compared = nodes.node_mask if is_known is None else nodes.node_mask & is_known
    if teacher.ranges is not None and teacher.ranges is not nodes.ranges:
        _check_nodes(teacher.ranges, nodes.ranges, compared)
    if needs_logits(compare):
        assert isinstance(student, Logits) and not isinstance(theirs, Posteriors)
        with torch.no_grad():
            whole = other_half(student.values) if isinstance(theirs, OtherHalf) else theirs.logits(nodes)
            theirs = Logits(whole.to(student.values.dtype).masked_fill(~compared.unsqueeze(3), 0.0))

    def of_student(temperature: float) -> NodeScores:
        return scores if temperature == 1.0 else student.scores(nodes, temperature, impl)

    @torch.no_grad()
    def of_teacher(temperature: float) -> NodeScores:
        if isinstance(theirs, OtherHalf):
            found = NodeScores(*map(other_half, of_student(temperature)))
        else:
            found = theirs.scores(nodes, temperature, impl)
        return as_constants(found, nodes, is_known)

    teacher_scores = of_teacher(1.0)

    def divergence() -> Tensor:
        if needs_logits(compare):
            assert isinstance(student, Logits) and isinstance(theirs, Logits)
            both = (x.comparable(nodes, kd.temperature) for x in (student, theirs))
            return compare(*both, nodes.labels, nodes.termination_symbol, kd.class_scales)
        ours = of_student(kd.temperature)
        tempered = teacher_scores if kd.temperature == 1.0 else of_teacher(kd.temperature)
        return compare(ours, NodeScores(*(x.to(ours[0].dtype) for x in tempered)), kd.class_scales)

    return kd_losses(divergence, scores, teacher_scores, nodes, backend, kd.weighting, is_known)


def other_half(values: Tensor) -> Tensor:
    """(2 B, ...) -> (2 B, ...): the halves of a batch in each other's place."""
    if len(values) % 2:
        problem = f"{len(values)} utterances"
        raise UserError("two views of a batch", problem, "an even number: all in one view, then all in the other")
    return values.roll(len(values) // 2, 0)


def rnnt_losses(scores: NodeScores, nodes: KeptNodes, backend: ModuleType, delay_penalty: float) -> Tensor:
    """(B,): the transducer loss of each utterance."""
    return -backend.pruned_recursion(
        scores.log_blank, scores.log_label, nodes.ranges, nodes.boundary, nodes.rnnt_type, delay_penalty
    )


def alignment_entropies(scores: NodeScores, nodes: KeptNodes, backend: ModuleType) -> Tensor:
    """(B,): how undecided the model is between the alignments of an utterance, in nats, at least 0.

    Rényi's entropy of order 2 of the paths, ``-log sum p(path | symbols)^2``: two recursions, where Shannon's
    (Variani et al. 2022, arXiv 2212.11687) needs the recursion's second derivatives.
    """
    once, twice = (
        backend.pruned_recursion(
            order * scores.log_blank, order * scores.log_label, nodes.ranges, nodes.boundary, nodes.rnnt_type
        )
        for order in (1, 2)
    )
    return 2 * once - twice


def kd_losses(
    divergence: Callable[[], Tensor],
    scores: NodeScores,
    teacher_scores: NodeScores,
    nodes: KeptNodes,
    backend: ModuleType,
    weighting: str,
    is_known: Optional[Tensor] = None,
) -> Tensor:
    """(B,): the distillation term of each utterance.

    Args:
      divergence:             gives (B, T, s_range), the variant's value on each node.
      scores, teacher_scores: at temperature 1, for the weights.
      is_known:               as in ``TeacherView``.  Elsewhere the weight is 0, and that of the other nodes stays
                              what it is.
    """
    weigh = get_weighting(weighting)
    with torch.no_grad():
        weights = weigh(nodes, NodeScores(*(score.detach() for score in scores)), teacher_scores, backend)
        weights = normalise(weights, nodes)
        if is_known is not None:
            weights = weights.masked_fill(~is_known, 0.0)
    return (weights * torch.where(weights > 0.0, divergence(), weights)).sum(dim=(1, 2))  # 0 * NaN would be NaN


def normalise(weights: Tensor, nodes: KeptNodes) -> Tensor:
    """Zero on padding; the sum over an utterance is T_b + S_b, the number of arcs on a path, or 0 where all are 0.

    So the term has the unit of the RNN-T loss, and ``kd_scale`` carries over between
    weightings, prune ranges and the full lattice.
    """
    weights = torch.where(nodes.node_mask, weights, torch.zeros_like(weights))
    total = weights.sum(dim=(1, 2))
    scale = torch.where(total > 0.0, nodes.num_arcs / total, torch.zeros_like(total))
    return weights * scale.to(weights.dtype).reshape(-1, 1, 1)


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """By "none", "mean" or "sum" over the batch."""
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def as_constants(scores: NodeScores, nodes: KeptNodes, is_known: Optional[Tensor]) -> NodeScores:
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
    if is_known is not None:
        log_blank, log_label = (x.masked_fill(~is_known, math.log(0.5)) for x in (log_blank, log_label))
        log_rest = log_rest.masked_fill(~is_known, LOG_ZERO)
    is_last = nodes.labels == nodes.termination_symbol
    log_rest = torch.where(is_last, torch.logaddexp(log_rest, log_label), log_rest)
    log_label = log_label.masked_fill(is_last, LOG_ZERO)
    return NodeScores(*(x.masked_fill(~nodes.node_mask, 0.0) for x in (log_blank, log_label, log_rest)))


def _check_nodes(theirs: Tensor, ours: Tensor, compared: Tensor) -> None:
    """UserError: the teacher's nodes are not the student's where both are compared."""
    if theirs.shape != ours.shape or bool(((theirs != ours) & compared).any()):
        problem = "nodes other than the ranges given" if theirs.shape == ours.shape else f"{tuple(theirs.shape)} nodes"
        expected = f"the teacher's ranges, {tuple(ours.shape)}"
        raise UserError("ranges", problem, expected, "take those of kept_ranges(teacher, ...)")


def _check_vocabulary(teacher: JoinerParts, student: JoinerParts) -> None:
    if teacher.weight.shape[:1] != student.weight.shape[:1]:
        raise UserError(
            "teacher",
            f"{teacher.weight.shape[0]} classes",
            f"the student's {student.weight.shape[0]}",
            "teacher and student must share the BPE model",
        )

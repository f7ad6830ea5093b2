"""What teacher and student are compared on, at one node of the lattice.

A variant is one public function of this module, and its name, with "-" for "_", is the
value of ``--kd-variant``.  It knows nothing of padding, weights or reduction, and says by its
first argument what it needs:

    variant(scores, teacher_scores, class_scales) -> (B, T, s_range)
        NodeScores: log-probabilities of blank, label and rest, each (B, T, s_range).  Enough for a
        teacher in a cache, and nobody has to build logits.
    variant(logits, teacher_logits, labels, termination_symbol, class_scales) -> (B, T, s_range)
        logits, teacher_logits  (B, T, s_range, C), un-normalised, of one dtype
        labels                  (B, T, s_range) int64, the symbol on the arc that leaves the
                                node; termination_symbol where none does

    class_scales                None, or three factors for blank, label and rest

The result is Kullback-Leibler's KL(teacher || student) >= 0, in nats.  With
``class_scales`` each class's term is q log(q / p) - q + p, for teacher q and student p:
summed over all classes that is the same value, and every single one is >= 0 with a
zero gradient at p = q, so that a scale can never pull the student off the teacher.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.losses.node_scores import NodeScores

ClassScales = Optional[Tuple[float, float, float]]


def collapsed(scores: NodeScores, teacher_scores: NodeScores, class_scales: ClassScales = None) -> Tensor:
    """KL over {blank, label, every other symbol}: arXiv 2011.06110, section 3."""
    student = torch.stack(scores, dim=-1).clamp(min=LOG_ZERO)
    teacher = torch.stack(teacher_scores, dim=-1).clamp(min=LOG_ZERO)
    terms = _divergence_terms(teacher, student, is_scaled=class_scales is not None)
    if class_scales is not None:
        terms = terms * terms.new_tensor(class_scales)
    return terms.sum(dim=-1)


def full(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, termination_symbol: int, class_scales: ClassScales = None
) -> Tensor:
    """KL over all C symbols: more memory, and never less than ``collapsed``."""
    teacher = teacher_logits.log_softmax(dim=-1).clamp(min=LOG_ZERO)
    student = logits.log_softmax(dim=-1).clamp(min=LOG_ZERO)
    terms = _divergence_terms(teacher, student, is_scaled=class_scales is not None)
    if class_scales is None:
        return terms.sum(dim=-1)
    blank_scale, label_scale, rest_scale = class_scales
    label_term = terms.gather(-1, labels.unsqueeze(-1)).squeeze(-1).masked_fill(labels == termination_symbol, 0.0)
    return (
        rest_scale * terms.sum(dim=-1)
        + (blank_scale - rest_scale) * terms[..., termination_symbol]
        + (label_scale - rest_scale) * label_term
    )


def _divergence_terms(teacher: Tensor, student: Tensor, is_scaled: bool) -> Tensor:
    """(..., K) log-probabilities -> (..., K), the classes' shares in KL(teacher || student)."""
    terms = teacher.exp() * (teacher - student)
    return terms - teacher.exp() + student.exp() if is_scaled else terms

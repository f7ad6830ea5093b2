"""From posteriors on the kept nodes to the two terms of the loss.

What the loss with logits (``pruned_rnnt.py``) and the one without (``transducer_loss.py``) share:
everything after the node scores.

    rnnt = -log-probability of all paths over the kept nodes
    kd   = sum over kept nodes of weight[t, s] * D(teacher || student at [t, s])

B = batch, T = frames, S = symbols, s_range = kept symbol positions a frame.
"""

from types import ModuleType
from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.losses.choices import get_weighting
from rnnt_kd.losses.kept_nodes import KeptNodes
from rnnt_kd.losses.node_scores import NodeScores


class TransducerTerms(NamedTuple):
    """``rnnt`` and, unscaled, ``kd``: (B,) or 0-dim, as ``reduction`` says; kd is 0 without a teacher."""

    rnnt: Tensor
    kd: Tensor


def rnnt_losses(scores: NodeScores, nodes: KeptNodes, backend: ModuleType, delay_penalty: float) -> Tensor:
    """(B,): the transducer loss of each utterance."""
    return -backend.pruned_recursion(
        scores.log_blank, scores.log_label, nodes.ranges, nodes.boundary, nodes.rnnt_type, delay_penalty
    )


def kd_losses(
    divergence: Callable[[], Tensor],
    scores: NodeScores,
    teacher_scores: NodeScores,
    nodes: KeptNodes,
    backend: ModuleType,
    kd_weighting: str,
    is_known: Optional[Tensor] = None,
) -> Tensor:
    """(B,): the distillation term of each utterance.

    Args:
      divergence:             gives (B, T, s_range), the variant's value on each node.
      scores, teacher_scores: at temperature 1, for the weights.
      is_known:               (B, T, s_range) bool, where the teacher counts; None: everywhere.  Elsewhere the
                              weight is 0, and that of the other nodes stays what it is.
    """
    weigh = get_weighting(kd_weighting)
    with torch.no_grad():
        weights = weigh(nodes, NodeScores(*(score.detach() for score in scores)), teacher_scores, backend)
        weights = normalise(weights, nodes)
        if is_known is not None:
            weights = weights.masked_fill(~is_known, 0.0)
    return (weights * divergence()).sum(dim=(1, 2))


def normalise(weights: Tensor, nodes: KeptNodes) -> Tensor:
    """Zero on padding; the sum over an utterance is T_b + S_b, the number of arcs on a path.

    So the term has the unit of the RNN-T loss, and ``kd_scale`` carries over between
    weightings, prune ranges and the full lattice.
    """
    weights = torch.where(nodes.node_mask, weights, torch.zeros_like(weights))
    total = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(weights.dtype).tiny)
    return weights * (nodes.num_arcs / total).to(weights.dtype).reshape(-1, 1, 1)


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """By "none", "mean" or "sum" over the batch."""
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def check_options(
    reduction: str,
    rnnt_type: str,
    kd_temperature: float = 1.0,
    kd_class_scales: Optional[Tuple[float, float, float]] = None,
) -> None:
    """Raises UserError for a value out of range."""
    if reduction not in ("none", "mean", "sum"):
        raise UserError("reduction", repr(reduction), "none, mean or sum")
    if rnnt_type not in ("regular", "modified", "constrained"):
        raise UserError("rnnt_type", repr(rnnt_type), "regular, modified or constrained")
    if not kd_temperature > 0.0:
        raise UserError("kd temperature", str(kd_temperature), "a number above 0")
    if kd_class_scales is not None and (len(kd_class_scales) != 3 or not all(x >= 0.0 for x in kd_class_scales)):
        raise UserError("kd class scales", str(kd_class_scales), "three numbers >= 0, for blank, label and rest")

"""One utterance on the teacher's pruned lattice: what several models say of every node.

The nodes are those of the teacher (its ranges, of clean features), the posteriors come from each
model's joiner there, at temperature 1.  Everything goes through the functions that training uses.

T encoder frames, S symbols, s_range kept nodes a frame.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Dict, List, Mapping, Tuple

import torch
from torch import Tensor

from rnnt_kd.config import TrainingConfig
from rnnt_kd.errors import UserError
from rnnt_kd.losses import NodeScores
from rnnt_kd.losses.kd_shift import shift_nodes
from rnnt_kd.losses.kd_variants import collapsed
from rnnt_kd.losses.kd_weightings import occupancy, one_best
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes
from rnnt_kd.losses.terms import as_constants, kd_losses, rnnt_losses
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.teachers.interface import as_teacher
from rnnt_kd.teachers.prune import Pruned, prune
from rnnt_kd.text.labels import padded_labels

NAN = float("nan")


@dataclass(frozen=True)
class ModelView:
    """What one model says of the nodes, each (T, s_range) float32, NaN where there is no node (s > S).

    log_label is -inf at s = S, where no symbol arc leaves; ``path`` (N, 2) int64 lists the nodes (t, s) that the
    best path reads; ``kl`` is KL(teacher || model) over {blank, label, rest}, NaN where the teacher says nothing.
    loss: minus log-probability of the text over the kept nodes; kd: the distillation term, weighted by occupancy.
    """

    log_blank: Tensor
    log_label: Tensor
    occupancy: Tensor
    path: Tensor
    kl: Tensor
    loss: float
    kd: float


@torch.no_grad()
def utterance_lattice(
    models: Mapping[str, Transducer],
    training: TrainingConfig,
    prune_range: int,
    rnnt_type: str,
    backend: ModuleType,
    features: Tensor,
    labels: List[int],
    shift: int = 0,
) -> Tuple[Tensor, Dict[str, ModelView]]:
    """Starts (T,) int64 of the kept nodes, and each model's view.

    Args:
      models:     in eval mode, on one device; the first is the teacher.
      training:   the teacher's configuration: the scales of its smoothed loss.
      features:   (frames, 80), clean.
      labels:     the text, without blank.
      shift:      ``kd.shift`` of the distilled model: the teacher's lattice is moved that many frames later.
    Raises:
      UserError: models with different frame rates; a text that no path of the lattice takes through the frames.
    """
    teacher_name, teacher = next(iter(models.items()))
    device = next(teacher.parameters()).device
    padded, label_lens = (x.to(device) for x in padded_labels([labels], teacher.blank_id, max(prune_range - 1, 1)))
    heard, lens = features.unsqueeze(0).to(device), torch.tensor([len(features)], device=device)
    found: Dict[str, Pruned] = {}
    for name, model in models.items():
        found[name] = prune(
            as_teacher(model), heard, lens, padded, label_lens, rnnt_type=rnnt_type,
            lm_only_scale=training.lm_only_scale, am_only_scale=training.am_only_scale, backend=backend,
        )  # fmt: skip
        theirs, ours = (found[each].encoder_out.size(1) for each in (name, teacher_name))
        if theirs != ours:
            problem = f"makes {theirs} encoder frames where {teacher_name} makes {ours}"
            raise UserError(name, problem, "the same subsampling in both")
    ranges, boundary = found[teacher_name].ranges(prune_range), found[teacher_name].boundary
    nodes = kept_nodes(padded, ranges, teacher.blank_id, boundary, rnnt_type)
    teacher_scores, nodes, is_known = _moved(found[teacher_name].joiner.scores(nodes), nodes, shift)
    views = {}
    for name in models:
        scores = teacher_scores if name == teacher_name else found[name].joiner.scores(nodes)
        views[name] = _view(scores, teacher_scores, nodes, is_known, backend)
    return nodes.ranges[0, :, 0].cpu(), views


def _moved(scores: NodeScores, nodes: KeptNodes, shift: int) -> Tuple[NodeScores, KeptNodes, Tensor]:
    """Scores and nodes ``shift`` frames later, and where they are known; elsewhere even odds, as in training."""
    if shift == 0:
        return as_constants(scores, nodes, None), nodes, nodes.node_mask
    moved = shift_nodes(nodes.ranges[:, :, 0], scores, nodes.boundary[:, 3], shift)
    ranges = moved.starts.unsqueeze(2) + torch.arange(nodes.ranges.shape[2], device=nodes.ranges.device)
    later = kept_nodes(nodes.symbols, ranges, nodes.termination_symbol, nodes.boundary, nodes.rnnt_type)
    values = NodeScores(*(value for value in moved.values if value is not None))
    return as_constants(values, later, moved.is_known), later, moved.is_known & later.node_mask


def _view(
    scores: NodeScores, teacher_scores: NodeScores, nodes: KeptNodes, is_known: Tensor, backend: ModuleType
) -> ModelView:
    kl = collapsed(scores, teacher_scores)
    kd = kd_losses(lambda: kl, scores, teacher_scores, nodes, backend, "occupancy", is_known)
    best = one_best(nodes, scores, scores, backend)[0]
    frame, place = (best * nodes.node_mask[0]).nonzero(as_tuple=True)
    has_no_label = nodes.labels == nodes.termination_symbol

    def shown(values: Tensor, where: Tensor = nodes.node_mask) -> Tensor:
        return values.masked_fill(~where, NAN)[0].float().cpu()

    return ModelView(
        log_blank=shown(scores.log_blank),
        log_label=shown(scores.log_label.masked_fill(has_no_label, float("-inf"))),
        occupancy=shown(occupancy(nodes, scores, scores, backend)),
        path=torch.stack((frame, nodes.ranges[0, frame, place]), dim=1).cpu(),
        kl=shown(kl.clamp(min=0.0), is_known),
        loss=float(rnnt_losses(scores, nodes, backend, 0.0)),
        kd=float(kd),
    )

"""A teacher's pruned lattice and its posteriors there, for the cache of stage 4.

Clean features, eval mode, no gradient.  The ranges come from the teacher's own simple heads, the
posteriors from its joiner on these nodes.

B batch, T encoder frames, S symbols.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Callable, Dict, List

import torch
from torch import Tensor

from rnnt_kd.config import TrainingConfig
from rnnt_kd.data.dataset import Batch
from rnnt_kd.errors import UserError
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses import JoinerParts
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes
from rnnt_kd.losses.node_scores import node_scores
from rnnt_kd.losses.packed_posteriors import pack
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.teachers.shards import Entry
from rnnt_kd.text.labels import padded_labels


@dataclass(frozen=True)
class CacheSettings:
    """Settings of a cache that its students must share; the same in ``teachers.shards.CacheFacts``."""

    prune_range: int
    rnnt_type: str
    temperature: float
    min_seconds: float
    max_seconds: float


def teacher_nodes(
    model: Transducer,
    training: TrainingConfig,
    prune_range: int,
    rnnt_type: str,
    backend: ModuleType,
    encoder_out: Tensor,
    encoder_lens: Tensor,
    predictor_out: Tensor,
    labels: Tensor,
    label_lens: Tensor,
) -> KeptNodes:
    """The nodes that a teacher's own simple heads keep.

    Args:
      model, training:  the teacher and its own configuration.
      backend:          a lattice backend module.
      encoder_out, encoder_lens:  (B, T, D) and (B,), of ``model.encode``.
      predictor_out:    (B, S + 1, E), of ``model.predict``.
      labels, label_lens:  (B, S) int64, S >= prune_range - 1, and (B,).
    """
    boundary = torch.zeros(len(labels), 4, dtype=torch.int64, device=labels.device)
    boundary[:, 2], boundary[:, 3] = label_lens, encoder_lens
    _, (px_grad, py_grad) = rnnt_loss_smoothed(
        model.simple_lm_proj(predictor_out),
        model.simple_am_proj(encoder_out),
        labels,
        model.blank_id,
        lm_only_scale=training.lm_only_scale,
        am_only_scale=training.am_only_scale,
        boundary=boundary,
        rnnt_type=rnnt_type,
        reduction="sum",
        return_grad=True,
        backend=backend,
    )
    ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, prune_range)
    assert ranges.size(2) == prune_range, (ranges.shape, prune_range)
    return kept_nodes(labels, ranges, model.blank_id, boundary, rnnt_type)


def joiner_parts(model: Transducer, encoder_out: Tensor, predictor_out: Tensor) -> JoinerParts:
    """The joiner's inputs, projected before pruning, its activation and its output layer."""
    joiner, output = model.joiner, model.joiner.output_linear
    am, lm = joiner.encoder_proj(encoder_out), joiner.predictor_proj(predictor_out)
    return JoinerParts(am, lm, output.weight, output.bias, joiner.activation)


class TeacherPosteriors:
    """Batch in, entries of the cache out.

    Args:
      model:    the teacher, in eval mode, on ``device``.
      training: its own configuration: the scales of its smoothed loss.
      settings: those of the students.
      backend:  a lattice backend module.
      encode:   text -> labels.
      where:    for messages, the teacher's folder.
    """

    def __init__(
        self,
        model: Transducer,
        training: TrainingConfig,
        settings: CacheSettings,
        backend: ModuleType,
        encode: Callable[[str], List[int]],
        device: torch.device,
        where: Path,
    ):
        self.model, self.training, self.settings, self.backend = model, training, settings, backend
        self.encode, self.device, self.where = encode, device, where

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Dict[str, Entry]:
        """Entries by utterance id.  Raises UserError, naming the utterance, where a posterior is not a number."""
        model, settings = self.model, self.settings
        encoded = [self.encode(text) for text in batch.texts]
        at_least = max(settings.prune_range - 1, 1)  # so that no batch of short texts narrows the ranges
        labels, label_lens = (x.to(self.device) for x in padded_labels(encoded, model.blank_id, at_least))
        encoder_out, encoder_lens = model.encode(batch.features.to(self.device), batch.feature_lens.to(self.device))
        predictor_out = model.predict(labels)
        nodes = teacher_nodes(
            model, self.training, settings.prune_range, settings.rnnt_type, self.backend,
            encoder_out, encoder_lens, predictor_out, labels, label_lens,
        )  # fmt: skip
        ranges = nodes.ranges
        parts = joiner_parts(model, encoder_out, predictor_out)
        packed = self._packed(parts, nodes, 1.0, batch)
        tempered = self._packed(parts, nodes, settings.temperature, batch) if settings.temperature != 1.0 else None
        starts = ranges[:, :, 0].cpu()
        return {
            name: Entry(name, starts[b, :T], packed[b, :T], None if tempered is None else tempered[b, :T])
            for b, (name, T) in enumerate(zip(batch.utterance_ids, encoder_lens.tolist(), strict=True))
        }

    def _packed(self, parts: JoinerParts, nodes: KeptNodes, temperature: float, batch: Batch) -> Tensor:
        """(B, T, s_range, 2) float16, 0 on padded nodes."""
        scores = node_scores(parts, nodes, temperature=temperature)
        is_bad = (torch.isnan(torch.stack(scores)).any(dim=0) & nodes.node_mask).flatten(1).any(dim=1)
        if bool(is_bad.any()):
            name = batch.utterance_ids[int(is_bad.nonzero()[0])]
            raise UserError(self.where, f"its posteriors of {name} are not numbers", "", "train the teacher again")
        return pack(scores).masked_fill(~nodes.node_mask.unsqueeze(3), 0.0).cpu()

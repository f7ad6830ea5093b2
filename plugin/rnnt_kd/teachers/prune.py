"""A batch on a model's own pruned lattice: for the student in training, for the teacher's cache, for pictures.

B batch, T encoder frames, S symbols, C classes with blank.
"""

from types import ModuleType
from typing import NamedTuple, Tuple

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses import JoinerParts
from rnnt_kd.losses.precision import at_least_float32, no_autocast
from rnnt_kd.losses.terms import other_half
from rnnt_kd.teachers.interface import Teacher


class Pruned(NamedTuple):
    """
    encoder_out:   (B, T, D).
    num_frames:    (B,) integers, T_b.
    joiner:        of the model on this batch.
    boundary:      (B, 4) int64, rows [0, 0, S_b, T_b].
    simple_loss:   0-dim, the loss of the simple heads, summed over the batch.
    occupancies:   px_grad, py_grad: how probable each arc is by these.
    """

    encoder_out: Tensor
    num_frames: Tensor
    joiner: JoinerParts
    boundary: Tensor
    simple_loss: Tensor
    occupancies: Tuple[Tensor, Tensor]

    def ranges(self, prune_range: int, of_both: bool = False) -> Tensor:
        """(B, T, s_range) int64: the nodes to keep, min(prune_range, S + 1) a frame.

        ``of_both``: the halves of the batch are two views of the same utterances, and the same nodes are kept in both,
        those that are probable in the mean.
        """
        px_grad, py_grad = ((x + other_half(x)) / 2 if of_both else x for x in self.occupancies)
        return get_rnnt_prune_ranges(px_grad, py_grad, self.boundary, prune_range)


def prune(
    model: Teacher,
    features: Tensor,
    feature_lens: Tensor,
    labels: Tensor,
    label_lens: Tensor,
    *,
    rnnt_type: str,
    lm_only_scale: float,
    am_only_scale: float,
    delay_penalty: float = 0.0,
    backend: ModuleType,
) -> Pruned:
    """Run ``model`` and its simple heads' loss, that in float32 at least.

    Args:
      features, feature_lens:  (B, frames, F) and (B,).
      labels, label_lens:      (B, S) int64 padded with blank, S >= 1, and (B,).
      rnnt_type, lm_only_scale, am_only_scale, delay_penalty:  as in ``rnnt_loss_smoothed``.
      backend:                 a lattice backend module.
    Raises:
      UserError: a model without simple heads.
    """
    encoder_out, num_frames = model.encode(features, feature_lens)
    predictor_out = model.predict(labels)
    simple = model.simple(encoder_out, predictor_out)
    if simple is None:
        problem = f"{type(model).__name__} has no simple heads, so it cannot say which nodes of the lattice to keep"
        raise UserError(
            "teacher", problem, "simple() that gives am and lm", "let it run online, on the student's ranges"
        )
    joiner = model.joiner(encoder_out, predictor_out)
    boundary = torch.zeros(len(labels), 4, dtype=torch.int64, device=labels.device)
    boundary[:, 2], boundary[:, 3] = label_lens, num_frames
    with no_autocast(encoder_out):
        am, lm = map(at_least_float32, simple)
        loss, occupancies = rnnt_loss_smoothed(
            lm,
            am,
            labels,
            model.blank_id,
            lm_only_scale,
            am_only_scale,
            boundary,
            rnnt_type,
            delay_penalty,
            reduction="sum",
            return_grad=True,
            backend=backend,
        )
    return Pruned(encoder_out, num_frames, joiner, boundary, loss, occupancies)

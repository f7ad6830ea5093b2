"""The training objective: one pruned lattice, the student on it, and the teacher on it.

    L = simple_scale * L_simple + pruned_scale * L_pruned + ctc_scale * L_ctc + kd_scale * L_kd

1. ``ranges`` say which nodes of the lattice are kept: the student's, from the gradient of its
   smoothed loss, or the teacher's, from the cache of stage 4.
2. The student's joiner on these nodes gives the pruned transducer loss.
3. The teacher's posteriors on the *same* nodes, of clean features, give the distillation term:
   from its joiner, run here without gradient, or from the cache.  With ``kd.shift`` the teacher's
   lattice is moved that many frames later.

Every term is a sum over the batch, and all are divided by the same number (encoder
frames), so no scale depends on the batch size.  Losses run in float32 with autocast off.

B batch, T encoder frames, S symbols, C vocabulary with blank.
"""

from types import ModuleType
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnt_kd.config import KdConfig, TrainingConfig
from rnnt_kd.errors import UserError
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses import JoinerParts, NodeScores, pruned_transducer_terms
from rnnt_kd.losses.kd_shift import later, shift_nodes
from rnnt_kd.losses.packed_posteriors import unpack
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.teachers.posteriors import joiner_parts

TERMS = ("simple", "pruned", "ctc", "kd")


def loss_scales(step: int, training: TrainingConfig, kd: Optional[KdConfig]) -> Dict[str, float]:
    """Weight of each term at ``step`` (from 0).

    While the simple heads are poor, so are the ranges: over ``pruned_loss_warmup_steps``
    the pruned and distillation terms rise from 0.1 to 1 of their scale and the simple
    term falls from 1 to ``simple_loss_scale``.
    """
    warm = min(1.0, step / training.pruned_loss_warmup_steps) if training.pruned_loss_warmup_steps > 0 else 1.0
    pruned = 0.1 + 0.9 * warm
    kd_scale = 0.0
    if kd is not None:
        ramp = min(1.0, (step + 1) / kd.ramp_steps) if kd.ramp_steps > 0 else 1.0
        kd_scale = kd.scale * ramp * pruned
    return {
        "simple": 1.0 - warm * (1.0 - training.simple_loss_scale),
        "pruned": pruned,
        "ctc": training.ctc_loss_scale,
        "kd": kd_scale,
    }


class CachedTeacher(NamedTuple):
    """What a teacher left for one batch in its cache.

    starts:    (B, T) int64, first kept symbol position of each frame; padding: any.
    packed:    (B, T, s_range, 2) float16, posteriors on the kept nodes, see ``losses/packed_posteriors.py``.
    tempered:  the same at the temperature of the distillation; None where that is 1.
    is_known:  (B, T, s_range) bool, False where ``packed`` says nothing of a node; None: it says all.  An utterance of
               which nothing is known has the student's ranges.
    """

    starts: Tensor
    packed: Tensor
    tempered: Optional[Tensor] = None
    is_known: Optional[Tensor] = None

    def ranges(self) -> Tensor:
        """(B, T, s_range) int64."""
        return self.starts.unsqueeze(2) + torch.arange(self.packed.shape[2], device=self.starts.device)

    def later(self, num_frames: Tensor, shift: int) -> "CachedTeacher":
        """``shift`` frames later, see ``losses/kd_shift.py``; ``num_frames`` (B,) int64."""
        if shift == 0:
            return self
        moved = shift_nodes(self.starts, (self.packed, self.tempered), num_frames, shift)
        packed, tempered = moved.values
        assert packed is not None
        is_known = moved.is_known if self.is_known is None else moved.is_known & self.is_known
        return CachedTeacher(moved.starts, packed, tempered, is_known)


class Objective(nn.Module):
    """Model in, loss terms out.  The only place that knows both models and losses.

    Args:
      model:    the transducer to train.
      training: scales and lattice options.
      backend:  a lattice backend module (``rnnt_kd.lattice.get_backend``).
      kd:       distillation options, or None.
      teacher:  transducer in eval mode, for ``kd.ranges`` "student"; kept out of ``parameters()``.
    """

    def __init__(
        self,
        model: Transducer,
        training: TrainingConfig,
        backend: ModuleType,
        kd: Optional[KdConfig] = None,
        teacher: Optional[Transducer] = None,
    ):
        super().__init__()
        assert (teacher is not None) == (kd is not None and kd.ranges == "student"), "online, and only then"
        self.model, self.training_config, self.kd = model, training, kd
        self.backend = backend
        # In a tuple it is no submodule: neither trained, saved nor put in train mode.
        self._online_teacher = (teacher,)

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        labels: Tensor,
        label_lens: Tensor,
        clean_features: Optional[Tensor] = None,
        with_kd: bool = True,
        cached: Optional[CachedTeacher] = None,
    ) -> Dict[str, Tensor]:
        """Sums over the batch of each term, unscaled, and the number of encoder frames.

        Args:
          features:     (B, frames, 80) float32, what the student hears.
          feature_lens: (B,) int64.
          labels:       (B, S) int64, padded with blank; S >= 1.
          label_lens:   (B,) int64.
          clean_features: what the teacher hears; ``features`` where None.
          with_kd:      False leaves the distillation term 0, on the student's ranges (validation).
          cached:       the teacher's ranges and posteriors, for ``kd.ranges`` "teacher".
        Returns:
          {"simple", "pruned", "ctc", "kd", "frames"}: 0-dim float32 tensors.
        """
        config, model, backend = self.training_config, self.model, self.backend
        blank = model.blank_id
        encoder_out, encoder_lens = model.encode(features, feature_lens)
        predictor_out = model.predict(labels)
        am, lm = model.simple_am_proj(encoder_out), model.simple_lm_proj(predictor_out)
        ctc_logits = (
            model.ctc_output(encoder_out) if model.ctc_output is not None and config.ctc_loss_scale > 0 else None
        )
        boundary = torch.zeros(labels.size(0), 4, dtype=torch.int64, device=labels.device)
        boundary[:, 2], boundary[:, 3] = label_lens, encoder_lens

        joiner = joiner_parts(model, encoder_out, predictor_out)
        kd_options: Dict[str, Any] = {}
        teacher: Union[None, JoinerParts, NodeScores] = None
        has_teacher = None if cached is None or cached.is_known is None else cached.is_known.flatten(1).any(dim=1)
        if cached is not None and self.kd is not None:
            cached = cached.later(encoder_lens, self.kd.shift)
        if with_kd and self.kd is not None:
            heard = features if clean_features is None else clean_features
            kd_options, teacher = self._teacher(heard, feature_lens, labels, encoder_out.size(1), cached)

        zero = torch.zeros((), device=features.device)
        with _full_precision(features.device):
            simple, (px_grad, py_grad) = rnnt_loss_smoothed(
                lm.float(),
                am.float(),
                labels,
                blank,
                lm_only_scale=config.lm_only_scale,
                am_only_scale=config.am_only_scale,
                boundary=boundary,
                rnnt_type=config.rnnt_type,
                delay_penalty=config.delay_penalty,
                reduction="sum",
                return_grad=True,
                backend=backend,
            )
            if cached is None or has_teacher is not None:
                ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, config.prune_range)
            if cached is not None:
                kept = cached.ranges()
                ranges = kept if has_teacher is None else torch.where(has_teacher[:, None, None], kept, ranges)
            pruned, kd = pruned_transducer_terms(
                joiner.am,
                joiner.lm,
                joiner.weight,
                joiner.bias,
                labels,
                ranges,
                blank,
                boundary,
                config.rnnt_type,
                config.delay_penalty,
                reduction="sum",
                activation=joiner.activation,
                teacher=teacher,
                backend=backend,
                **kd_options,
            )
            ctc = zero if ctc_logits is None else _ctc_loss(ctc_logits.float(), labels, encoder_lens, label_lens, blank)
        return {
            "simple": simple,
            "pruned": pruned,
            "ctc": ctc,
            "kd": kd,
            "frames": encoder_lens.sum().to(torch.float32),
        }

    @torch.no_grad()
    def _teacher(
        self, features, feature_lens, labels, num_frames: int, cached: Optional[CachedTeacher]
    ) -> Tuple[Dict[str, Any], Union[JoinerParts, NodeScores]]:
        """Options of the distillation term, and the teacher as it takes it."""
        assert self.kd is not None
        options: Dict[str, Any] = {
            "kd_variant": self.kd.variant,
            "kd_weighting": self.kd.weighting,
            "kd_temperature": self.kd.temperature,
            "kd_class_scales": self.kd.class_scales,
        }
        if cached is not None:
            if cached.tempered is not None:
                options["tempered_teacher"] = unpack(cached.tempered)
            if cached.is_known is not None:
                options["teacher_mask"] = cached.is_known
            return options, unpack(cached.packed)
        teacher = self._online_teacher[0]
        assert teacher is not None, "a batch without its cached teacher"
        encoder_out, _ = teacher.encode(features, feature_lens)
        if encoder_out.size(1) != num_frames:
            raise UserError(
                "--teacher-dir",
                f"the teacher makes {encoder_out.size(1)} encoder frames where the student makes {num_frames}",
                "the same subsampling in both",
            )
        parts = joiner_parts(teacher, encoder_out, teacher.predict(labels))
        return options, parts if self.kd.shift == 0 else parts._replace(am=later(parts.am, self.kd.shift))


def combine(terms: Dict[str, Tensor], scales: Dict[str, float]) -> Tensor:
    """The loss per encoder frame: one reduction for every term."""
    weighted = [scales[name] * terms[name] for name in TERMS if scales[name] != 0.0]
    return torch.stack(weighted).sum() / terms["frames"]


def _ctc_loss(logits: Tensor, labels: Tensor, frame_lens: Tensor, label_lens: Tensor, blank: int) -> Tensor:
    """Sum over the batch; an utterance without any valid alignment counts 0."""
    log_probs = logits.log_softmax(dim=-1).transpose(0, 1)
    return F.ctc_loss(log_probs, labels, frame_lens, label_lens, blank=blank, reduction="sum", zero_infinity=True)


def _full_precision(device: torch.device):
    return torch.autocast(device_type=device.type, enabled=False)

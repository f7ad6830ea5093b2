"""The training objective: one pruned lattice, the student on it, and the teacher on it.

    L = simple_scale * L_simple + pruned_scale * L_pruned + ctc_scale * L_ctc + kd_scale * L_kd
        + features_scale * L_features + consistency_scale * L_consistency + ctc_consistency_scale * L_ctc_consistency
        + entropy_scale * L_entropy

1. ``ranges`` say which nodes of the lattice are kept: the student's, from the gradient of its
   smoothed loss, or the teacher's, from the cache of stage 4 (the student's where the cache has none).
2. The student's joiner on these nodes gives the pruned transducer loss.
3. The teacher's posteriors on the *same* nodes, of what ``kd.hears`` says, give the distillation term:
   from its joiner, run here without gradient, or from the cache.  With ``kd.shift`` the teacher's
   lattice is moved that many frames later.  With ``kd.in_place`` the teacher is the densest member of a family, while
   the model is a sparser one.
4. With ``kd.features`` the layers of the student's encoder imitate those of the online teacher's,
   which hears the same batch: ``losses/features.py``.
5. With ``training.consistency`` the second half of a batch is another view of the first, on the same nodes.  Each is
   the other's teacher, on the lattice and in the frames of CTC.
6. With ``training.alignment_entropy`` the student is to decide on one alignment: ``losses.terms.alignment_entropies``.

Every term is a sum over the batch, and all are divided by the same number (encoder
frames), so no scale depends on the batch size.  Losses run in float32 with autocast off.

B batch, T encoder frames, S symbols, C vocabulary with blank.
"""

from types import ModuleType
from typing import Any, Dict, List, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnt_kd.config import KdConfig, TrainingConfig
from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.losses import Distillation, JoinerParts, OtherHalf, TeacherView, kept_nodes, lattice_terms
from rnnt_kd.losses.features import feature_loss, paired_layers, recorded
from rnnt_kd.losses.precision import no_autocast
from rnnt_kd.losses.terms import other_half
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.teachers.interface import OurTransducer, Teacher, as_teacher
from rnnt_kd.teachers.prune import prune
from rnnt_kd.teachers.views import CachedTeacher, OnlineTeacher, kept_ranges

TERMS = ("simple", "pruned", "ctc", "kd", "features", "consistency", "ctc_consistency", "entropy")
ONLY_IN_TRAINING = TERMS[3:]  # no validation has them


def loss_scales(step: int, training: TrainingConfig, kd: Optional[KdConfig]) -> Dict[str, float]:
    """Weight of each term at ``step`` (from 0).

    While the simple heads are poor, so are the ranges: over ``pruned_loss_warmup_steps``
    the pruned, distillation and entropy terms rise from 0.1 to 1 of their scale and the simple
    term falls from 1 to ``simple_loss_scale``.
    """
    warm = min(1.0, step / training.pruned_loss_warmup_steps) if training.pruned_loss_warmup_steps > 0 else 1.0
    pruned, label_scale = 0.1 + 0.9 * warm, 1.0
    kd_scale = features_scale = consistency = ctc_consistency = 0.0
    if kd is not None:
        ramp, label_scale = _ramp(step, kd.ramp_steps), kd.label_scale
        kd_scale, features_scale = kd.scale * ramp * pruned, kd.features * ramp
    if training.consistency is not None:
        ramp = _ramp(step, training.consistency.ramp_steps)
        consistency, ctc_consistency = training.consistency.lattice * ramp * pruned, training.consistency.ctc * ramp
    return {
        "simple": 1.0 - warm * (1.0 - training.simple_loss_scale),
        "pruned": label_scale * pruned,
        "ctc": training.ctc_loss_scale,
        "kd": kd_scale,
        "features": features_scale,
        "consistency": consistency,
        "ctc_consistency": ctc_consistency,
        "entropy": training.alignment_entropy * pruned,
    }


def _ramp(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


class Objective(nn.Module):
    """Model in, loss terms out.  The only place that knows both models and losses.

    Args:
      model:    the transducer to train.
      training: scales and lattice options.
      backend:  a lattice backend module (``rnnt_kd.lattice.get_backend``).
      kd:       distillation options, or None.
      teacher:  in eval mode, for ``kd.ranges`` "student" but for ``kd.in_place``; kept out of ``parameters()``.
    """

    def __init__(
        self,
        model: Transducer,
        training: TrainingConfig,
        backend: ModuleType,
        kd: Optional[KdConfig] = None,
        teacher: Union[None, Teacher, Transducer] = None,
    ):
        super().__init__()
        assert (teacher is not None) == (kd is not None and kd.runs_teacher), "online, and only then"
        self.model, self.training_config, self.kd, self.backend = model, training, kd, backend
        self.student = OurTransducer(model)
        self.memory = None if training.loss_memory_mb is None else int(training.loss_memory_mb * 1e6)
        self.distillation = self.online = None
        if kd is not None:
            self.distillation = Distillation(kd.variant, kd.weighting, kd.temperature, kd.class_scales, kd.shift)
        if teacher is not None and kd is not None:  # as no submodule: neither trained, saved nor put in train mode
            self.online = OnlineTeacher(as_teacher(teacher), kd.shift, kd.align)
        self.layers: List[str] = []
        self.teacher_layers: List[str] = []
        if self.online is not None and kd is not None and kd.features > 0:
            self.layers, self.teacher_layers = paired_layers(model, self.online.model, kd.feature_layers)

    @torch.no_grad()
    def in_place(self, features: Tensor, feature_lens: Tensor, labels: Tensor, **unused: Any) -> JoinerParts:
        """What the model as it is now says of a batch, without dropout; arguments as those of ``forward``."""
        self.model.eval()
        encoder_out, _ = self.student.encode(features, feature_lens)
        parts = self.student.joiner(encoder_out, self.student.predict(labels))
        self.model.train()
        weight, bias = parts.weight.clone(), None if parts.bias is None else parts.bias.clone()  # a member hides some
        return parts._replace(weight=weight, bias=bias)

    def forward(
        self,
        features: Tensor,
        feature_lens: Tensor,
        labels: Tensor,
        label_lens: Tensor,
        clean_features: Optional[Tensor] = None,
        with_kd: bool = True,
        cached: Optional[CachedTeacher] = None,
        densest: Optional[JoinerParts] = None,
    ) -> Dict[str, Tensor]:
        """Sums over the batch of each term, unscaled, and the number of encoder frames.

        Args:
          features:     (B, frames, 80) float32, what the student hears.
          feature_lens: (B,) int64.
          labels:       (B, S) int64, padded with blank; S >= 1.
          label_lens:   (B,) int64.
          clean_features: what the teacher hears; ``features`` where None.
          with_kd:      False leaves all but the first three terms 0, on the student's ranges (validation).
          cached:       the teacher's ranges and posteriors, for ``kd.ranges`` "teacher".
          densest:      for ``kd.in_place``, what the densest member says; None: the model is that, and has no teacher.
        Returns:
          ``TERMS`` and "frames": 0-dim float32 tensors.
        """
        config, model, blank = self.training_config, self.model, self.model.blank_id
        layers = self.layers if with_kd else []
        with recorded(model, layers) as own:
            student = prune(
                self.student, features, feature_lens, labels, label_lens, rnnt_type=config.rnnt_type,
                lm_only_scale=config.lm_only_scale, am_only_scale=config.am_only_scale,
                delay_penalty=config.delay_penalty, backend=self.backend,
            )  # fmt: skip
        frames, T = student.num_frames, student.encoder_out.size(1)
        teacher, theirs = None if densest is None else TeacherView(densest), []
        if with_kd and self.online is not None:
            heard = features if clean_features is None else clean_features
            with recorded(self.online.model, self.teacher_layers) as theirs:
                teacher = self.online.view(heard, feature_lens, labels, frames, T)
        elif with_kd and self.kd is not None and not self.kd.in_place:
            assert cached is not None, "a batch without its cached teacher"
            teacher = cached.view(frames, T, shift=self.kd.shift, align=self.kd.align, rnnt_type=config.rnnt_type)
        consistency = config.consistency if with_kd else None
        ranges = kept_ranges(teacher, lambda: student.ranges(config.prune_range, of_both=consistency is not None))
        terms = dict.fromkeys(TERMS, torch.zeros((), device=features.device))
        taught = {}
        if teacher is not None and self.distillation is not None:
            taught["kd"] = teacher, self.distillation
        if consistency is not None and consistency.lattice > 0:
            taught["consistency"] = TeacherView(OtherHalf()), Distillation(weighting=consistency.weighting)
        nodes = kept_nodes(labels, ranges, blank, student.boundary, config.rnnt_type)
        joiner = student.joiner._replace(memory=self.memory)
        losses = lattice_terms(
            joiner, nodes, list(taught.values()), self.backend, config.delay_penalty,
            with_entropy=with_kd and config.alignment_entropy > 0,
        )  # fmt: skip
        terms.update((name, loss.sum()) for name, loss in zip(("pruned", *taught, "entropy"), losses))
        if model.ctc_output is not None and config.ctc_loss_scale > 0:
            logits = model.ctc_output(student.encoder_out)
            terms["ctc"] = _ctc_loss(logits, labels, frames, label_lens, blank)
            if consistency is not None and consistency.ctc > 0:
                terms["ctc_consistency"] = _ctc_consistency(logits, frames)
        terms.update(simple=student.simple_loss, features=feature_loss(own, theirs, frames, T))
        return {**terms, "frames": frames.sum().to(torch.float32)}


def weighted_sum(terms: Dict[str, Tensor], scales: Dict[str, float]) -> Tensor:
    """The loss of all frames, one reduction for every term; divided by ``terms["frames"]``, that of a frame."""
    return torch.stack([scale * terms[name] for name, scale in scales.items() if scale != 0.0]).sum()


def _ctc_loss(logits: Tensor, labels: Tensor, frame_lens: Tensor, label_lens: Tensor, blank: int) -> Tensor:
    """Sum over the batch; an utterance without any valid alignment counts 0."""
    with no_autocast(logits):
        log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
        return F.ctc_loss(log_probs, labels, frame_lens, label_lens, blank=blank, reduction="sum", zero_infinity=True)


def _ctc_consistency(logits: Tensor, frame_lens: Tensor) -> Tensor:
    """Sum over frames of KL(other view || this), the other without gradient; (2 B, T, C) and (2 B,)."""
    with no_autocast(logits):
        log_probs = logits.float().log_softmax(dim=-1).clamp(min=LOG_ZERO)
        other = other_half(log_probs.detach())
        divergence = (other.exp() * (other - log_probs)).sum(dim=-1)
        is_frame = torch.arange(logits.shape[1], device=logits.device) < frame_lens[:, None]
        return divergence.masked_fill(~is_frame, 0.0).sum()

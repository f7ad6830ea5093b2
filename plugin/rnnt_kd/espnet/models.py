"""ESPnet2's two transducers with another loss: the same parameters, the same ``state_dict``, three more in the logs.

loss_simple, loss_pruned   the two terms of the pruned loss, as k2 has them; the second alone where nothing is pruned
loss_kd                    the distillation term, in training only

The teacher is no submodule: it is neither saved, trained, averaged nor synchronised, stays in eval mode, and goes to
the device of its first batch.  It hears the waveform that the student is given; SpecAugment is the student's alone.

B batch, T encoder frames, S labels, P and D sizes of decoder and encoder.
"""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple, Union

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses import Distillation, JoinerParts, TeacherView, transducer_terms
from rnnt_kd.losses.node_scores import Logits
from rnnt_kd.teachers.prune import prune
from rnnt_kd.teachers.views import OnlineTeacher, kept_ranges


@dataclass(frozen=True)
class EspnetTransducer:
    """A model of either task as a ``teachers.interface.Teacher``; no module itself."""

    model: AbsESPnetModel

    @property
    def blank_id(self) -> int:
        return getattr(self.model, "blank_id", 0)

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Of waveforms (B, samples), or features where the data has them, on whatever device they are."""
        if next(self.model.parameters()).device != x.device:
            self.model.to(x.device)
        out, lens = self.model.encode(x, x_lens)
        return out[0] if isinstance(out, tuple) else out, lens  # beside what intermediate CTC wants

    def predict(self, labels: Tensor) -> Tensor:
        self.model.decoder.set_device(labels.device)
        return self.model.decoder(torch.nn.functional.pad(labels, (1, 0), value=self.blank_id))

    def joiner(self, encoder_out: Tensor, predictor_out: Tensor) -> JoinerParts:
        return _joiner(self.model, encoder_out, predictor_out)

    def simple(self, encoder_out: Tensor, predictor_out: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        if not hasattr(self.model, "am_proj"):
            return None
        return self.model.am_proj(encoder_out), self.model.lm_proj(predictor_out)


@dataclass(frozen=True)
class _Run(EspnetTransducer):
    """The student, which ESPnet has run already."""

    outputs: Tuple[Tensor, Tensor, Tensor]  # (B, T, D), (B,), (B, S + 1, P)

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        return self.outputs[:2]

    def predict(self, labels: Tensor) -> Tensor:
        return self.outputs[2]


@dataclass(frozen=True)
class Pruning:
    """ESPnet's ``k2_pruned_loss_args``, by their names and with their values where none is given."""

    prune_range: int = 5
    simple_loss_scaling: float = 0.5
    lm_scale: float = 0.0
    am_scale: float = 0.0
    loss_type: str = "regular"
    reduction: str = "mean"
    padding_idx: int = 0


@dataclass(frozen=True)
class Kd:
    """What a model distils from and how; without ``online`` and ``cache`` there is the loss alone."""

    scale: float
    options: Distillation
    align: str = "strict"
    missing: str = "error"
    alignment_entropy: float = 0.0
    backend: str = "auto"
    online: Optional[OnlineTeacher] = None
    cache: Any = None  # a ``teachers.cache.TeacherCache``, whose packages an online teacher does without

    def view(self, heard: tuple, labels: Tensor, lens: Tensor, T: int, rnnt_type: str) -> Optional[TeacherView]:
        """Of one batch; None: no teacher.  Raises UserError: it does not fit to the batch."""
        speech, speech_lens, ids = heard
        if self.online is not None:
            return self.online.view(speech, speech_lens, labels, lens, T)
        if self.cache is None:
            return None
        if ids is None:
            problem = "this batch has no utt_id, by which a cache is looked up (ESPnet3 keeps it from its models)"
            raise UserError("kd_conf.cache", problem, "", "let the teacher run online: teacher_model")
        self.cache.check_labels(ids, labels)
        cached = self.cache.lookup(ids, lens.tolist(), labels.shape[1], self.missing, self.align).to(speech.device)
        return cached.view(lens, T, shift=self.options.shift, align=self.align, rnnt_type=rnnt_type)


class Distilling(AbsESPnetModel):
    """What both models share.  The task sets ``kd``, ``pruning`` (None: the full lattice) and ``warmup_steps``."""

    kd: Kd
    pruning: Optional[Pruning]
    _heard: tuple
    _logged: Dict[str, Tensor]

    def forward(self, speech, speech_lengths, text, text_lengths, **kwargs):
        """As ESPnet's."""
        if getattr(self, "_is_replica", False):
            problem = "DataParallel would share one teacher among devices"
            raise UserError("--ngpu", problem, "a process a GPU", "add --multiprocessing_distributed true")
        self._heard, self._logged = (speech, speech_lengths, kwargs.get("utt_id")), {}
        loss, stats, weight = super().forward(speech, speech_lengths, text, text_lengths, **kwargs)
        stats.update(force_gatherable(self._logged, loss.device))
        return loss, stats, weight

    def transducer_loss(
        self, encoder_out: Tensor, lens: Tensor, labels: Tensor, label_lens: Tensor,
        decoder_out: Any = None, logits: Optional[Tensor] = None,
    ) -> Tensor:  # fmt: skip
        """0-dim: both terms of the pruned loss, or the loss of the full lattice, and the distillation term.

        Args:
          encoder_out, lens:   (B, T, D) and (B,) integers.
          labels, label_lens:  (B, S) integers, padded with anything, and (B,).
          decoder_out, logits: one of (B, S + 1, P) and, of the full lattice, (B, T, S + 1, C).
        """
        kd, options, (B, T, _), lens = self.kd, self.pruning or Pruning(), encoder_out.shape, lens.long()
        blank = EspnetTransducer(self).blank_id
        is_label = torch.arange(labels.shape[1], device=labels.device) < label_lens.unsqueeze(1)
        labels = labels.masked_fill(~is_label, blank).long()
        view = kd.view(self._heard, labels, lens, T, options.loss_type) if self.training else None
        backend = get_backend(kd.backend, encoder_out.device)
        student: Union[JoinerParts, Logits]
        if self.pruning is None:
            student = Logits(logits.float()) if logits is not None else _joiner(self, encoder_out, decoder_out)
            simple, simple_scale, pruned_scale = encoder_out.new_zeros((), dtype=torch.float32), 0.0, 1.0
            boundary = torch.stack([torch.zeros_like(lens), torch.zeros_like(lens), label_lens.long(), lens], dim=1)
            own = torch.arange(labels.shape[1] + 1, device=labels.device).expand(B, T, -1).contiguous()
        else:
            found = prune(
                _Run(self, (encoder_out, lens, decoder_out)), encoder_out, lens, labels, label_lens, backend=backend,
                rnnt_type=options.loss_type, lm_only_scale=options.lm_scale, am_only_scale=options.am_scale,
            )  # fmt: skip
            student, boundary, simple = found.joiner, found.boundary, found.simple_loss
            own = found.ranges(options.prune_range)
            simple_scale, pruned_scale = self._scales(options.simple_loss_scaling)
        ranges = kept_ranges(view, lambda: own)
        if isinstance(student, Logits) and ranges.shape[2] < student.values.shape[2]:  # a cache has some nodes alone
            at = ranges.clamp(max=labels.shape[1]).unsqueeze(3).expand(-1, -1, -1, student.values.shape[3])
            student = Logits(student.values.gather(2, at))
        pruned, distilled = transducer_terms(
            student, labels, ranges, blank, boundary, options.loss_type, 0.0, "sum",
            teacher=view, kd=kd.options, entropy_scale=kd.alignment_entropy if self.training else 0.0, backend=backend,
        )  # fmt: skip
        divisor = B if options.reduction == "mean" else 1
        self._logged = {"loss_pruned": pruned.detach() / divisor}
        if self.pruning is not None:
            self._logged["loss_simple"] = simple.detach() / divisor
        if view is not None:
            self._logged["loss_kd"] = distilled.detach() / divisor
            pruned = pruned + kd.scale * distilled
        return (simple_scale * simple + pruned_scale * pruned) / divisor

    def _scales(self, simple: float) -> Tuple[float, float]:
        """Of the simple and the pruned loss, by ESPnet's ramp, which counts every batch since the start."""
        self.steps_num += 1
        warm = min(1.0, self.steps_num / self.warmup_steps) if self.warmup_steps > 0 else 1.0
        return 1.0 - warm * (1.0 - simple), 0.1 + 0.9 * warm


class KdTransducerModel(Distilling, ESPnetASRTransducerModel):
    """Of ``asr_transducer``; as ESPnet, it makes whole logits unless ``use_k2_pruned_loss`` is set."""

    def _calc_k2_transducer_pruned_loss(self, encoder_out, decoder_out, labels, encoder_out_len, decoder_out_len, **_):
        return self.transducer_loss(encoder_out, encoder_out_len, labels, decoder_out_len, decoder_out)

    def _calc_transducer_loss(self, encoder_out, joint_out, target, t_len, u_len):
        return self.transducer_loss(encoder_out, t_len, target, u_len, logits=joint_out)


class KdASRModel(Distilling, ESPnetASRModel):
    """Of the hybrid task ``asr`` with ``decoder: transducer``; no logits are made."""

    def _calc_transducer_loss(self, encoder_out: Tensor, encoder_out_lens: Tensor, labels: Tensor):
        is_label = labels != self.ignore_id
        target = labels.masked_fill(~is_label, self.blank_id)
        decoder_out = EspnetTransducer(self).predict(target)
        loss = self.transducer_loss(encoder_out, encoder_out_lens, target, is_label.sum(dim=1), decoder_out)
        if self.training or self.error_calculator_trans is None:
            return loss, None, None
        return loss, *self.error_calculator_trans(encoder_out, target.int())


def _joiner(model: AbsESPnetModel, encoder_out: Tensor, decoder_out: Tensor) -> JoinerParts:
    joint = model.joint_network
    am, lm = joint.lin_enc(encoder_out), joint.lin_dec(decoder_out)
    return JoinerParts(am, lm, joint.lin_out.weight, joint.lin_out.bias, joint.joint_activation)

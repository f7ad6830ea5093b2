"""What distillation asks of a teacher, whatever recipe it comes from.

    from rnnt_kd.teachers.interface import Teacher

B batch, T feature frames of F mel bins, T' encoder frames of D, S labels, P predictor dimension, C labels with blank.
"""

from dataclasses import dataclass
from typing import Optional, Protocol, Tuple, Union

from torch import Tensor

from rnnt_kd.losses import JoinerParts
from rnnt_kd.models.transducer import Transducer


class Teacher(Protocol):
    """A transducer in eval mode: enough to run online (``views.OnlineTeacher``) and to fill a cache."""

    @property
    def blank_id(self) -> int:
        """The label that emits nothing."""

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """x (B, T, F), x_lens (B,) integers -> (B, T', D), (B,) integers."""

    def predict(self, labels: Tensor) -> Tensor:
        """(B, S) int64 without a start symbol, padded with blank -> (B, S + 1, P); row s has seen labels[:, :s]."""

    def joiner(self, encoder_out: Tensor, predictor_out: Tensor) -> JoinerParts:
        """The joiner's inputs, projected before pruning, its activation and its output layer."""

    def simple(self, encoder_out: Tensor, predictor_out: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        """Logits (B, T', C), (B, S + 1, C) of the additive joiner that says which nodes to keep; None: it has none."""


@dataclass(frozen=True)
class OurTransducer:
    """A ``Transducer``, teacher or student, as a ``Teacher``.  No module itself: nobody's parameters or state."""

    model: Transducer

    @property
    def blank_id(self) -> int:
        return self.model.blank_id

    @property
    def training(self) -> bool:
        return self.model.training

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        return self.model.encode(x, x_lens)

    def predict(self, labels: Tensor) -> Tensor:
        return self.model.predict(labels)

    def joiner(self, encoder_out: Tensor, predictor_out: Tensor) -> JoinerParts:
        joiner, output = self.model.joiner, self.model.joiner.output_linear
        am, lm = joiner.encoder_proj(encoder_out), joiner.predictor_proj(predictor_out)
        return JoinerParts(am, lm, output.weight, output.bias, joiner.activation)

    def simple(self, encoder_out: Tensor, predictor_out: Tensor) -> Tuple[Tensor, Tensor]:
        return self.model.simple_am_proj(encoder_out), self.model.simple_lm_proj(predictor_out)


def as_teacher(model: Union[Teacher, Transducer]) -> Teacher:
    return OurTransducer(model) if isinstance(model, Transducer) else model

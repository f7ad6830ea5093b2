"""A model of icefall's interface as a ``Teacher``: of any recipe, of ``jit_script.pt``, or of pip-zipformer.

The interface is ``joiner.{encoder_proj,decoder_proj,output_linear}``, ``decoder`` with ``blank_id``, ``encoder`` or
``forward_encoder``, and the simple heads ``simple_am_proj`` and ``simple_lm_proj``, which may be missing.
"""

from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.losses import JoinerParts
from rnnt_kd.teachers.same import check_teacher

JOINER = ("encoder_proj", "decoder_proj", "output_linear")


class IcefallModel:
    """``model`` in eval mode.  No module itself: nobody's parameters or state.

    It follows the features to their device.  Shapes as in ``rnnt_kd.teachers.interface.Teacher``.

    Raises:
      UserError: a model without a transducer, or with a joiner that is none of ``output_linear(tanh(am + lm))``;
        weights in half precision.
    """

    options: Dict[str, Any] = {}  # of its training, where they are known

    def __init__(self, model: nn.Module, where: object = "teacher"):
        self.model: Any = model.eval()
        self.where = where
        check_teacher(where, model)
        why = why_no_joiner(getattr(model, "joiner", None))
        if why or not hasattr(getattr(model, "decoder", None), "blank_id"):
            expected = "a transducer of icefall's: decoder.blank_id, " + ", ".join(f"joiner.{x}" for x in JOINER)
            raise UserError(where, why or "its decoder has no blank_id", expected)

    @property
    def blank_id(self) -> int:
        return int(self.model.decoder.blank_id)

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        parameter = next(self.model.parameters())
        if parameter.device != x.device:
            self.model.to(x.device)
        run = getattr(self.model, "forward_encoder", self.model.encoder)  # jit_script.pt has the latter alone
        encoder_out, lens = run(x.to(parameter.dtype), x_lens)[:2]
        return encoder_out, lens

    def predict(self, labels: Tensor) -> Tensor:
        return self.model.decoder(nn.functional.pad(labels, (1, 0), value=self.blank_id))

    def joiner(self, encoder_out: Tensor, predictor_out: Tensor) -> JoinerParts:
        joiner = self.model.joiner
        return JoinerParts(joiner.encoder_proj(encoder_out), joiner.decoder_proj(predictor_out), *output_layer(joiner))

    def simple(self, encoder_out: Tensor, predictor_out: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        if not (hasattr(self.model, "simple_am_proj") and hasattr(self.model, "simple_lm_proj")):
            return None
        return self.model.simple_am_proj(encoder_out), self.model.simple_lm_proj(predictor_out)

    def state_dict(self) -> Dict[str, Tensor]:
        return self.model.state_dict()


def kind(model: Any) -> Dict[str, object]:
    """Of a model of icefall's interface, for ``teachers.same.check_same``."""
    decoder = model.decoder
    classes = output_layer(model.joiner)[0].shape[0]
    return {"classes": classes, "blank": decoder.blank_id, "context size": getattr(decoder, "context_size", None)}


def output_layer(joiner: Any) -> Tuple[Tensor, Optional[Tensor]]:
    """Weight and bias as they act: icefall's older ScaledLinear multiplies both by learned scales."""
    linear = joiner.output_linear
    if hasattr(linear, "get_weight"):
        return linear.get_weight(), linear.get_bias()
    return linear.weight, linear.bias


@torch.no_grad()
def why_no_joiner(joiner: Any) -> str:
    """Why it is no ``output_linear(tanh(am + lm))``; "" if it is one, as two frames of numbers show."""
    missing = [name for name in JOINER if not hasattr(joiner, name)]
    if joiner is None or missing:
        return "it has no joiner" if joiner is None else f"its joiner has no {missing[0]}"
    weight, bias = output_layer(joiner)
    am = torch.linspace(-1.0, 2.0, 2 * weight.shape[1]).to(weight).reshape(1, 2, 1, -1)
    expected = nn.functional.linear(torch.tanh(am + am.flip(1)), weight, bias)
    found = joiner(am, am.flip(1), project_input=False)
    if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        return ""
    return "its joiner is another than output_linear(tanh(am + lm))"

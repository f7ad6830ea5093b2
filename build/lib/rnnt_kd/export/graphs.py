"""The three networks as sherpa-onnx calls them, and the metadata it reads.

    encoder.onnx   x (N, T, 80) float32, x_lens (N,) int64 -> encoder_out (N, T', J), encoder_out_lens (N,) int64
    decoder.onnx   y (N, 2) int64                          -> decoder_out (N, J)
    joiner.onnx    encoder_out (N, J), decoder_out (N, J)  -> logit (N, C)

"decoder" is sherpa-onnx's name of the predictor.  The encoder and the decoder file hold their projections
to the joiner, so the joiner adds, squashes and maps.  Parameters keep the names they have in the
transducer (``joiner.encoder_proj.weight``): an export can be read back by name.

Letters: N utterances, T feature frames of 10 ms, T' encoder frames of 40 ms, J joiner dimension, C labels.
"""

from dataclasses import dataclass
from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.models.transducer import Transducer

TRAINING_ONLY = ("simple_am_proj.", "simple_lm_proj.", "ctc_output.")  # heads that no file holds
_AUTHOR = "rnnt_kd"


class EncoderFile(nn.Module):
    """An encoder and the joiner's projection of its output."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.encoder = model.encoder
        self.joiner = nn.ModuleDict({"encoder_proj": model.joiner.encoder_proj})


class OfflineEncoder(EncoderFile):
    """The whole utterance at once."""

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """x (N, T, 80), x_lens (N,) int64 -> (N, T', J), (N,) int64."""
        encoder_out, lens = self.encoder(x, x_lens)
        return self.joiner["encoder_proj"](encoder_out), lens


class PredictorFile(nn.Module):
    """The predictor on one context a row, and the joiner's projection of its output."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.predictor = model.predictor
        self.joiner = nn.ModuleDict({"predictor_proj": model.joiner.predictor_proj})

    def forward(self, y: Tensor) -> Tensor:
        """y (N, context) int64, -1 before the start -> (N, J)."""
        return self.joiner["predictor_proj"](self.predictor(y, need_pad=False)[:, 0])


class JoinerFile(nn.Module):
    """The rest of the joiner."""

    def __init__(self, model: Transducer):
        super().__init__()
        self.joiner = nn.ModuleDict({"output_linear": model.joiner.output_linear})
        self.activation = model.joiner.activation

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """(N, J) twice -> raw logits (N, C)."""
        return self.joiner["output_linear"](self.activation(encoder_out + decoder_out))


@dataclass(frozen=True)
class GraphSpec:
    """One file, as ``onnx_file.write_graph`` needs it."""

    module: nn.Module
    example: Tuple[Tensor, ...]
    input_names: List[str]
    output_names: List[str]
    dynamic_axes: Dict[str, Dict[int, str]]
    metadata: Dict[str, str]


def offline_encoder(model: Transducer) -> GraphSpec:
    """encoder.onnx of an offline system."""
    example = torch.zeros(2, 50, FEATURE_DIM) - 7.5, torch.tensor([50, 31])
    axes = {"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}, "encoder_out": {0: "N", 1: "T_out"}}
    metadata = {"model_type": "conformer", "version": "1", "model_author": _AUTHOR, "comment": "offline transducer"}
    outputs = ["encoder_out", "encoder_out_lens"]
    return GraphSpec(
        OfflineEncoder(model), example, ["x", "x_lens"], outputs, {**axes, "encoder_out_lens": {0: "N"}}, metadata
    )


def predictor_file(model: Transducer) -> GraphSpec:
    """decoder.onnx.  A wrong ``vocab_size`` in its metadata changes the text silently; verify.py compares it."""
    context = model.predictor.context_size
    example = torch.arange(2 * context).reshape(2, context) % model.vocab_size
    metadata = {"vocab_size": str(model.vocab_size), "context_size": str(context), "model_author": _AUTHOR}
    axes = {"y": {0: "N"}, "decoder_out": {0: "N"}}
    return GraphSpec(PredictorFile(model), (example,), ["y"], ["decoder_out"], axes, metadata)


def joiner_file(model: Transducer) -> GraphSpec:
    """joiner.onnx."""
    dim = model.joiner.output_linear.in_features
    axes = {name: {0: "N"} for name in ("encoder_out", "decoder_out", "logit")}
    metadata = {"joiner_dim": str(dim), "model_author": _AUTHOR}
    example = torch.zeros(2, dim), torch.zeros(2, dim)
    return GraphSpec(JoinerFile(model), example, ["encoder_out", "decoder_out"], ["logit"], axes, metadata)

"""The three networks as sherpa-onnx calls them, and the metadata it reads.

    encoder.onnx   x (N, T, 80) float32, x_lens (N,) int64 -> encoder_out (N, T', J), encoder_out_lens (N,) int64
    decoder.onnx   y (N, 2) int64                          -> decoder_out (N, J)
    joiner.onnx    encoder_out (N, J), decoder_out (N, J)  -> logit (N, C)

"decoder" is sherpa-onnx's name of the predictor.  The encoder and the decoder file hold their projections
to the joiner, so the joiner adds, squashes and maps.  Parameters keep the names they have in the
transducer (``joiner.encoder_proj.weight``): an export can be read back by name.

A streaming encoder is what sherpa-onnx calls its model type ``conformer``:

    x (N, T, 80), cached_attn (L, left, N, D), cached_conv (L, K - 1, N, D), processed_lens (N,) int64
    -> encoder_out (N, chunk, J), new_cached_attn, new_cached_conv

The client reads the sizes from the metadata, starts with caches of zeros, passes T feature frames and moves on by
``decode_chunk_len`` of them.  After an endpoint ``processed_lens`` starts at 0 again while the caches go on: the
encoder does not count by it (see ``StreamingConformer.streaming_forward``).

Letters: N utterances, T feature frames of 10 ms, T' encoder frames of 40 ms, J joiner dimension, C labels,
L layers, D dimension of the encoder, K taps of its convolutions.
"""

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.models import interfaces
from rnnt_kd.models.transducer import Transducer

TRAINING_ONLY = ("simple_am_proj.", "simple_lm_proj.", "ctc_output.")  # heads that no file holds
_AUTHOR = "rnnt_kd"


def stored(state: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """What files hold of a ``state_dict``: not how many batches a BatchNorm has seen."""
    return {name: value for name, value in state.items() if value.is_floating_point()}


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


class StreamingEncoderFile(EncoderFile):
    """The next chunk."""

    encoder: interfaces.StreamingEncoder

    def forward(
        self, x: Tensor, cached_attn: Tensor, cached_conv: Tensor, processed_lens: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """``streaming_forward`` with (N, chunk, J) in place of (N, chunk, D)."""
        encoder_out, *caches = self.encoder.streaming_forward(x, cached_attn, cached_conv, processed_lens)
        return self.joiner["encoder_proj"](encoder_out), *caches


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


def streaming_encoder(model: Transducer) -> GraphSpec:
    """encoder.onnx of a streaming system; all sizes but N are fixed."""
    encoder = encoder_of(model)
    T, step = encoder.feature_frames(encoder.chunk_frames), encoder.subsampling_factor * encoder.chunk_frames
    attn, conv = encoder.init_state(2)
    example = torch.zeros(2, T, FEATURE_DIM) - 7.5, torch.randn(attn.shape), torch.randn(conv.shape)
    metadata = {
        "model_type": "conformer",
        "version": "1",
        "model_author": _AUTHOR,
        "comment": "streaming transducer",
        "T": T,
        "decode_chunk_len": step,
        "left_context": attn.shape[1],
        "encoder_dim": attn.shape[3],
        "num_encoder_layers": attn.shape[0],
        "cnn_module_kernel": conv.shape[1] + 1,
        "pad_length": T - step,
    }
    inputs = ["x", "cached_attn", "cached_conv", "processed_lens"]
    outputs = ["encoder_out", "new_cached_attn", "new_cached_conv"]
    axes = {name: {batch_axis(name): "N"} for name in (*inputs, *outputs)}
    told = {key: str(value) for key, value in metadata.items()}
    processed = torch.tensor([0, step])
    return GraphSpec(StreamingEncoderFile(model), (*example, processed), inputs, outputs, axes, told)


def predictor_file(model: Transducer) -> GraphSpec:
    """decoder.onnx.  A wrong ``vocab_size`` in its metadata changes the text silently; ``check`` compares it."""
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


def batch_axis(name: str) -> int:
    """Of an input or output of that name, the axis of the utterances."""
    return 2 if "cached" in name else 0


def fixed(spec: GraphSpec, frames: int) -> GraphSpec:
    """The same for one utterance of ``frames`` feature frames: no axis is dynamic."""
    example = []
    for name, value in zip(spec.input_names, spec.example, strict=True):
        axes = spec.dynamic_axes[name]
        sizes = [{"N": 1, "T": frames}[axes[axis]] if axis in axes else size for axis, size in enumerate(value.shape)]
        example.append(value.new_full(sizes, frames if name == "x_lens" else value.flatten()[0].item()))
    return replace(spec, example=tuple(example), dynamic_axes={})


def encoder_of(model: Transducer) -> interfaces.StreamingEncoder:
    """The encoder of a streaming transducer."""
    assert isinstance(model.encoder, interfaces.StreamingEncoder)
    return model.encoder


@torch.no_grad()
def random_chunks(
    model: Transducer, generator: torch.Generator, batch_size: int, number: int
) -> List[Tuple[Tensor, ...]]:
    """Inputs of the network for ``number`` chunks in a row, each with the caches that torch computes."""
    encoder = encoder_of(model)
    caches = encoder.init_state(batch_size)
    T, step = encoder.feature_frames(encoder.chunk_frames), encoder.subsampling_factor * encoder.chunk_frames
    found = []
    for index in range(number):
        x = torch.randn(batch_size, T, FEATURE_DIM, generator=generator) * 3.5 - 7.5
        found.append((x, *caches, torch.full((batch_size,), index * step)))
        caches = encoder.streaming_forward(*found[-1])[1:]
    return found

"""A streaming encoder as sherpa-onnx calls its model type ``conformer``.

    x (N, T, 80), cached_attn (L, left, N, D), cached_conv (L, K - 1, N, D), processed_lens (N,) int64
    -> encoder_out (N, chunk, J), new_cached_attn, new_cached_conv

The client reads the sizes from the metadata, starts with caches of zeros, passes T feature frames and moves on
by ``decode_chunk_len`` of them.  After an endpoint ``processed_lens`` starts at 0 again while the caches go on:
the encoder does not count by it (see ``StreamingConformer.streaming_forward``).

Letters as in ``graphs.py``, and: L layers, D dimension of the encoder, K taps of its convolutions.
"""

from typing import List, Tuple

import torch
from torch import Tensor

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.export.graphs import EncoderFile, GraphSpec
from rnnt_kd.models import interfaces
from rnnt_kd.models.transducer import Transducer


def encoder_of(model: Transducer) -> interfaces.StreamingEncoder:
    """The encoder of a streaming transducer."""
    assert isinstance(model.encoder, interfaces.StreamingEncoder)
    return model.encoder


class StreamingEncoderFile(EncoderFile):
    """The next chunk."""

    encoder: interfaces.StreamingEncoder

    def forward(
        self, x: Tensor, cached_attn: Tensor, cached_conv: Tensor, processed_lens: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """``streaming_forward`` with (N, chunk, J) in place of (N, chunk, D)."""
        encoder_out, *caches = self.encoder.streaming_forward(x, cached_attn, cached_conv, processed_lens)
        return self.joiner["encoder_proj"](encoder_out), *caches


def streaming_encoder(model: Transducer) -> GraphSpec:
    """encoder.onnx of a streaming system; all sizes but N are fixed."""
    encoder = encoder_of(model)
    T, step = encoder.feature_frames(encoder.chunk_frames), encoder.subsampling_factor * encoder.chunk_frames
    attn, conv = encoder.init_state(2)
    example = torch.zeros(2, T, FEATURE_DIM) - 7.5, torch.randn(attn.shape), torch.randn(conv.shape)
    metadata = {
        "model_type": "conformer",
        "version": "1",
        "model_author": "rnnt_kd",
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
    axes = {name: {2 if "cached" in name else 0: "N"} for name in (*inputs, *outputs)}
    told = {key: str(value) for key, value in metadata.items()}
    processed = torch.tensor([0, step])
    return GraphSpec(StreamingEncoderFile(model), (*example, processed), inputs, outputs, axes, told)


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

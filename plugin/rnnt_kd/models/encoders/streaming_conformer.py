"""Conformer that recognises while it listens: chunks, limited left context, and full context too.

The network of ``conformer.py``, parameter for parameter, with three changes that bound what a
frame sees of the future:
  * the two convolutions in front are not padded in time: frame t of 40 ms sees the feature frames
    4t .. 4t + 6, and what lies behind the end of an utterance is digital silence;
  * the depthwise convolutions are causal;
  * attention goes by chunks: a frame sees its own chunk and ``left_frames`` frames before it.
In training the chunk and the left context are drawn anew for every batch, and some batches see
everything, so that one set of weights serves any chunk (Zhang et al., arXiv 2012.05481).

Promises
  * ``streaming_forward``, chunk by chunk, gives what ``forward`` gives with the mask of chunks.
  * Padding never changes an utterance, as in ``conformer.py``.
  * No Python branch depends on data, so torch.onnx follows both.

Letters as in ``conformer.py``, and: L layers, K taps of the depthwise convolution, chunk and left
in output frames (40 ms).
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders import conformer
from rnnt_kd.models.encoders.conformer import MASKED_SCORE, Conformer, ConformerLayer, rotary_tables
from rnnt_kd.models.subsampling import FEATURE_MEAN, FEATURE_SCALE, ConvSubsampling, subsampled_lengths

SIZES = {**conformer.SIZES}

MOST_FRAMES = 100_000  # of a chunk, and to its left: more than an hour
LOOKAHEAD = 3  # feature frames that the front end needs behind the 4 of the last output frame
SILENCE = -15.942385  # log mel energy of zeros: the logarithm's floor, float32's epsilon
FULL_CONTEXT_BATCHES = 0.4  # share of training batches that see everything


class StreamingConformer(Conformer):
    """The encoder.

    Args:
      chunk_frames: output frames of a chunk, 16 = 640 ms: the default where one recognises with chunks, and the
                    middle of those of training.
      left_frames:  output frames seen before a chunk, likewise.
      input_norm:   "fixed" only: a mean over the utterance would see the future.
      others:       of ``Conformer``.

    Attributes: ``eval_chunk_frames``, what ``forward`` uses in eval mode; 0: it sees everything.

    Raises:
      UserError: dimensions that do not fit together, another ``input_norm``, no frames.
    """

    causal_convolution = True
    subsampling: "StreamingSubsampling"

    def __init__(
        self,
        feature_dim: int = 80,
        dropout: float = 0.1,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        feedforward_dim: int,
        depthwise_kernel: int,
        subsampling_channels: int,
        input_norm: str = "fixed",
        chunk_frames: int = 16,
        left_frames: int = 64,
        layer_widths: Optional[Sequence[Sequence[int]]] = None,
    ):
        if input_norm != "fixed":
            raise UserError("encoder option input_norm", f"{input_norm!r} in a streaming encoder", "fixed")
        for name, value in (("chunk_frames", chunk_frames), ("left_frames", left_frames)):
            if not 1 <= value <= MOST_FRAMES:
                raise UserError(f"encoder option {name}", str(value), f"1 to {MOST_FRAMES} frames")
        super().__init__(
            feature_dim,
            dropout,
            dim=dim,
            num_layers=num_layers,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            depthwise_kernel=depthwise_kernel,
            subsampling_channels=subsampling_channels,
            input_norm=input_norm,
            layer_widths=layer_widths,
        )
        self.depthwise_kernel = depthwise_kernel
        self.chunk_frames, self.left_frames = chunk_frames, left_frames
        self.eval_chunk_frames = chunk_frames

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """``Conformer.forward`` in which a frame sees its chunk and the left context."""
        x, lens = self.subsampling(x, x_lens)
        frames = torch.arange(x.size(1), device=x.device)
        padding_mask = frames.unsqueeze(0) >= lens.unsqueeze(1)  # (N, T')
        unseen = padding_mask.unsqueeze(1)  # (N, 1, T')
        chunk, left = self._context()
        if chunk:
            first = torch.div(frames, chunk, rounding_mode="floor").unsqueeze(1) * chunk  # of each frame's chunk
            unseen = unseen | ((frames < first - left) | (frames >= first + chunk)).unsqueeze(0)  # (N, T', T')
        score_bias = unseen.to(x.dtype) * MASKED_SCORE
        cos, sin = rotary_tables(x.size(1), self.head_dim, x)
        frame_padding = padding_mask.unsqueeze(2)
        for layer in self.layers:
            x = layer(x, score_bias, frame_padding, cos, sin)
        return self.final_norm(x).masked_fill(frame_padding, 0.0), lens

    def feature_frames(self, chunk: int) -> int:
        """Feature frames that ``streaming_forward`` needs for a chunk: 67 for 16; it moves on by 4 * chunk."""
        return self.subsampling_factor * chunk + LOOKAHEAD

    def init_state(self, batch_size: int) -> Tuple[Tensor, Tensor]:
        """cached_attn (L, left, N, D) and cached_conv (L, K - 1, N, D) before the first chunk: zeros."""
        like = self.final_norm.weight
        layers = sum(isinstance(layer, ConformerLayer) for layer in self.layers)
        shape = (layers, self.left_frames, batch_size, self.output_dim)
        return like.new_zeros(shape), like.new_zeros(shape[0], self.depthwise_kernel - 1, *shape[2:])

    def streaming_forward(
        self, x: Tensor, cached_attn: Tensor, cached_conv: Tensor, processed_lens: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Encode the next chunk; what sherpa-onnx calls for its model type ``conformer``.

        Args:
          x:              (N, 4 * chunk + 3, feature_dim) float32 log-mel energies.
          cached_attn:    (L, left, N, D) normalised inputs of the attentions; of L layers, those that are not cut out.
                          A row of zeros is one that is not there yet: how much left context there is cannot be had from
                          ``processed_lens``.
          cached_conv:    (L, K - 1, N, D) inputs of the depthwise convolutions; zeros where a layer has fewer channels.
          processed_lens: (N,) int64 feature frames so far.  Not used: the client counts from 0 again after an
                          endpoint and keeps the caches.  It stays an input of the graph, for the client passes it.
        Returns:
          encoder_out (N, chunk, D), and both caches for the next call.
        """
        x = x + (processed_lens * 0).to(x.dtype).view(-1, 1, 1)
        x = self.subsampling.chunk(x)
        left, frames = cached_attn.size(1), x.size(1)
        absent = (cached_attn[0].abs().sum(2) == 0).transpose(0, 1)  # (N, left)
        score_bias = F.pad(absent.to(x.dtype) * MASKED_SCORE, (0, frames)).unsqueeze(1)  # (N, 1, left + chunk)
        cos, sin = rotary_tables(left + frames, self.head_dim, x)
        new_attn: List[Tensor] = []
        new_conv: List[Tensor] = []
        for layer in self.layers:
            if not isinstance(layer, ConformerLayer):
                x = layer(x)
                continue
            caches = cached_attn[len(new_attn)], cached_conv[len(new_conv)]
            x, attn, conv = _layer_chunk(layer, x, *caches, score_bias, cos, sin)
            new_attn.append(attn)
            new_conv.append(conv)
        return self.final_norm(x), torch.stack(new_attn), torch.stack(new_conv)

    @staticmethod
    def weights_from_full_context(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """A ``Conformer``'s weights, ready to start from.

        The depthwise kernels keep their taps for the present and the past, at the places these have here; the taps
        that saw the future are gone, and those for the farther past start at zero.
        """
        moved = dict(weights)
        for name, kernel in weights.items():
            if name.endswith("convolution.depthwise.weight"):
                future = kernel.size(-1) // 2
                moved[name] = F.pad(kernel[..., : kernel.size(-1) - future], (future, 0))
        return moved

    def _context(self) -> Tuple[int, int]:
        """Chunk and left context of this call; a chunk of 0 sees everything."""
        if not self.training:
            return self.eval_chunk_frames, self.left_frames
        if torch.rand(()).item() < FULL_CONTEXT_BATCHES:
            return 0, 0
        return _around(self.chunk_frames), _around(self.left_frames)


class StreamingSubsampling(ConvSubsampling):
    """The front end without padding in time; behind an utterance's end comes silence, as in a stream."""

    time_padding = 0

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, T, feature_dim), (N,) -> (N, ceil(T / 4), dim), (N,)."""
        lens = subsampled_lengths(subsampled_lengths(x_lens))
        padding = torch.arange(x.size(1), device=x.device).unsqueeze(0) >= x_lens.unsqueeze(1)
        x = x.masked_fill(padding.unsqueeze(2), SILENCE)
        return self.chunk(F.pad(x, (0, 0, 0, 3 + LOOKAHEAD), value=SILENCE)), lens

    def chunk(self, x: Tensor) -> Tensor:
        """(N, T, feature_dim) -> (N, (T - 3) // 4, dim), nothing added in front or behind."""
        x = F.silu(self.conv1(((x - FEATURE_MEAN) * FEATURE_SCALE).unsqueeze(1)))
        return self._output(F.silu(self.conv2(x)))


StreamingConformer.front_end = StreamingSubsampling


def _layer_chunk(
    layer: ConformerLayer, x: Tensor, cached_attn: Tensor, cached_conv: Tensor, score_bias: Tensor, cos: Any, sin: Any
) -> Tuple[Tensor, Tensor, Tensor]:
    """``ConformerLayer.forward`` for the frames after the cached ones; caches are (time, N, D)."""
    left, past = cached_attn.size(0), cached_conv.size(0)
    x = torch.add(x, layer.feedforward1(x), alpha=0.5)
    rows = torch.cat((cached_attn.transpose(0, 1), layer.attention.norm(x)), dim=1)  # (N, left + chunk, D)
    x = x + layer.attention.attend(rows, score_bias, cos, sin, left)
    channels = layer.convolution.depthwise.in_channels
    gated = torch.cat((cached_conv[..., :channels].transpose(0, 1), layer.convolution.gate(x)), dim=1)
    x = x + layer.convolution.filter(gated)
    x = layer.output_norm(torch.add(x, layer.feedforward2(x), alpha=0.5))
    if channels < cached_conv.size(-1):
        gated = F.pad(gated, (0, cached_conv.size(-1) - channels))
    return x, rows[:, -left:].transpose(0, 1), gated[:, -past:].transpose(0, 1)


def _around(middle: int) -> int:
    """A number between half and twice ``middle``, at least 1, drawn from torch's global generator."""
    return int(torch.randint(max(1, middle // 2), 2 * middle + 1, ()).item())

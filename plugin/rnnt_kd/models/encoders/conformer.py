"""Conformer encoder (Gulati et al., arXiv 2005.08100), offline, frame rate divided by 4.

Promises
  * Padding never changes an utterance: attention and every convolution see zeros where
    an utterance ends, whatever finite values the padding holds.
  * No Python branch depends on data, so torch.onnx and torch.export follow it.
  * One frame of input gives one frame of output; T frames give ceil(T / 4).
  * The input is raw log-mel energies; normalisation is inside, and loudness makes no difference.

Departures from the paper, all for speed on CPUs or for the promises above: rotary position
embedding (Su et al., arXiv 2104.09864) is the relative position, LayerNorm stands where the
paper has BatchNorm (BatchNorm mixes utterances), no dropout on attention weights, few
channels in the convolutional front end (``models/subsampling.py``).

Letters: N utterances, T input frames (10 ms), T' output frames (40 ms), D model dimension,
H heads, E = D / H.

Names that other parts match by pattern: linear maps are ``*linear*`` or ``*proj*``,
pointwise convolutions ``*pointwise*`` (they are nn.Linear), depthwise ones ``*depthwise*``.
What can be cut out of a layer, and makes it smaller, is named by ``units()`` of its modules: ``sparsity/units.py``.
"""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.models.interfaces import UnitPlaces
from rnnt_kd.models.subsampling import INPUT_NORMS, ConvSubsampling, subsampled_lengths

# Parameters are those of a whole transducer: tiny with 80 labels and a predictor and joiner of 128 dimensions,
# the others with 500 labels and 512 dimensions.
SIZES = {
    "tiny": dict(
        dim=96, num_layers=4, num_heads=4, feedforward_dim=192, depthwise_kernel=15, subsampling_channels=16
    ),  # 0.7 M
    "S": dict(
        dim=144, num_layers=16, num_heads=4, feedforward_dim=576, depthwise_kernel=31, subsampling_channels=64
    ),  # 10 M
    "M": dict(
        dim=256, num_layers=18, num_heads=4, feedforward_dim=1024, depthwise_kernel=31, subsampling_channels=96
    ),  # 30 M
    "L": dict(
        dim=512, num_layers=19, num_heads=8, feedforward_dim=2048, depthwise_kernel=31, subsampling_channels=128
    ),  # 118 M
}

MASKED_SCORE = -1e4  # exp(-1e4) is 0 in every precision, and 1e4 fits float16


class Conformer(nn.Module):
    """The encoder.

    Args:
      feature_dim:          mel bins of the input.
      dropout:              on the outputs of every residual branch and inside feed-forward modules.
      dim:                  D.
      num_layers:           conformer blocks.
      num_heads:            H; D / H must be even.
      feedforward_dim:      inner dimension of the feed-forward modules.
      depthwise_kernel:     odd; taps of the depthwise convolution, in output frames.
      subsampling_channels: channels of the two convolutions in front.
      input_norm:           "utterance" subtracts each bin's mean over the utterance, "fixed"
                            subtracts one constant (for streaming; no look at the future).
      layer_widths:         of a conformer that is smaller than these numbers say, for each layer: heads, units of the
                            first feed-forward module, channels, units of the second; all 0: the layer is gone, but
                            its last LayerNorm.  E stays D / H.

    Attributes: ``output_dim`` (D), ``subsampling_factor`` (4).

    Raises:
      UserError: dimensions that do not fit together, an unknown ``input_norm``.
    """

    subsampling_factor = 4
    front_end = ConvSubsampling
    causal_convolution = False

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
        input_norm: str = "utterance",
        layer_widths: Optional[Sequence[Sequence[int]]] = None,
    ):
        super().__init__()
        self.output_dim = dim
        self.head_dim = dim // num_heads
        if dim % (2 * num_heads):
            raise UserError("encoder option dim", f"{dim} with num_heads {num_heads}", "a multiple of 2 * num_heads")
        if depthwise_kernel % 2 == 0:
            raise UserError("encoder option depthwise_kernel", str(depthwise_kernel), "an odd number")
        if input_norm not in INPUT_NORMS:
            raise UserError(
                "encoder option input_norm", f"unknown value {input_norm!r}", f"one of {', '.join(INPUT_NORMS)}"
            )
        whole = [num_heads, feedforward_dim, dim, feedforward_dim]
        widths = [whole] * num_layers if layer_widths is None else layer_widths
        if not _are_widths(widths, num_layers, whole):
            expected = f"{num_layers} lists of heads, units, channels, units: from 1 to {', '.join(map(str, whole))}"
            raise UserError("encoder option layer_widths", str(widths), f"{expected}; or, but not in all, only 0")
        self.subsampling = self.front_end(feature_dim, dim, subsampling_channels, dropout, input_norm)
        self.layers = nn.ModuleList(
            ConformerLayer(dim, row, self.head_dim, depthwise_kernel, dropout, self.causal_convolution)
            if any(row)
            else GoneLayer(dim)
            for row in widths
        )
        self.final_norm = nn.LayerNorm(dim)
        self._initialise()

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
          x:      (N, T, feature_dim) float32, log-mel energies; finite, padding included.
          x_lens: (N,) int64, frames of each utterance, 1 <= x_lens <= T.
        Returns:
          encoder_out (N, T', D), zero on padding, and encoder_out_lens (N,) int64;
          T' = ceil(T / 4).
        """
        x, lens = self.subsampling(x, x_lens)
        padding_mask = torch.arange(x.size(1), device=x.device).unsqueeze(0) >= lens.unsqueeze(1)  # (N, T')
        score_bias = padding_mask.to(x.dtype).unsqueeze(1) * MASKED_SCORE  # (N, 1, T'), added to every row of scores
        cos, sin = rotary_tables(x.size(1), self.head_dim, x)
        frame_padding = padding_mask.unsqueeze(2)
        for layer in self.layers:
            x = layer(x, score_bias, frame_padding, cos, sin)
        return self.final_norm(x).masked_fill(frame_padding, 0.0), lens

    @staticmethod
    def output_lengths(x_lens: Tensor) -> Tensor:
        """ceil(x_lens / 4), elementwise, int64."""
        return subsampled_lengths(subsampled_lengths(x_lens))

    def options_of(self, weights: Dict[str, Tensor]) -> Dict[str, Any]:
        """The options that make an encoder of the widths of ``weights``, this one's from which units are cut out."""
        names = ("attention.qkv_proj", "feedforward1.linear_in", "convolution.depthwise", "feedforward2.linear_in")
        rows = [[len(weights.get(f"layers.{n}.{name}.bias", ())) for name in names] for n in range(len(self.layers))]
        return {"layer_widths": [[row[0] // (3 * self.head_dim), *row[1:]] for row in rows]}

    def units(self) -> UnitPlaces:
        """Whole layers, each all its branches; a layer of which nothing is left there is none any more."""
        parts = []
        for number, layer in enumerate(self.layers):
            for name, parameter in layer.named_parameters():
                if not name.startswith("output_norm."):
                    places = torch.full((len(self.layers), len(parameter)), -1)
                    places[number] = torch.arange(len(parameter))
                    parts.append((f"layers.{number}.{name}", 0, places))
        return {"layers": parts}

    def _initialise(self) -> None:
        """Unit-variance maps; maps that end a residual branch start small, so that depth does not matter at first."""
        branch_scale = (4 * len(self.layers)) ** -0.5
        for name, module in self.layers.named_modules():
            if isinstance(module, nn.Linear):
                scale = branch_scale if name.endswith(("linear_out", "out_proj", "pointwise_out")) else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                nn.init.zeros_(module.bias)


class ConformerLayer(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, LayerNorm; all pre-norm residual branches."""

    def __init__(
        self, dim: int, widths: Sequence[int], head_dim: int, depthwise_kernel: int, dropout: float, causal: bool
    ):
        super().__init__()
        heads, units1, channels, units2 = widths
        self.feedforward1 = FeedForward(dim, units1, dropout)
        self.attention = SelfAttention(dim, heads, head_dim)
        self.convolution = ConvolutionModule(dim, depthwise_kernel, channels, causal)
        self.feedforward2 = FeedForward(dim, units2, dropout)
        self.output_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, score_bias: Tensor, frame_padding: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, T', D) -> (N, T', D); ``frame_padding`` is (N, T', 1) bool, True = padding."""
        x = torch.add(x, self.dropout(self.feedforward1(x)), alpha=0.5)
        x = x + self.dropout(self.attention(x, score_bias, cos, sin))
        x = x + self.dropout(self.convolution(x, frame_padding))
        x = torch.add(x, self.dropout(self.feedforward2(x)), alpha=0.5)
        return self.output_norm(x)


class GoneLayer(nn.Module):
    """What is left of a ``ConformerLayer`` whose branches are cut out: its last LayerNorm."""

    def __init__(self, dim: int):
        super().__init__()
        self.output_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return self.output_norm(x)


class FeedForward(nn.Module):
    """LayerNorm, Linear, SiLU, dropout, Linear."""

    def __init__(self, dim: int, inner_dim: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear_in = nn.Linear(dim, inner_dim)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(self.dropout(F.silu(self.linear_in(self.norm(x)))))

    def units(self) -> UnitPlaces:
        each = torch.arange(self.linear_in.out_features).unsqueeze(1)
        parts = [("linear_in.weight", 0, each), ("linear_in.bias", 0, each), ("linear_out.weight", 1, each)]
        return {"ffn": parts}


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary relative positions; one matrix makes queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = nn.LayerNorm(dim)
        self.qkv_proj = nn.Linear(dim, 3 * num_heads * head_dim)
        self.out_proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor, score_bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, T', D) -> (N, T', D); ``score_bias`` (N, 1 or T', T') is very negative at keys not to be seen."""
        return self.attend(self.norm(x), score_bias, cos, sin)

    def attend(self, x: Tensor, score_bias: Tensor, cos: Tensor, sin: Tensor, past: int = 0) -> Tensor:
        """``forward`` on an input that is normalised already; of the frames behind the first ``past``."""
        batch, frames = x.size(0), x.size(1)
        heads, head_dim = self.num_heads, self.head_dim
        qkv = self.qkv_proj(x).view(batch, frames, 3, heads, head_dim).permute(2, 0, 3, 1, 4)  # (3, N, H, T', E)
        if past:
            query, key = rotate(qkv[0, :, :, past:], cos[past:], sin[past:]), rotate(qkv[1], cos, sin)
        else:
            query, key = rotate(qkv[:2], cos, sin).unbind(0)
        scores = torch.matmul(query * head_dim**-0.5, key.transpose(2, 3)) + score_bias.unsqueeze(1)
        context = torch.matmul(scores.softmax(-1), qkv[2])  # (N, H, T', E)
        return self.out_proj(context.transpose(1, 2).reshape(batch, frames - past, heads * head_dim))

    def units(self) -> UnitPlaces:
        rows = torch.arange(self.num_heads * self.head_dim).view(self.num_heads, -1)
        every = torch.cat([rows + block * rows.numel() for block in range(3)], dim=1)  # of queries, keys and values
        return {"heads": [("qkv_proj.weight", 0, every), ("qkv_proj.bias", 0, every), ("out_proj.weight", 1, rows)]}


class ConvolutionModule(nn.Module):
    """LayerNorm, pointwise + GLU, depthwise convolution over time, LayerNorm, SiLU, pointwise.

    ``causal``: the convolution ends at its frame, instead of having its middle there.
    """

    def __init__(self, dim: int, kernel: int, channels: int, causal: bool = False):
        super().__init__()
        self.past = kernel - 1 if causal else 0  # zeros in front, instead of the convolution's own
        self.norm = nn.LayerNorm(dim)
        self.pointwise_in = nn.Linear(dim, 2 * channels)
        self.depthwise = nn.Conv1d(channels, channels, kernel, padding=0 if causal else kernel // 2, groups=channels)
        self.depthwise_norm = ChannelNorm(channels)
        self.pointwise_out = nn.Linear(channels, dim)

    def forward(self, x: Tensor, frame_padding: Tensor) -> Tensor:
        """(N, T', D) -> (N, T', D)."""
        x = self.gate(x).masked_fill(frame_padding, 0.0)
        return self.filter(F.pad(x, (0, 0, self.past, 0)) if self.past else x)

    def gate(self, x: Tensor) -> Tensor:
        """The part before the depthwise convolution: (N, T', D) -> (N, T', channels)."""
        return F.glu(self.pointwise_in(self.norm(x)), dim=-1)

    def filter(self, x: Tensor) -> Tensor:
        """The depthwise convolution and what follows; (N, past + T', channels) -> (N, T', D)."""
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.pointwise_out(F.silu(self.depthwise_norm(x)))

    def units(self) -> UnitPlaces:
        each = torch.arange(self.depthwise.out_channels).unsqueeze(1)
        gated = torch.cat((each, each + len(each)), dim=1)
        own = [(f"{name}.{kind}", 0, each) for name in ("depthwise", "depthwise_norm") for kind in ("weight", "bias")]
        into: List[Tuple[str, int, Tensor]] = [("pointwise_in.weight", 0, gated), ("pointwise_in.bias", 0, gated)]
        return {"channels": [*own, *into, ("pointwise_out.weight", 1, each)]}


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the last axis; with ``skips_zeros`` as if the entries whose weight is 0 were not there.

    So a network whose channels are hidden by masks is the one that is left when they are cut out.
    """

    skips_zeros = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.skips_zeros:
            return super().forward(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        kept = (self.weight != 0).to(wide)
        number = kept.sum().clamp(min=1.0)
        x = x.to(wide) * kept
        centred = (x - x.sum(-1, keepdim=True) / number) * kept
        variance = centred.square().sum(-1, keepdim=True) / number
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _are_widths(widths: Any, num_layers: int, whole: Sequence[int]) -> bool:
    """A list for each layer, of whole numbers from 1 to those of ``whole``, or of 0 alone, but not all of them."""
    if not isinstance(widths, (list, tuple)) or len(widths) != num_layers:
        return False
    if not all(isinstance(row, (list, tuple)) and len(row) == len(whole) for row in widths):
        return False
    if not all(type(own) is int and own <= most for row in widths for own, most in zip(row, whole, strict=True)):
        return False
    return any(map(any, widths)) and all(min(row) >= 1 or not any(row) for row in widths)


def rotary_tables(frames: int, head_dim: int, like: Tensor) -> Tuple[Tensor, Tensor]:
    """cos and sin of the rotation angles, each (frames, head_dim / 2), dtype and device of ``like``."""
    half = torch.arange(head_dim // 2, device=like.device, dtype=torch.float32)
    rates = torch.exp(half * (-math.log(10000.0) / (head_dim // 2)))
    angles = torch.arange(frames, device=like.device, dtype=torch.float32).unsqueeze(1) * rates
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + E/2]) of the last axis by an angle that grows with the frame.

    Then the product of a query and a key depends on the distance of their frames alone.

    Args:
      x:        (..., frames, E).
      cos, sin: (frames, E / 2).
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

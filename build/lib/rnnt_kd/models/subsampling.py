"""Input normalisation and the convolutional front end: log-mel frames every 10 ms -> vectors every 40 ms.

Two 3x3 convolutions of stride 2 with one zero frame on either side, so ceil(ceil(T / 2) / 2)
frames leave and a single frame suffices.  Frames past the end of an utterance are zero before
each convolution, exactly as the convolution's own zero padding is when the utterance is alone.
"""

from typing import Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_NORMS = ("utterance", "fixed")
FEATURE_MEAN = -7.5  # of natural-log mel energies of speech with samples in [-1, 1]; AN4 and LibriSpeech: -7.6
FEATURE_SCALE = 0.3  # one over their spread about each bin's mean: 3.5 there


def subsampled_lengths(lens: Tensor) -> Tensor:
    """Frames after one convolution of stride 2: ceil(lens / 2), int64."""
    return torch.div(lens + 1, 2, rounding_mode="floor")


class ConvSubsampling(nn.Module):
    """(N, T, feature_dim) float32, (N,) int64 -> (N, ceil(T / 4), dim), (N,) int64.

    Args:
      feature_dim: mel bins.
      dim:         output dimension.
      channels:    of both convolutions; the cost of the second grows with their square.
      dropout:     on the output.
      input_norm:  "utterance" or "fixed", see Conformer.
    """

    time_padding = 1  # zero frames on either side of each convolution's input

    def __init__(self, feature_dim: int, dim: int, channels: int, dropout: float, input_norm: str):
        super().__init__()
        self.input_norm = input_norm
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=(self.time_padding, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=(self.time_padding, 1))
        bins = (feature_dim + 3) // 4
        self.linear = nn.Linear(channels * bins, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        x = self._normalise(x, x_lens)
        lens = subsampled_lengths(x_lens)
        x = F.silu(self.conv1(x.unsqueeze(1)))  # (N, channels, T/2, bins/2)
        x = x.masked_fill(_frame_padding(x.size(2), lens).unsqueeze(1), 0.0)
        lens = subsampled_lengths(lens)
        return self._output(F.silu(self.conv2(x))), lens

    def _output(self, x: Tensor) -> Tensor:
        """(N, channels, T/4, bins/4) -> (N, T/4, dim)."""
        return self.dropout(self.norm(self.linear(x.transpose(1, 2).flatten(2))))

    def _normalise(self, x: Tensor, x_lens: Tensor) -> Tensor:
        """Centre and scale; padding becomes zero."""
        padding = _frame_padding(x.size(1), x_lens)
        x = x.masked_fill(padding, 0.0)
        if self.input_norm == "utterance":
            mean: Union[Tensor, float] = x.sum(1, keepdim=True) / x_lens.clamp(min=1).to(x.dtype).view(-1, 1, 1)
        else:
            mean = FEATURE_MEAN
        return ((x - mean) * FEATURE_SCALE).masked_fill(padding, 0.0)


def _frame_padding(frames: int, lens: Tensor) -> Tensor:
    """(N, frames, 1) bool, True = padding."""
    return (torch.arange(frames, device=lens.device).unsqueeze(0) >= lens.unsqueeze(1)).unsqueeze(2)

"""Weights of few bits: the grid that they are rounded to, and a model that learns on that grid.

    8 bits      q * scale, q in -127 .. 127, one scale a tensor, float32: max |w| / 127
    4 bits      q * scale, q in -7 .. 7, one scale an output (first index), which float16 holds: of max |w| / 7 and
                some smaller ones, which clip, the one with the least squared error
    vectors     (biases, norms) beside 4 bits: 8 bits, one scale for each 16 entries, which float16 holds; beside 8
                bits, and where their length is no multiple of 16: as float16 holds them

Zero is on every grid, so what is sparse stays sparse.  What lies on the grids of 4 bits stays as it is when it is
rounded again, bit for bit; so a system that has learned on them loses nothing when its export is written with 4 bits.
"""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

PREFIX = "rounding."
CLIPPED = (1.0, 0.9, 0.8, 0.7)  # of the largest weight; the first that is best wins
LEAST_SCALE, LARGEST_SCALE = 2.0**-21, 65504.0  # float16 is too coarse below for 7 steps to come out again; its largest
GROUP = 16  # entries of a vector that share a scale
LEAST_OF_VECTORS = 2.0**-14  # below, float16 is too coarse for 127 steps to come out again


def grid(weight: Tensor, bits: int) -> Tuple[Tensor, Tensor]:
    """Codes (shape of ``weight``, int8) and scales (float32, broadcast against it); finite float32, two dimensions
    or more; ``bits``: 4 or 8.  ``codes * scales`` is the rounded weight."""
    top = 2 ** (bits - 1) - 1
    rows = weight.reshape(1 if bits == 8 else len(weight), -1) if weight.numel() else weight.new_zeros(1, 1)
    if bits == 8:
        largest = rows.abs().amax() / top
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    else:
        scales = torch.stack([_scales(rows, top, share) for share in CLIPPED])
        tried = [(rows / one).round_().clamp_(-top, top) * one for one in scales]
        errors = torch.stack([(values - rows).square_().sum(1) for values in tried])
        best = scales.gather(0, errors.argmin(0)[None, :, None])
        scale = best.reshape(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round_().clamp_(-top, top).to(torch.int8), scale


def vector_grid(vector: Tensor) -> Tuple[Tensor, Tensor]:
    """(n / 16, 16) int8 and (n / 16, 1) float32 of a vector of n entries, a multiple of 16.

    What is not 0 stays so, for a norm that leaves out what is 0 (``ChannelNorm.skips_zeros``)."""
    rows = vector.reshape(-1, GROUP)
    scale = _scales(rows, 127).clamp(min=LEAST_OF_VECTORS)
    codes = (rows / scale).round_().clamp_(-127, 127)
    return torch.where(codes == 0, rows.sign(), codes).to(torch.int8), scale


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest on the grid."""
    if weight.dim() > 1:
        codes, scales = grid(weight, bits)
    elif bits == 4 and weight.dim() == 1 and len(weight) and len(weight) % GROUP == 0:
        codes, scales = vector_grid(weight)
    else:
        return weight.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().to(weight)
    return (codes * scales).reshape(weight.shape)


def _scales(rows: Tensor, top: int, share: float = 1.0) -> Tensor:
    return (
        (rows.abs().amax(1, keepdim=True) / top * share).clamp(max=LARGEST_SCALE).half().float().clamp(min=LEAST_SCALE)
    )


class Rounder:
    """Trains a model whose weights lie on a grid (straight-through, Bengio et al. 2013, arXiv 1308.3432).

    Outside ``restore() ... round()`` the model holds rounded weights: so evaluation, checkpoints and the teacher's term
    see what will be deployed, and the gradient is taken there.  What rounding takes off is kept beside the model and
    put back where weights change:

        optimizer.step(); rounder.restore(); (masks, averages: of the exact weights); rounder.round()

    ``bits``: 4, 8, or None: nothing is rounded, and every method does nothing.
    """

    def __init__(self, model: nn.Module, bits: Optional[int]):
        self._bits = bits or 0
        self._weights = dict(model.named_parameters()) if bits else {}
        self._rest: Dict[str, Tensor] = {}
        self.round()

    @torch.no_grad()
    def restore(self) -> None:
        """Exact weights, of which ``round`` took the rest."""
        for name, rest in self._rest.items():
            self._weights[name].add_(rest)

    @torch.no_grad()
    def round(self) -> None:
        """Rounded weights, now and until ``restore``."""
        for name, weight in self._weights.items():
            on_grid = rounded(weight.detach(), self._bits)
            self._rest[name] = weight.detach() - on_grid
            weight.copy_(on_grid)

    def on_grid(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """A state dict of the model, from which units may be cut: they leave vectors with other groups."""
        return {name: rounded(value, self._bits) if name in self._weights else value for name, value in tensors.items()}

    def tensors(self) -> Dict[str, Tensor]:
        """For a checkpoint."""
        return {PREFIX + name: rest for name, rest in self._rest.items()}

    def load(self, tensors: Dict[str, Tensor]) -> None:
        """What ``tensors`` gave; the model must already hold the weights saved at the same time."""
        self._rest = {name: tensors[PREFIX + name].to(weight) for name, weight in self._weights.items()}

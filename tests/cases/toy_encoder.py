"""Encoders of nobody's: a module that knows ``forward`` alone, and factories that make no encoder."""

import sys
from os import system  # noqa: F401  (a factory that a hostile configuration names)

import torch
from torch import nn


class Toy(nn.Module):
    """Three feature frames side by side, a linear map, and a window of two: (T + 2) // 3 frames."""

    def __init__(self, dim=16, stride=3, norm=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(80) if norm else nn.Identity()
        self.stride = stride
        self.mix = nn.Linear(80 * stride, dim)
        self.past = nn.Linear(dim, dim)

    def forward(self, x, x_lens):
        lens = torch.div(x_lens + self.stride - 1, self.stride, rounding_mode="floor")
        padding = torch.arange(x.size(1), device=x.device) >= x_lens.unsqueeze(1)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        x = ((x + 7.5) * 0.3).masked_fill(padding.unsqueeze(2), 0.0)
        x = nn.functional.pad(x, (0, 0, 0, -x.size(1) % self.stride))
        x = torch.tanh(self.mix(x.reshape(x.size(0), -1, 80 * self.stride)))
        return x + self.past(nn.functional.pad(x, (0, 0, 1, -1))), lens


def broken(kind):
    """A ``Toy`` that is not what it says."""
    toy = Toy()
    forward = toy.forward
    changed = {
        "dims": lambda x, lens: (forward(x, lens)[0].flatten(1), lens),
        "frames": lambda x, lens: (forward(x, lens)[0][:, 1:], forward(x, lens)[1]),
        "uneven": lambda x, lens: (x, torch.where(lens % 7 == 3, lens - 1, lens)),
        "exits later": lambda x, lens: sys.exit(),
        "alone": lambda x, lens: forward(x, lens)[0],
    }
    toy.forward = changed.get(kind, forward)
    if kind == "exits":
        sys.exit()
    if kind == "lengths":
        toy.output_lengths = lambda lens: lens // 3
    if kind == "dim":
        toy.output_dim = 17
    return "a string" if kind == "string" else toy


not_callable = 3

"""Random tensors of one batch: all that a transducer loss reads, before anything is multiplied.

The values are those of a freshly initialised joiner; the time of a loss does not depend on them.
The ranges do matter, since they say which predictor outputs a frame needs: they are those of an
alignment, every symbol at a frame drawn at random, made by the function that training uses.

B batch, T frames, S symbols, C classes with blank, J joiner dimension.
"""

from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor

from benchmark.shapes import Batch
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges

BLANK = 0


def logits_of(am: Tensor, lm: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The joiner: logits of ``am`` and ``lm``, broadcast against each other."""
    return torch.nn.functional.linear(torch.tanh(am + lm), weight, bias)


@dataclass(frozen=True)
class LossInputs:
    """One batch, as a loss gets it.

    am, lm:        (B, T, J) and (B, S + 1, J), projected; leaves with gradient.
    weight, bias:  (C, J) and (C,), the output layer; leaves with gradient.
    teacher:       the same four of a teacher of the same size, without gradient.
    symbols:       (B, S) int64, in [1, C).
    ranges:        (B, T, s_range) int64.
    boundary:      (B, 4) int64, rows [0, 0, S_b, T_b].
    """

    am: Tensor
    lm: Tensor
    weight: Tensor
    bias: Tensor
    teacher: Tuple[Tensor, Tensor, Tensor, Tensor]
    symbols: Tensor
    ranges: Tensor
    boundary: Tensor

    @property
    def leaves(self) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.am, self.lm, self.weight, self.bias

    def full_logits(self) -> Tensor:
        """(B, T, S + 1, C) float32, whatever the dtype: every node of the whole lattice."""
        return logits_of(self.am.unsqueeze(2), self.lm.unsqueeze(1), self.weight, self.bias).float()

    @property
    def num_nodes(self) -> int:
        """Valid nodes: t < T_b and s <= S_b."""
        frame = torch.arange(self.ranges.shape[1], device=self.ranges.device).reshape(1, -1, 1)
        num_symbols, num_frames = self.boundary[:, 2].reshape(-1, 1, 1), self.boundary[:, 3].reshape(-1, 1, 1)
        return int(((frame < num_frames) & (self.ranges <= num_symbols)).sum())


def make_inputs(
    batch: Batch, *, vocab: int, joiner_dim: int, prune_range: int, dtype: torch.dtype, device: torch.device, seed: int
) -> LossInputs:
    """Equal arguments give equal tensors (drawn on the CPU, whatever the device)."""
    generator = torch.Generator().manual_seed(seed)
    B, T, S = len(batch), max(T for T, _ in batch), max(S for _, S in batch)

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * std).to(device=device, dtype=dtype)

    def joiner() -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        am, lm = normal(B, T, joiner_dim, std=0.7), normal(B, S + 1, joiner_dim, std=0.7)
        return am, lm, normal(vocab, joiner_dim, std=1.5 * joiner_dim**-0.5), normal(vocab, std=0.1)

    (am, lm, weight, bias), teacher = joiner(), joiner()
    symbols = torch.randint(1, max(2, vocab), (B, S), generator=generator)
    boundary = torch.tensor([[0, 0, S_b, T_b] for T_b, S_b in batch])
    return LossInputs(
        am.requires_grad_(),
        lm.requires_grad_(),
        weight.requires_grad_(),
        bias.requires_grad_(),
        teacher=teacher,
        symbols=symbols.to(device),
        ranges=aligned_ranges(boundary, prune_range, generator).to(device),
        boundary=boundary.to(device),
    )


def aligned_ranges(boundary: Tensor, prune_range: int, generator: torch.Generator) -> Tensor:
    """(B, T, s_range) int64 around an alignment: a path that takes its symbols at random frames.

    ``boundary`` (B, 4), rows [0, 0, S_b, T_b]; T and S are the largest of the batch.  A frame
    takes one symbol at most where there are enough frames.
    """
    B, S, T = boundary.shape[0], int(boundary[:, 2].max()), int(boundary[:, 3].max())
    px_grad, py_grad = torch.zeros(B, S, T + 1), torch.zeros(B, S + 1, T)
    for row, (_, _, S_b, T_b) in enumerate(boundary.tolist()):
        if S_b <= T_b:
            times = torch.randperm(T_b, generator=generator)[:S_b].sort().values
        else:
            times = torch.randint(T_b, (S_b,), generator=generator).sort().values
        px_grad[row, torch.arange(S_b), times] = 1.0
        done = torch.searchsorted(times, torch.arange(T_b), right=True)  # symbols taken before the frame ends
        py_grad[row, done, torch.arange(T_b)] = 1.0
    return get_rnnt_prune_ranges(px_grad, py_grad, boundary, prune_range)

"""Random lattices for the tests: odd shapes, empty transcripts, padding, any blank."""

from dataclasses import dataclass
from typing import List

import pytest
import torch
from hypothesis import strategies as st

from rnnt_kd.lattice import get_backend, torch_backend
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed

RNNT_TYPES = ("regular", "modified", "constrained")
every_rnnt_type = pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
every_backend = pytest.mark.parametrize("backend", ["torch", "k2", "triton"])


def backend_on(name):
    """The backend, and the device that it is tested on; skips where it cannot run."""
    if name != "torch":
        pytest.importorskip(name, reason=f"{name} is not in this environment")
    device = torch.device("cuda" if name == "triton" and torch.cuda.is_available() else "cpu")
    backend = get_backend(name)
    if not backend.supports(device):
        pytest.skip(f"{name} cannot compute on {device}")
    return backend, device


def moved(values, device):
    """A list: tensors on ``device``, anything else as it is."""
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in values]


@dataclass
class LatticeCase:
    """One batch on kept nodes; float64.  Padding of ``symbols`` holds some valid class."""

    logits: torch.Tensor  # (B, T, s_range, C)
    teacher_logits: torch.Tensor
    lm: torch.Tensor  # (B, S + 1, C)
    am: torch.Tensor  # (B, T, C)
    symbols: torch.Tensor  # (B, S)
    ranges: torch.Tensor  # (B, T, s_range)
    boundary: torch.Tensor  # (B, 4)
    blank: int
    rnnt_type: str

    @property
    def arguments(self):
        """What follows the logits in the loss functions."""
        return self.symbols, self.ranges, self.blank, self.boundary, self.rnnt_type

    @property
    def frames(self) -> List[int]:
        return self.boundary[:, 3].tolist()

    @property
    def transcripts(self) -> List[List[int]]:
        return [row[:n].tolist() for row, n in zip(self.symbols, self.boundary[:, 2].tolist())]

    @property
    def is_padding(self) -> torch.Tensor:
        """(B, T, s_range): True where t >= T_b or s > S_b."""
        frame = torch.arange(self.ranges.shape[1]).reshape(1, -1, 1)
        return (frame >= self.boundary[:, 3].reshape(-1, 1, 1)) | (self.ranges > self.boundary[:, 2].reshape(-1, 1, 1))


def make_case(seed, B=2, T=5, S=3, C=4, s_range=3, blank=0, rnnt_type="regular", scale=1.0, full=False) -> LatticeCase:
    """A batch of random lengths, every utterance with at least one path.

    ``full``: all nodes are kept, s_range = S + 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    wanted = S + 1 if full else s_range
    boundary = torch.zeros(B, 4, dtype=torch.int64)
    for b in range(B):
        t_end = T if b == 0 else integer(1, T)
        a_frame = min(wanted, S + 1) - 1 if rnnt_type == "regular" else 1
        boundary[b, 2] = min(integer(0, S) if b else S, a_frame * t_end)
        boundary[b, 3] = t_end
    labels = torch.tensor([c for c in range(C) if c != blank])
    symbols = labels[torch.randint(0, C - 1, (B, S), generator=generator)]
    lm, am = normal(B, S + 1, C), normal(B, T, C)
    if full:
        ranges = torch.arange(S + 1).expand(B, T, S + 1).contiguous()
    else:
        _, (px_grad, py_grad) = rnnt_loss_smoothed(
            lm, am, symbols, blank, boundary=boundary, rnnt_type=rnnt_type, return_grad=True, backend=torch_backend
        )
        ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)
    shape = (*ranges.shape, C)
    return LatticeCase(normal(*shape), normal(*shape), lm, am, symbols, ranges, boundary, blank, rnnt_type)


@st.composite
def lattice_cases(draw, max_T=6, max_S=4, min_S=0, max_C=6, T_not_below_S=False):
    """Small batches of any shape; ``T_not_below_S`` for what k2 accepts."""
    S = draw(st.integers(min_S, max_S))
    T = draw(st.integers(max(1, S) if T_not_below_S else 1, max(max_T, S)))
    C = draw(st.integers(2, max_C))
    return make_case(
        seed=draw(st.integers(0, 2**31)),
        B=draw(st.integers(1, 3)),
        T=T,
        S=S,
        C=C,
        s_range=draw(st.integers(2, 4)),
        blank=draw(st.integers(0, C - 1)),
        rnnt_type=draw(st.sampled_from(RNNT_TYPES)),
        scale=draw(st.sampled_from([0.0, 0.1, 1.0, 5.0])),
    )


def gradients(function, *tensors):
    """(value, gradients): of ``function(*tensors).sum()``, with a factor of its own for each element."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    factors = 1.0 + torch.arange(value.numel(), dtype=value.dtype, device=value.device).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * factors).sum(), leaves)

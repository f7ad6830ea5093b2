"""warprnnt_numba (NeMo's transducer loss): every (t, s) of the lattice, no pruning, no teacher."""

from typing import Callable, Optional

import torch
from torch import Tensor

from benchmark.loss_inputs import BLANK, LossInputs
from benchmark.peers import import_problem

VARIANTS = ("none",)
LATTICE = "full"


def why_not(device: torch.device) -> Optional[str]:
    return import_problem("warprnnt_numba")


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * (S + 1) * (5 * C + 3 * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    from warprnnt_numba import RNNTLossNumba

    criterion = RNNTLossNumba(blank=BLANK, reduction="mean")
    symbols = inputs.symbols.to(torch.int32)
    _, _, lengths, frames = inputs.boundary.to(torch.int32).t().contiguous()

    def loss() -> Tensor:
        return criterion(inputs.full_logits(), symbols, frames, lengths).squeeze()

    return loss

"""warprnnt_numba (NeMo's transducer loss): every (t, s) of the lattice, no pruning, no teacher."""

from typing import Callable, Optional

import torch
from torch import Tensor

from rnnt_kd.benchmark.loss_inputs import BLANK, LossInputs

VARIANTS = ("none",)
LATTICE = "full"


def why_not(device: torch.device) -> Optional[str]:
    try:
        import warprnnt_numba  # noqa: F401
    except (ImportError, OSError) as error:
        return f"not installed ({error})"
    return None


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * (S + 1) * (5 * C + 3 * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    from warprnnt_numba import RNNTLossNumba

    criterion = RNNTLossNumba(blank=BLANK, reduction="mean")
    symbols = inputs.symbols.to(torch.int32)
    frames, lengths = inputs.boundary[:, 3].to(torch.int32), inputs.boundary[:, 2].to(torch.int32)

    def loss() -> Tensor:
        hidden = torch.tanh(inputs.am.unsqueeze(2) + inputs.lm.unsqueeze(1))
        logits = torch.nn.functional.linear(hidden, inputs.weight, inputs.bias)
        return criterion(logits.float(), symbols, frames, lengths).squeeze()

    return loss

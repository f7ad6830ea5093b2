"""torchaudio's transducer loss: every (t, s) of the lattice, no pruning, no teacher."""

from typing import Callable, Optional

import torch
from torch import Tensor

from rnnt_kd.benchmark.loss_inputs import BLANK, LossInputs

VARIANTS = ("none",)
LATTICE = "full"


def why_not(device: torch.device) -> Optional[str]:
    try:
        from torchaudio.functional import rnnt_loss  # noqa: F401
    except (ImportError, OSError) as error:
        return f"not installed ({error})"
    return None


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * (S + 1) * (3 * C + 3 * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    from torchaudio.functional import rnnt_loss

    symbols = inputs.symbols.to(torch.int32)
    frames, lengths = inputs.boundary[:, 3].to(torch.int32), inputs.boundary[:, 2].to(torch.int32)

    def loss() -> Tensor:
        hidden = torch.tanh(inputs.am.unsqueeze(2) + inputs.lm.unsqueeze(1))
        logits = torch.nn.functional.linear(hidden, inputs.weight, inputs.bias)
        return rnnt_loss(logits.float(), symbols, frames, lengths, blank=BLANK, reduction="mean")

    return loss

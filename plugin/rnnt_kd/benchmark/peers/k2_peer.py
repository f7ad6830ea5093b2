"""k2 as its users call it, without a teacher: prune, join, ``k2.rnnt_loss_pruned``.

All of it is k2's own, its Python included; the project's k2 backend takes only the recursion.
"""

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.benchmark.loss_inputs import BLANK, LossInputs

VARIANTS = ("none",)
LATTICE = "pruned"


def why_not(device: torch.device) -> Optional[str]:
    try:
        import k2
    except ImportError as error:
        return f"not installed ({error})"
    except OSError as error:
        return f"made for another torch ({error})"
    return "built without CUDA" if device.type == "cuda" and not k2.with_cuda else None


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * (s_range * (5 * C + 4 * J) + (S + 1) * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    import k2

    return loss_after(k2.do_rnnt_pruning, inputs)


def loss_after(prune: Callable[[Tensor, Tensor, Tensor], Tuple[Tensor, Tensor]], inputs: LossInputs) -> Callable:
    """The loss behind ``prune(am, lm, ranges)``."""
    import k2

    def loss() -> Tensor:
        am, lm = prune(inputs.am, inputs.lm, inputs.ranges)
        logits = torch.nn.functional.linear(torch.tanh(am + lm), inputs.weight, inputs.bias)
        return k2.rnnt_loss_pruned(
            logits=logits.float(),
            symbols=inputs.symbols,
            ranges=inputs.ranges,
            termination_symbol=BLANK,
            boundary=inputs.boundary,
        )

    return loss

"""k2 as its users call it, without a teacher: prune, join, ``k2.rnnt_loss_pruned``.

All of it is k2's own, its Python included; the project's k2 backend takes only the recursion.
"""

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor

from benchmark.loss_inputs import BLANK, LossInputs, logits_of
from benchmark.peers import import_problem

VARIANTS = ("none",)
LATTICE = "pruned"


def why_not(device: torch.device) -> Optional[str]:
    problem = import_problem("k2")
    if problem is None and device.type == "cuda":
        import k2

        problem = None if k2.with_cuda else "built without CUDA"
    return problem


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * (s_range * (5 * C + 4 * J) + (S + 1) * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    import k2

    return loss_after(k2.do_rnnt_pruning, inputs)


def loss_after(prune: Callable[[Tensor, Tensor, Tensor], Tuple[Tensor, Tensor]], inputs: LossInputs) -> Callable:
    """The loss behind ``prune(am, lm, ranges)``."""
    import k2

    def loss() -> Tensor:
        logits = logits_of(*prune(inputs.am, inputs.lm, inputs.ranges), inputs.weight, inputs.bias)
        return k2.rnnt_loss_pruned(
            logits=logits.float(),
            symbols=inputs.symbols,
            ranges=inputs.ranges,
            termination_symbol=BLANK,
            boundary=inputs.boundary,
        )

    return loss

"""Our loss with whole logits, (B, T, s_range, C), of student and teacher: what the fused path saves."""

from typing import Callable, Optional

import torch
from torch import Tensor

from benchmark.loss_inputs import BLANK, LossInputs, logits_of
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning
from rnnt_kd.losses import rnnt_loss_pruned

VARIANTS = ("none", "online")
LATTICE = "pruned"


def why_not(device: torch.device) -> Optional[str]:
    return None


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * s_range * (6 * C + 4 * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    def logits(am: Tensor, lm: Tensor, *output: Tensor) -> Tensor:
        return logits_of(*do_rnnt_pruning(am, lm, inputs.ranges), *output)

    def loss() -> Tensor:
        teacher = None
        if variant == "online":
            with torch.no_grad():
                teacher = logits(*inputs.teacher)
        return rnnt_loss_pruned(
            logits(*inputs.leaves),
            inputs.symbols,
            inputs.ranges,
            BLANK,
            inputs.boundary,
            teacher_logits=teacher,
            kd_variant="collapsed",
            kd_weighting="occupancy",
        )

    return loss

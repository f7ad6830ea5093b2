"""k2's loss, spared k2's pruning: the predictor's rows are picked by index.

``k2.do_rnnt_pruning`` gathers from a (B, T, S + 1, J) view, whose gradient is as large.  Whoever
prunes otherwise has this; the stricter one to compare with.
"""

from typing import Callable

from torch import Tensor

from benchmark.loss_inputs import LossInputs
from benchmark.peers.k2_peer import LATTICE, VARIANTS, estimated_bytes, loss_after, why_not
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning

__all__ = ["LATTICE", "VARIANTS", "estimated_bytes", "prepare", "why_not"]


def prepare(inputs: LossInputs, variant: str) -> Callable[[], Tensor]:
    return loss_after(do_rnnt_pruning, inputs)

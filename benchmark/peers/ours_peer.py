"""The project's loss from the joiner's inputs, with no teacher, its joiner online, or its scores from a cache.

``prepare`` has the implementation (``impl``) to choose.
"""

from typing import Callable, Optional

import torch
from torch import Tensor

from benchmark.loss_inputs import BLANK, LossInputs
from rnnt_kd.losses import pruned_transducer_loss
from rnnt_kd.losses.kept_nodes import kept_nodes
from rnnt_kd.losses.node_scores import JoinerParts, choose_impl, node_scores
from rnnt_kd.losses.node_scores.torch_impl import CPU_MEMORY
from rnnt_kd.losses.packed_posteriors import pack, unpack

VARIANTS = ("none", "online", "cache")
LATTICE = "pruned"


def why_not(device: torch.device) -> Optional[str]:
    return None


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * (B * T * (s_range + 4) * J + 4 * C * J) + CPU_MEMORY


def chosen_impl(inputs: LossInputs, impl: str) -> str:
    """The name of the implementation that ``impl`` stands for here.  UserError: it cannot run here."""
    module = choose_impl(impl, JoinerParts(*inputs.leaves))
    return module.__name__.rpartition(".")[2][: -len("_impl")]


def prepare(inputs: LossInputs, variant: str, impl: str = "auto", memory: Optional[int] = None) -> Callable[[], Tensor]:
    """``cache``: the teacher's scores lie ready as they come from the disk, two float16 a node."""
    packed = cached_scores(inputs, impl) if variant == "cache" else None

    def loss() -> Tensor:
        online = JoinerParts(*inputs.teacher) if variant == "online" else None
        return pruned_transducer_loss(
            *inputs.leaves,
            inputs.symbols,
            inputs.ranges,
            BLANK,
            inputs.boundary,
            teacher=online if packed is None else unpack(packed),
            kd_variant="collapsed",
            kd_weighting="occupancy",
            impl=impl,
            memory=memory,
        )

    return loss


@torch.no_grad()
def cached_scores(inputs: LossInputs, impl: str) -> Tensor:
    """(B, T, s_range, 2) float16: what a cache keeps of the teacher."""
    nodes = kept_nodes(inputs.symbols, inputs.ranges, BLANK, inputs.boundary, "regular")
    return pack(node_scores(JoinerParts(*inputs.teacher), nodes, impl=impl))

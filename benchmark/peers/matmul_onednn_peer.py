"""The same three products as ``matmul``, by the kernels and in the blocks that our own loss uses on a CPU.

``matmul`` is what ``torch.mm`` makes of them.  Where another library in the same wheel is faster, our
loss can be faster than that "floor"; this is the floor below it.
"""

from typing import Callable, Optional

import torch

from benchmark.loss_inputs import LossInputs
from rnnt_kd.losses.node_scores.matrix_products import linear, transposed_product
from rnnt_kd.losses.node_scores.torch_impl import BLOCK_ELEMENTS, MOST_ROWS

VARIANTS = ("none",)
LATTICE = ""


def why_not(device: torch.device) -> Optional[str]:
    if device.type != "cpu":
        return "torch.mm has no rival on a GPU"
    return None if torch.backends.mkldnn.is_available() else "torch was built without oneDNN"


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * (B * T * s_range * J + 3 * C * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], None]:
    weight = inputs.weight.detach()
    C, J = weight.shape
    rows = min(MOST_ROWS, max(1, BLOCK_ELEMENTS // C))
    hidden = torch.empty(inputs.num_nodes, J, dtype=weight.dtype).uniform_(-1.0, 1.0)
    weight_columns, weight_grad = weight.t().contiguous(), torch.zeros_like(weight)

    def products() -> None:
        for block in hidden.split(rows):
            logits = linear(block, weight, None)
            linear(logits, weight_columns, None)  # the logits stand for their own gradient
            transposed_product(logits, block, add_to=weight_grad)

    return products

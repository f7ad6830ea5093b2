"""The matrix products that no loss can do without: forward and two backward of the output layer.

On valid nodes only, into memory that is already there, with nothing in between: the floor that the
ratios "÷ matmul" are over.
"""

from typing import Callable, Dict, Optional, Tuple

import torch
from torch import Tensor

from benchmark.loss_inputs import LossInputs

VARIANTS = ("none",)
LATTICE = ""


def why_not(device: torch.device) -> Optional[str]:
    return None


def estimated_bytes(B: int, T: int, S: int, s_range: int, C: int, J: int) -> int:
    return 4 * B * T * s_range * (C + 2 * J)


def prepare(inputs: LossInputs, variant: str) -> Callable[[], None]:
    weight = inputs.weight.detach()
    nodes, (C, J) = inputs.num_nodes, weight.shape
    hidden = torch.empty(nodes, J, dtype=weight.dtype, device=weight.device).uniform_(-1.0, 1.0)
    hidden_grad, weight_grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    _workspace(nodes * C, weight)  # grow it before anything is measured

    def products() -> None:
        logits = _workspace(nodes * C, weight).reshape(nodes, C)
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(logits, weight, out=hidden_grad)  # the logits stand for their own gradient
        torch.mm(logits.t(), hidden, out=weight_grad)

    return products


_buffers: Dict[Tuple[torch.dtype, torch.device], Tensor] = {}


def _workspace(size: int, like: Tensor) -> Tensor:
    """``size`` elements, the same memory for all batches of a process."""
    key = (like.dtype, like.device)
    if key not in _buffers or _buffers[key].numel() < size:
        _buffers[key] = like.new_zeros(size)
    return _buffers[key][:size]

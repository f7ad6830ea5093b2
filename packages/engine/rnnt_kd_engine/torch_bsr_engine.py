"""torch_bsr: torch's own block-sparse matrices (BSR), where the zeros of a linear map form square blocks.

torch hands the product to MKL, which takes square blocks only.  Everything else is the module as it is.
"""

import copy
import warnings

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd_engine.structure import structure_of
from rnnt_kd_engine.torch_engine import TorchEncoder

SQUARE = ("16x16", "4x4")


def compile_encoder(encoder: nn.Module) -> TorchEncoder:
    """Raises UserError: no matrix of the encoder has square blocks of zeros, or this torch cannot multiply them."""
    encoder, found = copy.deepcopy(encoder).eval().requires_grad_(False), set()
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                found.add(structure := structure_of(child.weight.numpy(), SQUARE))
                if structure in SQUARE:
                    setattr(module, name, BlockSparseLinear(child, int(structure.split("x")[0])))
    if not found & set(SQUARE):
        raise UserError("engine torch_bsr", f"{' and '.join(sorted(found))} weights", "square blocks of zeros")
    compiled = TorchEncoder(encoder)
    try:
        compiled(torch.zeros(8, 80))
    except RuntimeError as error:
        raise UserError("engine torch_bsr", f"this torch cannot multiply them ({error})", "torch with MKL") from None
    return compiled


class BlockSparseLinear(nn.Module):
    """y = W x + b with W in blocks of ``block`` x ``block``; sizes are filled up with zeros."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, block: int):
        super().__init__()
        self.outputs, inputs = linear.weight.shape
        self.more = -inputs % block
        weight = nn.functional.pad(linear.weight, (0, self.more, 0, -self.outputs % block))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sparse BSR support is in beta state"
            self.register_buffer("weight", weight.to_sparse_bsr((block, block)))
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, inputs) -> (1, T, outputs)."""
        columns = nn.functional.pad(x[0], (0, self.more)).t()
        return (self.weight @ columns)[: self.outputs].t().unsqueeze(0) + self.bias

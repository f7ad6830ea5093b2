"""torch: the module as it is, for comparison."""

import copy

import torch
from torch import Tensor, nn


def compile_encoder(encoder: nn.Module) -> "TorchEncoder":
    return TorchEncoder(copy.deepcopy(encoder).eval().requires_grad_(False))


class TorchEncoder:
    """See ``CompiledEncoder``."""

    def __init__(self, module: nn.Module):
        self._module = module

    @property
    def num_bytes(self) -> int:
        return sum(stored_bytes(value) for value in self._module.state_dict().values())

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        encoder_out, _ = self._module(features.unsqueeze(0), torch.tensor([len(features)]))
        return encoder_out[0]


def stored_bytes(tensor: Tensor) -> int:
    """The bytes that a dense or block-sparse tensor takes."""
    if tensor.layout is torch.strided:
        return tensor.numel() * tensor.element_size()
    parts = tensor.values(), tensor.crow_indices(), tensor.col_indices()
    return sum(part.numel() * part.element_size() for part in parts)

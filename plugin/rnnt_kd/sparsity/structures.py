"""Which weights of a matrix stay: one function a structure, its name is the config's value.

Every public function here has the shape ``(weight, sparsity) -> weight_mask``:

  weight:      dense weights, floating point, any shape (flat in the "global" scope).
  sparsity:    fraction in [0, 1) that becomes zero.
  weight_mask: bool, shape and device of ``weight``, True = keep.

It must be deterministic and must not depend on masks of the past: a weight may come back.
Blocks and N:M belong here; nothing else changes for them.
"""

import torch
from torch import Tensor


def unstructured(weight: Tensor, sparsity: float) -> Tensor:
    """Drop exactly ``round(sparsity * weight.numel())`` weights, those of least magnitude."""
    weight_mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    dropped = int(round(sparsity * weight.numel()))
    if dropped:
        weight_mask[weight.detach().abs().flatten().topk(dropped, largest=False, sorted=False).indices] = False
    return weight_mask.view(weight.shape)

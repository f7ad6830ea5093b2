"""Tensors with many zeros in fewer bytes, bit for bit: which entries are not zero, and their values.

Of a tensor that this makes smaller, two are kept instead:

    bits    (ceil(n / 8),) uint8: one bit an entry, row by row, the first in the highest bit; 1: not zero
    values  (m,) of the tensor's dtype: the entries that are not zero, in order

"Zero" is the entry whose bits are all 0, so -0.0 and denormal numbers count as values, and nothing is computed
with the numbers: NaN keeps its payload.
"""

from typing import Dict, Mapping, Tuple

import torch
from torch import Tensor

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BIT_VALUES = [128, 64, 32, 16, 8, 4, 2, 1]


def pack(tensor: Tensor) -> Tuple[Tensor, Tensor]:
    """Any shape and real dtype -> bits, values."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    filled = _as_integers(flat) != 0
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8)
    padded[: flat.numel()] = filled.to(torch.uint8)
    bits = (padded.reshape(-1, 8) * torch.tensor(_BIT_VALUES, dtype=torch.uint8)).sum(1).to(torch.uint8)
    return bits, flat[filled]


def unpack(bits: Tensor, values: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """The tensor again.

    Raises:
      ValueError: bits, values and shape do not belong together.
    """
    count = 1
    for size in shape:
        count *= size
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),) or values.dim() != 1:
        shapes = tuple(bits.shape), tuple(values.shape), tuple(shape)
        raise ValueError(f"bits {shapes[0]} of {bits.dtype} and values {shapes[1]} for a tensor {shapes[2]}")
    all_bits = (bits[:, None] & torch.tensor(_BIT_VALUES, dtype=torch.uint8)).reshape(-1) != 0
    filled = all_bits[:count]
    if bool(all_bits[count:].any()) or int(filled.sum()) != values.numel():
        raise ValueError(f"{int(all_bits.sum())} bits are set for {values.numel()} values")
    flat = torch.zeros(count, dtype=values.dtype)
    flat[filled] = values
    return flat.reshape(shape)


def is_smaller_packed(tensor: Tensor) -> bool:
    """Are bits and values fewer bytes than the tensor?"""
    nonzero = int((_as_integers(tensor.detach().cpu().contiguous().reshape(-1)) != 0).sum())
    return -(-tensor.numel() // 8) + nonzero * tensor.element_size() < tensor.numel() * tensor.element_size()


def pack_all(tensors: Mapping[str, Tensor]) -> Dict[str, Tuple[Tensor, Tensor]]:
    """Name -> bits and values, of those that become smaller."""
    return {name: pack(tensor) for name, tensor in tensors.items() if is_smaller_packed(tensor)}


def _as_integers(flat: Tensor) -> Tensor:
    return flat.view(_SAME_SIZE[flat.element_size()])

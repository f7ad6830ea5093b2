"""Labels of texts, as tensors."""

from typing import Sequence, Tuple

import torch
from torch import Tensor


def padded_labels(encoded: Sequence[Sequence[int]], padding: int, at_least: int = 1) -> Tuple[Tensor, Tensor]:
    """(B, S) int64 padded with ``padding``, S >= ``at_least``, and (B,) int64 lengths."""
    lens = torch.tensor([len(labels) for labels in encoded], dtype=torch.int64)
    padded = torch.full((len(encoded), max(at_least, int(lens.max()))), padding, dtype=torch.int64)
    for row, labels in zip(padded, encoded, strict=True):
        row[: len(labels)] = torch.tensor(labels, dtype=torch.int64)
    return padded, lens

"""The structure that the zeros of a matrix have."""

from typing import Sequence

import numpy as np

NEARLY_ALL = 0.999  # a random or trained weight may be 0 by chance


def structure_of(weight: np.ndarray, candidates: Sequence[str] = ("16x16", "16x1", "1x16", "4x4", "8x1", "4x1")) -> str:
    """The blocks that the zeros of an (outputs, inputs) matrix form.

    Args:
      candidates: names outputs x inputs, the most restrictive first; blocks at an edge may be partial.
    Returns:
      "dense" with hardly a zero, the first candidate whose blocks are all weights or all zeros, or "unstructured".
    """
    kept = weight != 0
    if kept.mean() > NEARLY_ALL:
        return "dense"
    for name in candidates:
        height, width = (int(number) for number in name.split("x"))
        padded = np.zeros([-(-size // by) * by for size, by in zip(kept.shape, (height, width))], bool)
        padded[: kept.shape[0], : kept.shape[1]] = kept
        inside = np.zeros_like(padded)
        inside[: kept.shape[0], : kept.shape[1]] = True
        shape = (padded.shape[0] // height, height, padded.shape[1] // width, width)
        any_kept, all_kept = padded.reshape(shape).any((1, 3)), (padded | ~inside).reshape(shape).all((1, 3))
        if (any_kept == all_kept).all():
            return name
    return "unstructured"

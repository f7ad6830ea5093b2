"""Lengths of utterances, (T, S): encoder frames after subsampling, and symbols.

From a file, or drawn from a distribution fitted on LibriSpeech's train-clean-100 with speed
perturbation (85,617 utterances, subsampling by 4, 500 BPE pieces).
"""

from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np

from rnnt_kd.errors import UserError

Shape = Tuple[int, int]
Batch = List[Shape]

SMALL_BATCH: Batch = [(24, 6), (20, 4)]  # for warming up
FITTED_COUNT = 600
NUM_BUCKETS = 30  # of equal size, by length: what a bucketing sampler makes of a training set

# Quantiles of T, and of S / T for four bands of T; straight lines between them.
T_LEVELS = (0.0, 0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
T_QUANTILES = (31, 55, 73, 105, 160, 214, 256, 284, 302, 326, 343, 357, 373, 392, 416, 432, 452, 469, 680)
RATE_LEVELS = (0.0, 0.01, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 0.99, 1.0)
RATE_BANDS = (200, 340, 400)  # frames, where one band ends and the next begins
RATE_QUANTILES = (
    (0.034, 0.103, 0.138, 0.177, 0.199, 0.217, 0.237, 0.259, 0.302, 0.338, 0.450),
    (0.066, 0.132, 0.159, 0.190, 0.208, 0.223, 0.239, 0.257, 0.289, 0.316, 0.379),
    (0.086, 0.132, 0.155, 0.182, 0.199, 0.213, 0.228, 0.245, 0.277, 0.304, 0.375),
    (0.077, 0.124, 0.145, 0.169, 0.183, 0.195, 0.207, 0.221, 0.247, 0.272, 0.330),
)


def read_shapes(path: Path) -> List[Shape]:
    """Lines ``T,S`` of a CSV file; a first line that is no numbers is a header.

    Raises:
      UserError: naming the line, where it is not two numbers T >= 1, S >= 0; or no line at all.
    """
    shapes = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = [field.strip() for field in line.split(",")]
        if not line.strip() or (number == 1 and not fields[0].lstrip("-").isdigit()):
            continue
        if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[0]) < 1:
            raise UserError(f"{path}:{number}", repr(line), "T,S: frames and symbols of one utterance, T >= 1, S >= 0")
        shapes.append((int(fields[0]), int(fields[1])))
    if not shapes:
        raise UserError(path, "holds no shapes", "lines T,S")
    return shapes


def fitted_shapes(count: int = FITTED_COUNT, seed: int = 1) -> List[Shape]:
    """``count`` utterances drawn from the fitted distribution."""
    generator = np.random.default_rng(seed)
    frames = np.interp(generator.random(count), T_LEVELS, T_QUANTILES).round().astype(int)
    levels = generator.random(count)
    bands = np.searchsorted(RATE_BANDS, frames, side="right")
    rates = [np.interp(level, RATE_LEVELS, RATE_QUANTILES[band]) for level, band in zip(levels, bands)]
    return [(int(T), max(1, round(T * rate))) for T, rate in zip(frames, rates)]


def draw_batches(shapes: Sequence[Shape], batch: int, count: int, seed: int = 1) -> List[Batch]:
    """``count`` batches of ``batch`` neighbours in length.

    The utterances are sorted by T.  Batch i comes from the bucket around the (i + 0.5) / count
    quantile, ``batch`` utterances by chance, so the batches are short, ..., medium, ..., long.
    """
    ordered = sorted(shapes)
    width = min(len(ordered), max(len(ordered) // NUM_BUCKETS, batch))
    generator = np.random.default_rng(seed)
    batches = []
    for index in range(count):
        middle = (index + 0.5) / count * len(ordered)
        start = int(np.clip(round(middle - width / 2), 0, len(ordered) - width))
        chosen = generator.choice(width, size=batch, replace=width < batch)
        batches.append([ordered[start + int(offset)] for offset in chosen])
    return batches


def num_nodes(batch: Batch, prune_range: int) -> int:
    """Valid nodes of the pruned lattice, those beyond the last symbol of a short text left out."""
    return sum(T * min(prune_range, S + 1) for T, S in batch)

"""Is the dense encoder of the numba engine an honest peer?  Its matrix products against those of BLAS libraries."""

import time
from typing import Callable, Dict, List, Tuple

import numpy as np
import torch
from torch import nn

from rnnt_kd.inference.products import dense_product

REPEATS, PASSES = 5, 20


def compare_products(encoder: nn.Module, frames: int) -> Dict[str, float]:
    """Seconds that all linear maps of ``encoder`` take on ``frames`` frames, dense, weights in the cache: ``own``
    (numba), ``numpy`` and ``torch``, each the best of some passes in turns; ``best``: matrix by matrix the fastest.

    For ``own`` rows are features, as in the engine; numpy and torch take the faster of both layouts.
    """
    shapes: Dict[Tuple[int, int], int] = {}
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            shapes[tuple(module.weight.shape)] = shapes.get(tuple(module.weight.shape), 0) + 1
    totals = dict.fromkeys(("own", "numpy", "torch", "best"), 0.0)
    for (outputs, inputs), count in shapes.items():
        seconds = _times(outputs, inputs, frames)
        for name, value in {**seconds, "best": min(seconds.values())}.items():
            totals[name] += count * value
    return totals


def _times(outputs: int, inputs: int, frames: int) -> Dict[str, float]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    x = rng.standard_normal((inputs, frames)).astype(np.float32)
    x_by_frame, weight_t = np.ascontiguousarray(x.T), torch.from_numpy(weight)
    y, y_by_frame = np.empty((outputs, frames), np.float32), np.empty((frames, outputs), np.float32)
    z, z_by_frame = torch.from_numpy(y.copy()), torch.from_numpy(y_by_frame.copy())
    ways: Dict[str, List[Callable[[], object]]] = {
        "own": [dense_product(weight, bias, x)],
        "numpy": [lambda: np.dot(weight, x, out=y), lambda: np.dot(x_by_frame, weight.T, out=y_by_frame)],
        "torch": [
            lambda: torch.mm(weight_t, torch.from_numpy(x), out=z),
            lambda: torch.mm(torch.from_numpy(x_by_frame), weight_t.t(), out=z_by_frame),
        ],
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(REPEATS):
        for name, functions in ways.items():
            for function in functions:
                start = time.perf_counter()
                for _ in range(PASSES):
                    function()
                best[name] = min(best[name], (time.perf_counter() - start) / PASSES)
    return best

"""Is the dense encoder of the numba engine an honest peer?  Its matrix products against those of BLAS libraries.

One way of multiplying takes turns with the others, matrix by matrix: ``own`` (numba) has features as rows, as in the
engine; numpy and torch are tried in both layouts.
"""

from collections import Counter
from statistics import median
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from benchmark.dense_product import dense_product
from benchmark.measure import Subject
from benchmark.turns import Measurement
from rnnt_kd.tables import markdown

WAYS = ("own", "numpy", "numpy, frames first", "torch", "torch, frames first")
PASSES = 20  # a single product is too short for the clock


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """The products of one "way"; batches are matrices: (outputs, inputs, frames)."""

    def subject(shape: Sequence[int]) -> Subject:
        product = _product(specification["way"], *shape)

        def repeated() -> None:
            for _ in range(PASSES):
                product()

        return repeated, [torch.zeros(1)]

    return [subject(shape) for shape in specification["batches"]], {}


def product_jobs(encoder: nn.Module, frames: int, num_threads: int) -> List[Measurement]:
    """A job for each way, over all linear maps of ``encoder``; "counts": how often each shape is there."""
    shapes = Counter(tuple(module.weight.shape) for module in encoder.modules() if isinstance(module, nn.Linear))
    common = {"module": "benchmark.products", "num_threads": num_threads, "counts": list(shapes.values())}
    common["batches"] = [(*shape, frames) for shape in shapes]
    return [Measurement(way, {**common, "way": way}) for way in WAYS]


def product_rows(jobs: Sequence[Measurement]) -> List[Dict[str, Any]]:
    """Seconds that all linear maps take by each way, and by the fastest of them, matrix by matrix."""
    seconds = {job.name: [median(rounds) / PASSES for rounds in job.seconds] for job in jobs}
    seconds["the fastest, matrix by matrix"] = list(map(min, zip(*seconds.values())))
    counts = jobs[0].specification["counts"]
    return [
        {"products": way, "seconds": sum(count * value for count, value in zip(counts, values))}
        for way, values in seconds.items()
    ]


def product_table(rows: Sequence[Dict[str, Any]], frames: int) -> str:
    head = [f"matrix products of the first system, dense, {frames} frames", "ms"]
    return markdown(head, [[row["products"], f"{1e3 * row['seconds']:.3f}"] for row in rows])


def _product(way: str, outputs: int, inputs: int, frames: int) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    weight, bias, x = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), (outputs,), (inputs, frames))
    )
    if way == "own":
        return dense_product(weight, bias, x)
    left, right = weight, x
    if way.endswith("frames first"):
        left, right = np.ascontiguousarray(x.T), weight.T
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    if way.startswith("numpy"):
        return lambda: np.dot(left, right, out=out)
    tensors = [torch.from_numpy(array) for array in (left, right, out)]
    return lambda: torch.mm(tensors[0], tensors[1], out=tensors[2])

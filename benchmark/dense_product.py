"""One matrix product by the engine's own kernels, for those who measure it."""

from typing import Callable

import numpy as np

from rnnt_kd_engine import operations as op
from rnnt_kd_engine.kernels import STORE
from rnnt_kd_engine.numba_engine import aligned
from rnnt_kd_engine.packing import Packed


def dense_product(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that computes ``weight @ x + bias[:, None]`` anew and returns it.

    Args:
      weight: (outputs, inputs) float32; its zeros are skipped.
      bias:   (outputs,) float32.
      x:      (inputs, frames) float32, copied.
    """
    outputs, inputs = weight.shape
    frames = x.shape[1]
    stride = max(op.SHORTEST, -(-frames // op.LANES) * op.LANES)
    packed = Packed()
    parts = packed.add_matrix(weight, bias, inputs)
    steps = np.array([(op.MULTIPLY, part.rows, part.first, part.last, 0, STORE) for part in parts], np.int64)
    arrays, none = packed.finish(), np.zeros(1, np.float32)
    buffer = aligned((inputs + outputs) * stride)
    rows = buffer.reshape(inputs + outputs, stride)
    rows[:inputs, :frames] = x

    def compute() -> np.ndarray:
        op.run(
            steps, **arrays, buffer=buffer, frames=frames, stride=stride, odd=False, cos=none, sin=none, scratch=none
        )  # fmt: skip
        return rows[inputs:, :frames]

    return compute

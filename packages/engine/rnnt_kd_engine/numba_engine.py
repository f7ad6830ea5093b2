"""numba: the conformer in one compiled function: batch 1, one thread, float32; zeros cost nothing.

The first call compiles (a quarter of a minute); the result is kept beside this file for later processes, or in
the user's cache folder where that cannot be written.
"""

from typing import Optional

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders.conformer import Conformer
from rnnt_kd_engine import operations
from rnnt_kd_engine.conformer_program import conformer_program
from rnnt_kd_engine.vectors import LANES

CACHE_LINE = 64  # bytes


def compile_encoder(encoder: nn.Module) -> "NumbaEncoder":
    """Raises UserError: not a conformer."""
    return NumbaEncoder(encoder)


class NumbaEncoder:
    """Call it with features (T, 80) float32 of one utterance, T >= 1; it returns (ceil(T / 4), D) float32.

    The weights are those of the moment of compilation.  Not for several threads at a time: one buffer.
    Attributes: ``program``; ``num_bytes`` of weights and what finds them.
    """

    def __init__(self, model: nn.Module, rows_a_group: Optional[int] = None, feature_dim: int = 80):
        if type(model) is not Conformer:
            problem = f"an encoder {type(model).__name__}"
            raise UserError("engine numba", problem, "a Conformer", "take the engine torch")
        self.program = conformer_program(model, rows_a_group, feature_dim)
        self._stride = 0
        self._grow(operations.SHORTEST)

    @property
    def num_bytes(self) -> int:
        return self.program.num_bytes

    def __call__(self, features: Tensor) -> Tensor:
        x = np.ascontiguousarray(features.detach().numpy(), np.float32)
        assert x.ndim == 2 and len(x) and x.shape[1] == self.program.feature_dim, x.shape
        half = (len(x) + 1) // 2
        frames = (half + 1) // 2
        stride = max(operations.SHORTEST, -(-frames // LANES) * LANES)
        if stride != self._stride:
            self._grow(stride)
        program, buffer = self.program, self._buffer
        operations.write_input(
            x, buffer, stride, program.per_utterance, np.float32(program.mean), np.float32(program.scale)
        )
        operations.run(
            program.steps, **program.arrays, buffer=buffer, frames=frames, stride=stride, odd=half % 2 == 1,
            cos=self._cos, sin=self._sin, scratch=self._scratch,
        )  # fmt: skip
        return torch.from_numpy(operations.read_output(buffer, program.output_row, program.dim, frames, stride))

    def _grow(self, stride: int) -> None:
        """Room for rows of ``stride`` frames; tables of their positions."""
        program = self.program
        if stride > self._stride:
            self._buffer = aligned(program.rows * stride)
            room = max((stride + 8) * operations.SHORTEST, stride + 2 * program.taps)
            self._scratch = aligned(room)
        self._stride = stride
        self._cos, self._sin = operations.rotary(stride, program.head_dim)


def aligned(size: int) -> np.ndarray:
    """Zeros from the start of a cache line on: a vector of frames then never lies in two."""
    memory = np.zeros(size + CACHE_LINE // 4, np.float32)
    return memory[-memory.ctypes.data % CACHE_LINE // 4 :][:size]

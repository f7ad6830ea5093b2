"""Weights stored as float16, computed in float32: half the bytes, eleven bits of every number.

Each weight becomes a float16 initializer and a Cast, which onnxruntime runs once, at load.
"""

from pathlib import Path

import numpy as np
import onnx

from rnnt_kd.errors import UserError
from rnnt_kd.export.rewriting import Rewriter


def make_float16(src: Path, dst: Path) -> None:
    """Rewrite a float32 file.  Raises UserError: a weight beyond float16's largest number, 65504."""
    rewriter = Rewriter(src)
    for name in list(rewriter.weights):
        if rewriter.weights[name].dtype == np.float32:
            halves = to_half(rewriter.drop_weight(name), f"{src}: '{name}'")
            rewriter.compute("Cast", [rewriter.constant(halves)], name, to=onnx.TensorProto.FLOAT)
    rewriter.write(dst)


def to_half(values: np.ndarray, where: str) -> np.ndarray:
    """float32 -> the nearest float16, of any shape."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        problem = f"holds {np.abs(values).max():g}"
        raise UserError(where, problem, "at most 65504", "export it without --float16, --int8")
    return halves

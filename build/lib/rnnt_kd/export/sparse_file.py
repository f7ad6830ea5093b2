"""The zeros of an export are left out of its files; every other bit of every weight stays.

    packed               values and places, unpacked by nodes of the graph itself (``packed_file.py``)
    sparse_initializer   ONNX's own: float32 values, each with a 64-bit index

sherpa-onnx loads either unchanged and recognises the same.  Neither saves time: onnxruntime computes with
dense matrices.
"""

from pathlib import Path
from typing import Dict, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from rnnt_kd.errors import UserError
from rnnt_kd.export import packed_file
from rnnt_kd.export.quantize import ZERO_POINT
from rnnt_kd.export.rewriting import Rewriter

LAYOUTS = ("packed", "sparse_initializer")


def make_sparse(src: Path, dst: Path, layout: str = "packed") -> None:
    """Rewrite a file of float32, float16 or int8 weights; a weight that would not become smaller stays as it is.

    Raises: UserError: no such layout.
    """
    if layout not in LAYOUTS:
        raise UserError("layout", f"'{layout}'", f"one of: {', '.join(LAYOUTS)}")
    rewriter = Rewriter(src)
    {"packed": _pack, "sparse_initializer": _use_sparse_initializers}[layout](rewriter)
    rewriter.write(dst)


def zero_of(values: np.ndarray) -> int:
    """The bits of zero: 8-bit weights are stored around 128."""
    return ZERO_POINT if values.dtype == np.uint8 else 0


def _pack(rewriter: Rewriter) -> None:
    sequences: Dict[Tuple[str, packed_file.Code], Dict[str, int]] = {}  # weights and the bytes that each saves
    for name, values in rewriter.weights.items():
        if values.dtype in (np.float32, np.float16, np.uint8) and values.size:
            code, size = packed_file.best_code(values, zero_of(values))
            if size < values.nbytes:
                sequences.setdefault((values.dtype.str, code), {})[name] = values.nbytes - size
    for (_, code), saved in sequences.items():
        if sum(saved.values()) > packed_file.SEQUENCE_OVERHEAD:
            tensors = {name: rewriter.drop_weight(name) for name in saved}
            packed_file.pack(rewriter, tensors, zero_of(next(iter(tensors.values()))), code)


def _use_sparse_initializers(rewriter: Rewriter) -> None:
    """Only float32: onnxruntime's other types have no zero but 0."""
    for name, values in list(rewriter.weights.items()):
        filled = packed_file.filled_blocks(values, 0, 1) if values.dtype == np.float32 else np.ones(1, dtype=bool)
        places = np.flatnonzero(filled)
        if values.dtype == np.float32 and len(places) * 12 < values.nbytes:
            rewriter.drop_weight(name)
            stored = numpy_helper.from_array(values.reshape(-1)[places], name)
            indices = numpy_helper.from_array(places.astype(np.int64), "")
            sparse = onnx.helper.make_sparse_tensor(stored, indices, list(values.shape))
            rewriter.model.graph.sparse_initializer.append(sparse)

"""The formats of an export's ONNX files, each made from the float32 files.

float32 float16 int8                       int8 is QUInt8
sparse, sparse float16, sparse int8        the same without their zeros (``sparse_file``)
sparse_initializer                         float32 with ONNX's own sparse weights
"""

import os
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Tuple

from rnnt_kd.export.half import make_float16
from rnnt_kd.export.quantize import quantize_int8
from rnnt_kd.export.sparse_file import make_sparse

Step = Callable[[Path, Path], None]

BASE = "float32"
ONNX_FORMATS: Dict[str, Tuple[Step, ...]] = {
    BASE: (),
    "float16": (make_float16,),
    "int8": (quantize_int8,),
    "sparse": (make_sparse,),
    "sparse float16": (make_float16, make_sparse),
    "sparse int8": (quantize_int8, make_sparse),
    "sparse_initializer": (partial(make_sparse, layout="sparse_initializer"),),
}


def name_of(weights: str, sparse: bool) -> str:
    """The format with ``weights`` ("float32", "float16" or "int8"), and without their zeros where ``sparse``."""
    if not sparse:
        return weights
    return "sparse" if weights == BASE else f"sparse {weights}"


def convert(source: Path, path: Path, form: str) -> None:
    """Write ``path`` in a format from the float32 file ``source``, which may be the same file."""
    for step in ONNX_FORMATS[form]:
        made = path.with_name(f".{path.name}")
        step(source, made)
        os.replace(made, path)
        source = path

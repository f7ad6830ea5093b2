"""Weights as 8-bit integers (``QUInt8``): a quarter of the bytes, and in the encoder integer products.

    every matrix, kernel, embedding    q = round(w / scale) + 128, scale = max |w| / 127, one scale a tensor
    biases, norms                      float16
    the encoder's matrix products      inputs rounded to 256 steps while they come, MatMulInteger
    all others                         float32 again when onnxruntime loads the file

Zero is exactly 128, so what was sparse stays sparse.  Unsigned because ``QInt8`` times uint8 saturates on CPUs
that have AVX2 and no VNNI.  Predictor and joiner run on a few rows at a time, where integers gain nothing.
"""

from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import onnx
from onnx.helper import make_node

from rnnt_kd.export.compact import replace_nodes
from rnnt_kd.export.half import to_half
from rnnt_kd.export.onnx_file import metadata_of
from rnnt_kd.export.rewriting import Rewriter

ZERO_POINT = 128


def quantize_int8(src: Path, dst: Path) -> None:
    """Rewrite a float32 file.  Raises UserError: a bias that float16 cannot hold."""
    rewriter = Rewriter(src)
    if "model_type" in metadata_of(rewriter.model):  # the encoder, offline or streaming
        _use_integer_products(rewriter)
    vectors = []
    for name, values in list(rewriter.weights.items()):
        if values.dtype == np.float32 and values.ndim > 1:
            _store_in_eight_bits(rewriter, name)
        elif values.dtype == np.float32 and values.ndim == 1:
            vectors.append(name)
    _store_in_float16(rewriter, vectors, src)
    rewriter.write(dst)


def to_uint8(values: np.ndarray) -> Tuple[np.ndarray, np.float32]:
    """float32 -> (q uint8, scale): values ~ (q - 128) * scale, within half a scale; 0 is exact."""
    scale = np.float32(np.abs(values).max(initial=0.0) / 127)
    if not scale > 0:
        return np.full(values.shape, ZERO_POINT, dtype=np.uint8), np.float32(1)
    return (np.clip(np.rint(values / scale), -127, 127) + ZERO_POINT).astype(np.uint8), scale


def _use_integer_products(rewriter: Rewriter) -> None:
    """MatMul(x, weight) becomes MatMulInteger(integers of x, q) * (scale of x * scale of the weight)."""
    graph = rewriter.model.graph
    rounded: Dict[str, List[str]] = {}  # x -> its integers, scale, zero point
    stored: Dict[str, Tuple[str, str]] = {}  # weight -> its integers, scale
    nodes = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in rewriter.weights:
            nodes.append(node)
            continue
        x, weight = node.input
        if x not in rounded:
            rounded[x] = [rewriter.fresh() for _ in range(3)]
            nodes.append(make_node("DynamicQuantizeLinear", [x], rounded[x]))
        if weight not in stored:
            q, scale = to_uint8(rewriter.weights[weight])
            stored[weight] = rewriter.constant(q), rewriter.constant(scale)
        (integers, x_scale, x_zero_point), (q_name, scale_name) = rounded[x], stored[weight]
        zero_point = rewriter.constant(np.uint8(ZERO_POINT))
        product, as_float, scale_of_both = (rewriter.fresh() for _ in range(3))
        nodes += [
            make_node("MatMulInteger", [integers, q_name, x_zero_point, zero_point], [product]),
            make_node("Cast", [product], [as_float], to=onnx.TensorProto.FLOAT),
            make_node("Mul", [x_scale, scale_name], [scale_of_both]),
            make_node("Mul", [as_float, scale_of_both], list(node.output)),
        ]
    replace_nodes(graph, nodes)
    for name in stored:
        rewriter.drop_weight(name)


def _store_in_eight_bits(rewriter: Rewriter, name: str) -> None:
    q, scale = to_uint8(rewriter.drop_weight(name))
    as_float = rewriter.compute("Cast", [rewriter.constant(q)], to=onnx.TensorProto.FLOAT)
    centred = rewriter.compute("Sub", [as_float, rewriter.constant(np.float32(ZERO_POINT))])
    rewriter.compute("Mul", [centred, rewriter.constant(scale)], rewriter.rename(name))


def _store_in_float16(rewriter: Rewriter, names: List[str], src: Path) -> None:
    """All vectors end to end in one: a Cast for each would weigh as much as a short vector."""
    if not names:
        return
    vectors = [to_half(rewriter.drop_weight(name), f"{src}: '{name}'") for name in names]
    joined = rewriter.compute("Cast", [rewriter.constant(np.concatenate(vectors))], to=onnx.TensorProto.FLOAT)
    sizes = rewriter.constant(np.array([len(vector) for vector in vectors], dtype=np.int64))
    rewriter.compute_many("Split", [joined, sizes], [rewriter.rename(name) for name in names], axis=0)

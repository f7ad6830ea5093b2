"""The format of an export's ONNX files: steps behind one another, which a user names as in "int8+sparse".

float32             no step
float16             weights stored as float16, computed in float32: half the bytes, eleven bits of every number
int8                weights as 8-bit integers (``QUInt8``): a quarter of the bytes, in the encoder integer products
int4                weights as 4-bit integers, computed in float32: an eighth of the bytes
sparse              zeros left out, unpacked by nodes of the graph itself (``packing``); every other bit stays
sparse_initializer  the same by ONNX's own: float32 values, each with a 64-bit index

of int8:
  every matrix, kernel, embedding    q = round(w / scale) + 128, scale = max |w| / 127, one scale a tensor
  biases, norms                      float16, all in one
  the encoder's matrix products      inputs rounded to 256 steps while they come, MatMulInteger
  all others                         float32 again when onnxruntime loads the file

of int4:
  every matrix, kernel, embedding    a scale in float16 for each output (``sparsity.rounding.grid``)
  biases, norms                      8-bit integers, a scale for each 16 of them; float16, where there are not whole 16s
  what a system was trained with     ``training.weight_bits: 4`` loses nothing: the file computes what the system does

Zero is exactly 128, so what was sparse stays sparse.  (onnxruntime's own ``quantize_dynamic`` keeps zeros exact, too;
but of an AN4 student its files are 9 % larger, and the encoder errs a third more.)  Unsigned because ``QInt8`` times
uint8 saturates on CPUs that have AVX2 and no VNNI.  Predictor and joiner run on a few rows at a time, where integers
gain nothing.  Zeros save no time: onnxruntime multiplies them.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, List, Set, Tuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.helper import make_node

from rnnt_kd import atomic, choices
from rnnt_kd.errors import UserError
from rnnt_kd.export import packing
from rnnt_kd.export.onnx_file import TRANSPOSED, load_onnx, metadata_of
from rnnt_kd.export.packing import ZERO_POINT
from rnnt_kd.export.rewriting import Rewriter, all_nodes, replace_nodes
from rnnt_kd.sparsity import rounding

BASE = "float32"


def steps_of(form: str) -> List[str]:
    """The names in ``form``; UserError: one that is none, or an order that makes no sense."""
    names = [choices.check(name, (BASE, *STEPS), "--format") for name in form.split("+")]
    steps = [name for name in names if name != BASE]
    if steps not in [first + second for first in ([], *ROUNDING) for second in ([], *ZEROS)]:
        expected = "at most one of float16, int8 and int4, then at most one without zeros"
        raise UserError("--format", f"'{form}'", expected)
    return steps


def weights_of(form: str) -> str:
    """ "float32", "float16", "int8" or "int4": how the weights are rounded."""
    return next((step for step in steps_of(form) if [step] in ROUNDING), BASE)


def is_sparse(form: str) -> bool:
    """Are zeros left out?"""
    return any([step] in ZEROS for step in steps_of(form))


def convert(source: Path, path: Path, form: str) -> None:
    """Write ``path`` in a format from the float32 file ``source``, which may be the same file.

    Raises UserError: ``steps_of``; no ONNX file; a weight that float16 cannot hold.
    """
    model = load_onnx(source)
    for name in steps_of(form):
        rewriter = Rewriter(model)
        STEPS[name](rewriter, source, is_sparse(form))
        rewriter.finish()
    atomic.write_bytes(Path(path), model.SerializeToString(deterministic=True))


def make_float16(rewriter: Rewriter, source: Path, zeros_go: bool) -> None:
    """Each weight becomes a float16 initializer and a Cast."""
    for name in [name for name, values in rewriter.weights.items() if values.dtype == np.float32]:
        halves = _to_half(rewriter.weights.pop(name), f"{source}: '{name}'")
        rewriter.compute("Cast", [rewriter.constant(halves)], name, to=onnx.TensorProto.FLOAT)


def make_int8(rewriter: Rewriter, source: Path, zeros_go: bool) -> None:
    """See above; a bias must fit into float16."""
    if "model_type" in metadata_of(rewriter.model):  # the encoder, offline or streaming
        _use_integer_products(rewriter)
    for name, values in _matrices(rewriter).items():
        q, scale = to_uint8(values)
        as_float = rewriter.compute("Cast", [rewriter.constant(q)], to=onnx.TensorProto.FLOAT)
        centred = rewriter.compute("Sub", [as_float, rewriter.constant(np.float32(ZERO_POINT))])
        rewriter.compute("Mul", [centred, rewriter.constant(scale)], rewriter.rename(name))
    _join_halves(rewriter, _vectors(rewriter, source))


def make_int4(rewriter: Rewriter, source: Path, zeros_go: bool) -> None:
    """See above; where ``zeros_go``, codes are stored without their zeros if that is smaller."""
    metadata = metadata_of(rewriter.model)
    swapped = set(json.loads(metadata[TRANSPOSED])) if TRANSPOSED in metadata else _by_input(rewriter.model)
    vectors = _vectors(rewriter, source)
    whole = {name: vectors.pop(name) for name in list(vectors) if len(vectors[name]) % rounding.GROUP == 0}
    codes: Dict[str, np.ndarray] = {}
    scaled = []  # name of the codes, their scales, name of the product
    for name, values in _matrices(rewriter).items():
        by_output = torch.tensor(values.T.copy() if name in swapped else values)
        q, scales = (part.numpy().T if name in swapped else part.numpy() for part in rounding.grid(by_output, 4))
        _to_half(np.abs(values).max() / np.float32(7), f"{source}: the scales of '{name}'")
        scaled.append((rewriter.fresh(), scales, rewriter.rename(name)))
        codes[scaled[-1][0]] = np.ascontiguousarray(q)
    if zeros_go:
        _pack_sparse(rewriter, codes)
    if codes:
        packing.pack(rewriter, codes, packing.ALL)
    if whole:
        groups, scales_of_groups = rounding.vector_grid(torch.tensor(np.concatenate(list(whole.values()))))
        as_float = rewriter.compute("Cast", [rewriter.constant(groups.numpy())], to=onnx.TensorProto.FLOAT)
        scaled.append((as_float, scales_of_groups.numpy(), rewriter.fresh()))
    names = [rewriter.fresh() for _ in scaled]
    _join_halves(rewriter, {**vectors, **{one: scales.reshape(-1) for one, (_, scales, _) in zip(names, scaled)}})
    for one, (made, scales, name) in zip(names, scaled, strict=True):
        is_row = scales.shape[-1] > 1 or scales.size == 1
        rewriter.compute("Mul", [made, one if is_row else rewriter.reshape(one, *scales.shape)], name)
    if whole:
        _split(rewriter, rewriter.reshape(name, -1), {vector: len(values) for vector, values in whole.items()})


def _by_input(model: onnx.ModelProto) -> Set[str]:
    """The matrices whose last index is the output, in a file of others."""
    products = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    return products | {node.input[1] for node in gemms if not any(a.name == "transB" and a.i for a in node.attribute)}


def _matrices(rewriter: Rewriter) -> Dict[str, np.ndarray]:
    """Taken out of the weights: those in float32 of two dimensions and more."""
    weights = rewriter.weights.items()
    found = [name for name, values in weights if values.dtype == np.float32 and values.ndim > 1 and values.size]
    return {name: rewriter.weights.pop(name) for name in found}


def _vectors(rewriter: Rewriter, source: Path) -> Dict[str, np.ndarray]:
    """Taken out of the weights and renamed: the others in float32, which float16 must hold."""
    found = [name for name, values in rewriter.weights.items() if values.dtype == np.float32 and values.ndim == 1]
    vectors = {name: rewriter.weights.pop(name) for name in found}
    for name, values in vectors.items():
        _to_half(values, f"{source}: '{name}'")
    return {rewriter.rename(name): values for name, values in vectors.items()}


def _join_halves(rewriter: Rewriter, vectors: Dict[str, np.ndarray]) -> None:
    """Vectors as float16, end to end in one: a Cast for each would weigh as much as a short one."""
    if vectors:
        whole = rewriter.constant(np.concatenate([values.astype(np.float16) for values in vectors.values()]))
        joined = rewriter.compute("Cast", [whole], to=onnx.TensorProto.FLOAT)
        _split(rewriter, joined, {name: len(values) for name, values in vectors.items()})


def _split(rewriter: Rewriter, joined: str, sizes: Dict[str, int]) -> None:
    sizes_name = rewriter.constant(np.array(list(sizes.values()), dtype=np.int64))
    rewriter.compute_many("Split", [joined, sizes_name], list(sizes), axis=0)


def make_sparse(rewriter: Rewriter, source: Path, zeros_go: bool) -> None:
    """Weights that become smaller without their zeros, all of one type and code end to end."""
    for dtype in (np.float32, np.float16, np.uint8):
        weights = {name: values for name, values in rewriter.weights.items() if values.dtype == dtype and values.size}
        for name in set(weights) - set(_pack_sparse(rewriter, dict(weights))):
            del rewriter.weights[name]


def _pack_sparse(rewriter: Rewriter, weights: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Take out of ``weights`` (one dtype) and store those that become smaller without zeros; returns what is left."""
    sequences: Dict[packing.Code, Dict[str, int]] = {}  # weights and the bytes that each saves
    for name, values in weights.items():
        code, size = packing.best_code(values)
        whole = values.nbytes if values.dtype != np.int8 else values.size // 2 + packing.OVERHEAD
        if size < whole:
            sequences.setdefault(code, {})[name] = whole - size
    for code, saved in sequences.items():
        if sum(saved.values()) > packing.SEQUENCE_OVERHEAD:
            packing.pack(rewriter, {name: weights.pop(name) for name in saved}, code)
    return weights


def make_sparse_initializers(rewriter: Rewriter, source: Path, zeros_go: bool) -> None:
    """Only float32: onnxruntime's other types have no zero but 0."""
    for name in [name for name, values in rewriter.weights.items() if values.dtype == np.float32]:
        values = rewriter.weights[name]
        places = np.flatnonzero(packing.filled_blocks(values, 1))
        if len(places) * 12 < values.nbytes:
            del rewriter.weights[name]
            stored = numpy_helper.from_array(values.reshape(-1)[places], name)
            indices = numpy_helper.from_array(places.astype(np.int64), "")
            sparse = onnx.helper.make_sparse_tensor(stored, indices, list(values.shape))
            rewriter.model.graph.sparse_initializer.append(sparse)


STEPS: Dict[str, Callable[[Rewriter, Path, bool], None]] = {
    "float16": make_float16,
    "int8": make_int8,
    "int4": make_int4,
    "sparse": make_sparse,
    "sparse_initializer": make_sparse_initializers,
}
ROUNDING, ZEROS = (["float16"], ["int8"], ["int4"]), (["sparse"], ["sparse_initializer"])


def to_uint8(values: np.ndarray) -> Tuple[np.ndarray, np.float32]:
    """float32 -> (q uint8, scale): values ~ (q - 128) * scale, within half a scale; 0 is exact."""
    q, scale = rounding.grid(torch.tensor(values), 8)
    return (q.numpy().astype(np.int16) + ZERO_POINT).astype(np.uint8), np.float32(scale)


def _to_half(values: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        problem = f"holds {np.abs(values).max():g}"
        raise UserError(where, problem, "at most 65504", "export it in float32, or sparse")
    return halves


def _use_integer_products(rewriter: Rewriter) -> None:
    """MatMul(x, weight) becomes MatMulInteger(integers of x, q) * (scale of x * scale of the weight).

    Of a weight that nothing else reads.
    """
    graph = rewriter.model.graph
    reads = Counter(name for node in all_nodes(graph) for name in node.input)
    factors = Counter(node.input[1] for node in graph.node if node.op_type == "MatMul")
    alone = {name for name in rewriter.weights if reads[name] == factors[name]}
    rounded: Dict[str, List[str]] = {}  # x -> its integers, scale, zero point
    stored: Dict[str, Tuple[str, str]] = {}  # weight -> its integers, scale
    nodes = []
    for node in rewriter.model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in alone:
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
    replace_nodes(rewriter.model.graph, nodes)
    for name in stored:
        del rewriter.weights[name]

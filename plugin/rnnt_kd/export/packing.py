"""Sparse weights inside an ONNX graph, with the nodes that unpack them.

An ONNX ``sparse_initializer`` spends 64 bits on the place of every value.  Here all sparse weights of a file and a
type lie end to end as one sequence, and that as

    values   what is not zero, in order; codes of 4 bits (int8, -8 .. 7) two in a byte, the first in the high half
    places   "gaps": 4 bits a value, the number of zeros before it; 15 means 15 zeros and no value yet
             "bits": 1 bit an entry, the first in the highest bit
             "all": nothing, for codes of 4 bits alone: zeros are values, too
    unpack   some ten nodes of ONNX's own: places -> indices, ScatterND into zeros, Split, Reshape

In blocks of ``g`` (neighbouring entries that are zero together) one place counts for g values.  The nodes depend on
constants only, so onnxruntime runs them once, when it loads the file.  Every value keeps its bits; codes of 4 bits
come out as float32.

The graph states the sizes of Compress's and NonZero's outputs: onnxruntime from 1.27 on runs nothing at load whose
size it cannot tell before (its issue 32130), and would unpack the weights anew for every utterance.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from rnnt_kd.export.rewriting import Rewriter

ZERO_POINT = 128  # the zero of 8-bit weights
BLOCKS = (1, 4, 16)  # sizes g that are tried
SKIP = 15
OVERHEAD = 90  # bytes that Split and Reshape of a weight cost, about
SEQUENCE_OVERHEAD = 700  # bytes that the nodes of a sequence cost, about
_INT32, _INT64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64


@dataclass(frozen=True)
class Code:
    """The way in which the weights of one sequence are stored."""

    block: int
    places: str  # "gaps", "bits" or "all"


ALL = Code(1, "all")


def zero_of(values: np.ndarray) -> int:
    """The bits of zero: 8-bit weights are stored around 128."""
    return ZERO_POINT if values.dtype == np.uint8 else 0


def filled_blocks(values: np.ndarray, block: int) -> np.ndarray:
    """(n / block,) bool: not all of the block's bits are those of zero."""
    bits = np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")
    return (bits.reshape(-1, block) != zero_of(values)).any(axis=1)


def best_code(values: np.ndarray) -> Tuple[Code, int]:
    """The code without zeros that has the fewest bytes, and their number."""
    sizes = {}
    for block in BLOCKS:
        if values.size % block == 0:
            filled = filled_blocks(values, block)
            bits = 4 if values.dtype == np.int8 else 8 * values.dtype.itemsize
            content = int(filled.sum()) * block * bits // 8 + OVERHEAD
            sizes[Code(block, "gaps")] = content + len(encode_gaps(filled))
            sizes[Code(block, "bits")] = content + len(np.packbits(filled))
    code = min(sizes, key=sizes.__getitem__)
    return code, sizes[code]


def encode_gaps(filled: np.ndarray) -> np.ndarray:
    """(n,) bool -> uint8, two gaps a byte, the first in the high half; zeros behind the last value are left out."""
    places = np.flatnonzero(filled)
    gaps = np.diff(places, prepend=-1) - 1
    skips, rest = np.divmod(gaps, SKIP)
    codes = np.full(int(skips.sum()) + len(places), SKIP, dtype=np.uint8)
    codes[np.cumsum(skips + 1) - 1] = rest
    codes = np.append(codes, np.full(len(codes) % 2, SKIP, dtype=np.uint8))
    return codes[0::2] << 4 | codes[1::2]


def encode_halves(codes: np.ndarray) -> np.ndarray:
    """(n,) int8, -8 .. 7 -> uint8, two codes a byte, 8 more than they are; the last may have a 0 beside it."""
    halves = np.append(codes + 8, np.full(len(codes) % 2, 8)).astype(np.uint8)
    return halves[0::2] << 4 | halves[1::2]


def pack(rewriter: Rewriter, tensors: Dict[str, np.ndarray], code: Code) -> None:
    """Add sequence and nodes that make each of ``tensors`` (one dtype, whole blocks) under its name."""
    flat = np.concatenate([values.reshape(-1) for values in tensors.values()])
    filled = filled_blocks(flat, code.block) if code != ALL else np.ones(len(flat), dtype=bool)
    kept = flat.reshape(-1, code.block)[filled]
    stored = _decode_halves(rewriter, kept) if flat.dtype == np.int8 else rewriter.constant(kept)
    if code != ALL:
        places: Dict[str, Any] = {"gaps": (encode_gaps, _indices_of_gaps), "bits": (np.packbits, _indices_of_bits)}
        encode, indices = places[code.places]
        where = indices(rewriter, rewriter.constant(encode(filled)), int(filled.sum()))
        shape = rewriter.constant(np.array([len(filled), code.block], dtype=np.int64))
        fill = np.array([zero_of(flat)], dtype=f"u{flat.dtype.itemsize}").view(flat.dtype)
        fill = fill.astype(np.float32) if flat.dtype == np.int8 else fill
        zeros = rewriter.compute("ConstantOfShape", [shape], value=numpy_helper.from_array(fill))
        stored = rewriter.compute("ScatterND", [zeros, where, stored])
    sequence = rewriter.reshape(stored, -1)
    sizes = rewriter.constant(np.array([values.size for values in tensors.values()], dtype=np.int64))
    pieces = rewriter.compute_many("Split", [sequence, sizes], [rewriter.fresh() for _ in tensors], axis=0)
    for piece, (name, values) in zip(pieces, tensors.items(), strict=True):
        rewriter.compute("Reshape", [piece, rewriter.constant(np.array(values.shape, dtype=np.int64))], name)


def _decode_halves(rewriter: Rewriter, codes: np.ndarray) -> str:
    """float32 in the shape of ``codes``, which are stored by ``encode_halves``."""
    flat = _halves(rewriter, rewriter.constant(encode_halves(codes.reshape(-1))))
    if codes.size % 2:
        first, size = (rewriter.constant(np.array([number], dtype=np.int64)) for number in (0, codes.size))
        flat = rewriter.compute("Slice", [flat, first, size])
    centred = rewriter.compute("Sub", [flat, rewriter.constant(np.int32(8))])
    return rewriter.reshape(rewriter.compute("Cast", [centred], to=onnx.TensorProto.FLOAT), *codes.shape)


def _halves(rewriter: Rewriter, packed: str) -> str:
    """(n,) uint8 -> (2 n,) int32: both halves of each byte, the high one first."""
    digits = rewriter.compute("Mod", [_digits(rewriter, packed, [16, 1]), rewriter.constant(np.int32(16))])
    return rewriter.reshape(digits, -1)


def _indices_of_gaps(rewriter: Rewriter, packed: str, m: int) -> str:
    """(m, 1) int64: where the m values are."""
    codes = _halves(rewriter, packed)
    has_value = rewriter.compute("Less", [codes, rewriter.constant(np.int32(SKIP))])
    steps = rewriter.compute("Add", [codes, rewriter.compute("Cast", [has_value], to=_INT32)])
    ends = rewriter.compute("CumSum", [steps, rewriter.constant(np.int32(0))])
    places = rewriter.compute("Sub", [ends, rewriter.constant(np.int32(1))])
    used = rewriter.compute("Compress", [places, has_value], axis=0)
    rewriter.state_shape(used, _INT32, [m])
    column = rewriter.reshape(used, -1, 1)
    return rewriter.compute("Cast", [column], to=_INT64)


def _indices_of_bits(rewriter: Rewriter, packed: str, m: int) -> str:
    """The same from one bit an entry."""
    digits = _digits(rewriter, packed, [128, 64, 32, 16, 8, 4, 2, 1])
    bits = rewriter.compute("Mod", [digits, rewriter.constant(np.int32(2))])
    flat = rewriter.reshape(bits, -1)
    places = rewriter.compute("NonZero", [flat])
    rewriter.state_shape(places, _INT64, [1, m])
    return rewriter.compute("Transpose", [places], perm=[1, 0])


def _digits(rewriter: Rewriter, packed: str, divisors: List[int]) -> str:
    """(n,) uint8 -> (n, divisors) int32: each byte divided by each, rounded down."""
    numbers = rewriter.compute("Cast", [packed], to=_INT32)
    column = rewriter.reshape(numbers, -1, 1)
    return rewriter.compute("Div", [column, rewriter.constant(np.array([divisors], dtype=np.int32))])

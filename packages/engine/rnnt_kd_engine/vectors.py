"""Pieces of LLVM code on vectors of float32, for ``kernels``.

numba's own vectoriser cannot hold a tile of sums in registers; here the vectors are written down.  LLVM
splits them where the processor has narrower ones, so the code is right everywhere and no C compiler is needed.
A *vector* is ``LANES`` consecutive frames of one row.
"""

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils

try:
    _FEATURES = llvmlite.binding.get_host_cpu_features()
except RuntimeError:  # a processor LLVM does not know
    _FEATURES = {}
WIDE = bool(_FEATURES.get("avx512f"))
LANES = 16 if WIDE else 8  # float32 a vector
FLOAT, INT = ir.FloatType(), ir.IntType(32)
VECTOR, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
FUSE = ("contract",)  # multiply and add in one instruction where there is one

# exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2 (Moshier, Cephes expf): relative error 2e-7
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23: added to x, it leaves round(x) in the lowest bits
LARGEST = 87.0  # beyond, exp leaves the range of normal float32


def constant(value: float) -> ir.Constant:
    """A vector of equal numbers."""
    return ir.Constant(VECTOR, [ir.Constant(FLOAT, value)] * LANES)


def load(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """LANES numbers from a pointer to float."""
    vector = builder.load(builder.bitcast(pointer, VECTOR.as_pointer()))
    vector.align = 4
    return vector


def store(builder: ir.IRBuilder, vector: ir.Value, pointer: ir.Value) -> None:
    instruction = builder.store(vector, builder.bitcast(pointer, VECTOR.as_pointer()))
    instruction.align = 4


def splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """LANES times one float."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, INT(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(INTS, [INT(0)] * LANES))


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c."""
    return builder.fadd(builder.fmul(a, b, flags=FUSE), c, flags=FUSE)


def maximum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def minimum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def square_root(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    kind = ir.FunctionType(VECTOR, [VECTOR])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32"), [x])


def exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """exp of x, which is first brought into [-LARGEST, LARGEST]."""
    x = maximum(builder, minimum(builder, x, constant(LARGEST)), constant(-LARGEST))
    shifted = multiply_add(builder, x, constant(_LOG2_E), constant(_ROUND))
    power = builder.fsub(shifted, constant(_ROUND))
    r = multiply_add(builder, power, constant(-_LN2_HIGH), x)
    r = multiply_add(builder, power, constant(-_LN2_LOW), r)
    polynomial = constant(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        polynomial = multiply_add(builder, polynomial, r, constant(coefficient))
    result = multiply_add(builder, polynomial, builder.fmul(r, r), builder.fadd(r, constant(1.0)))
    exponent = builder.shl(builder.bitcast(shifted, INTS), ir.Constant(INTS, [INT(23)] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(result, INTS), exponent), VECTOR)


def sigmoid(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _over_one_plus_exp(builder, constant(1.0), x)


def silu(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """x * sigmoid(x)."""
    return _over_one_plus_exp(builder, x, x)


def _over_one_plus_exp(builder: ir.IRBuilder, numerator: ir.Value, x: ir.Value) -> ir.Value:
    negated = builder.fsub(constant(0.0), x)
    return builder.fdiv(numerator, builder.fadd(constant(1.0), exp(builder, negated)))

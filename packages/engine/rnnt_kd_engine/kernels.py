"""The inner loops of the encoder, as numba intrinsics on tiles of rows x vectors that stay in registers.

Activations lie feature by feature, frames side by side: a *row* is one feature over all frames.  So a weight is
one number times vectors of frames, and a weight that is zero is simply not there: nothing is lost to gathering,
whatever the pattern of the zeros.

Arrays are flat; positions are int64, counted in float32.  Nothing is checked here.
"""

from typing import Callable, List, Sequence

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from rnnt_kd_engine import vectors
from rnnt_kd_engine.vectors import LANES, VECTOR

intrinsic: Callable[[Callable], Callable] = extending.intrinsic  # its own types count the first argument

STORE, SILU, ADD, GATE = range(4)  # what becomes of the sums, see product
# Rows of a tile -> vectors of a tile at most: as many sums as hide the latency of an addition, and fit the registers.
TILES = {8: 2, 4: 4, 1: 8} if vectors.WIDE else {8: 1, 4: 2, 1: 8}


def product(rows: int, width: int) -> Callable:
    """A tile of a matrix product: ``rows`` outputs with the same columns, ``width`` vectors of frames.

    ``kernel(buffer, columns, first, count, parameters, weights, bias, source, target, stride, mode)``

      columns[first : first + count]: the input rows that have a weight; row r begins at ``source + r * stride``.
      parameters:       float32; ``weights`` is the position of (count, rows) weights, ``bias`` of ``rows`` biases.
      source, target:   positions in ``buffer`` of the tile's first frame, of input row 0 and of the first output.
      mode:             STORE: y = sum; SILU: y = silu(sum); ADD: y += sum; GATE: y *= sigmoid(sum).
    """

    @intrinsic
    def kernel(_, buffer, columns, first, count, parameters, weights, bias, source, target, stride, mode):
        arguments = (buffer, columns, first, count, parameters, weights, bias, source, target, stride, mode)

        def generate(context, builder, signature, values):
            data = _pointers(context, builder, signature, values)
            first, count, weights, bias, source, target, stride, mode = (values[i] for i in (2, 3, 5, 6, 7, 8, 9, 10))
            column = builder.gep(data[1], [first])
            x, w, b = (builder.gep(data[i], [at]) for i, at in ((0, source), (4, weights), (4, bias)))
            sums = _Tile(builder, rows, width)
            sums.fill([vectors.splat(builder, builder.load(_at(builder, b, row))) for row in range(rows)])
            with cgutils.for_range(builder, count) as loop:
                row = builder.zext(builder.load(builder.gep(column, [loop.index])), stride.type)
                weight = builder.gep(w, [builder.mul(loop.index, stride.type(rows))])
                pointers = [_at(builder, weight, r) for r in range(rows)]
                sums.add_outer(builder.gep(x, [builder.mul(row, stride)]), pointers)
            sums.finish(builder.gep(data[0], [target]), stride, mode)
            return context.get_dummy_value()

        return types.void(*arguments), generate

    return kernel


def strided_product(rows: int, width: int) -> Callable:
    """The same for two blocks of a buffer, of which the first stands for the weights: no list of columns.

    ``kernel(weights, w, w_step, w_row, x_buffer, x, x_step, count, initial, out, y, y_row)``:
    out[y + r * y_row + t] =
        initial + sum over i < count of weights[w + i * w_step + r * w_row] * x_buffer[x + i * x_step + t].
    """

    @intrinsic
    def kernel(_, weights, w, w_step, w_row, x_buffer, x, x_step, count, initial, out, y, y_row):
        arguments = (weights, w, w_step, w_row, x_buffer, x, x_step, count, initial, out, y, y_row)

        def generate(context, builder, signature, values):
            data = _pointers(context, builder, signature, values)
            w, w_step, w_row, x, x_step, count, initial, y, y_row = (values[i] for i in (1, 2, 3, 5, 6, 7, 8, 10, 11))
            w, x = builder.gep(data[0], [w]), builder.gep(data[4], [x])
            sums = _Tile(builder, rows, width)
            sums.fill([vectors.splat(builder, initial)] * rows)
            with cgutils.for_range(builder, count) as loop:
                weight = builder.gep(w, [builder.mul(loop.index, w_step)])
                pointers = [builder.gep(weight, [builder.mul(w_row, w_row.type(row))]) for row in range(rows)]
                sums.add_outer(builder.gep(x, [builder.mul(loop.index, x_step)]), pointers)
            sums.finish(builder.gep(data[9], [y]), y_row, None)
            return context.get_dummy_value()

        return types.void(*arguments), generate

    return kernel


@intrinsic
def layer_norm(_, buffer, source, target, count, stride, parameters, weights, epsilon, with_silu):
    """LayerNorm over ``count`` rows, of one vector of frames; first weights, then biases lie at ``weights``."""
    arguments = (buffer, source, target, count, stride, parameters, weights, epsilon, with_silu)

    def generate(context, builder, signature, values):
        data = _pointers(context, builder, signature, values)
        source, target, count, stride, weights, epsilon, with_silu = (values[i] for i in (1, 2, 3, 4, 6, 7, 8))
        x, y = builder.gep(data[0], [source]), builder.gep(data[0], [target])
        gain = builder.gep(data[5], [weights])
        offset = builder.gep(gain, [count])
        size = vectors.splat(builder, builder.sitofp(count, vectors.FLOAT))

        def over_rows(function):
            with cgutils.for_range(builder, count) as loop:
                function(loop.index, vectors.load(builder, builder.gep(x, [builder.mul(loop.index, stride)])))

        total, squares = (cgutils.alloca_once_value(builder, vectors.constant(0.0)) for _ in range(2))
        over_rows(lambda _, row: builder.store(builder.fadd(builder.load(total), row), total))
        mean = builder.fdiv(builder.load(total), size)

        def add_square(_, row):
            centred = builder.fsub(row, mean)
            builder.store(vectors.multiply_add(builder, centred, centred, builder.load(squares)), squares)

        over_rows(add_square)
        variance = builder.fadd(builder.fdiv(builder.load(squares), size), vectors.splat(builder, epsilon))
        inverse = builder.fdiv(vectors.constant(1.0), vectors.square_root(builder, variance))

        def normalise(activation):
            def function(index, row):
                scaled = builder.fmul(builder.fsub(row, mean), inverse)
                w, b = (vectors.splat(builder, builder.load(builder.gep(base, [index]))) for base in (gain, offset))
                value = activation(builder, vectors.multiply_add(builder, scaled, w, b))
                vectors.store(builder, value, builder.gep(y, [builder.mul(index, stride)]))

            over_rows(function)

        with builder.if_else(with_silu) as (then, otherwise):
            with then:
                normalise(vectors.silu)
            with otherwise:
                normalise(lambda _, value: value)
        return context.get_dummy_value()

    return types.void(*arguments), generate


@intrinsic
def softmax(_, scores, position, count, stride, out, target):
    """Over ``count`` rows, of one vector of frames, in place; not divided: one over the sum goes to ``out[target]``."""
    arguments = (scores, position, count, stride, out, target)

    def generate(context, builder, signature, values):
        data = _pointers(context, builder, signature, values)
        position, count, stride, target = (values[i] for i in (1, 2, 3, 5))
        x = builder.gep(data[0], [position])
        largest = cgutils.alloca_once_value(builder, vectors.constant(-3e38))
        total = cgutils.alloca_once_value(builder, vectors.constant(0.0))
        with cgutils.for_range(builder, count) as loop:
            row = vectors.load(builder, builder.gep(x, [builder.mul(loop.index, stride)]))
            builder.store(vectors.maximum(builder, builder.load(largest), row), largest)
        with cgutils.for_range(builder, count) as loop:
            pointer = builder.gep(x, [builder.mul(loop.index, stride)])
            value = vectors.exp(builder, builder.fsub(vectors.load(builder, pointer), builder.load(largest)))
            vectors.store(builder, value, pointer)
            builder.store(builder.fadd(builder.load(total), value), total)
        inverse = builder.fdiv(vectors.constant(1.0), builder.load(total))
        vectors.store(builder, inverse, builder.gep(data[4], [target]))
        return context.get_dummy_value()

    return types.void(*arguments), generate


@intrinsic
def move(_, source, x, target, y):
    """Copy the vector at ``source[x]`` to ``target[y]``."""

    def generate(context, builder, signature, values):
        data = _pointers(context, builder, signature, values)
        vector = vectors.load(builder, builder.gep(data[0], [values[1]]))
        vectors.store(builder, vector, builder.gep(data[2], [values[3]]))
        return context.get_dummy_value()

    return types.void(source, x, target, y), generate


def elementwise(function: Callable) -> Callable:
    """``kernel(array, position)``: one vector in place, for tests of ``vectors``."""

    @intrinsic
    def kernel(_, array, position):
        def generate(context, builder, signature, values):
            pointer = builder.gep(_pointers(context, builder, signature, values)[0], [values[1]])
            vectors.store(builder, function(builder, vectors.load(builder, pointer)), pointer)
            return context.get_dummy_value()

        return types.void(array, position), generate

    return kernel


class _Tile:
    """rows x width sums, which LLVM keeps in registers."""

    def __init__(self, builder: ir.IRBuilder, rows: int, width: int):
        self.builder = builder
        self.sums = [[cgutils.alloca_once(builder, VECTOR) for _ in range(width)] for _ in range(rows)]

    def fill(self, initial: Sequence[ir.Value]) -> None:
        for sums, value in zip(self.sums, initial):
            for place in sums:
                self.builder.store(value, place)

    def add_outer(self, x: ir.Value, weights: Sequence[ir.Value]) -> None:
        """Add weights[row] * (the vectors at x) to each row."""
        inputs = [vectors.load(self.builder, pointer) for pointer in self._along(x)]
        for sums, weight in zip(self.sums, weights):
            factor = vectors.splat(self.builder, self.builder.load(weight))
            for place, vector in zip(sums, inputs):
                self.builder.store(vectors.multiply_add(self.builder, factor, vector, self.builder.load(place)), place)

    def finish(self, target: ir.Value, stride: ir.Value, mode) -> None:
        """Write the sums as ``mode`` (int64, or None for STORE) says."""
        builder = self.builder
        if mode is None:
            self._write(target, stride, lambda value, pointer: value)
            return
        ways = {
            STORE: lambda value, pointer: value,
            SILU: lambda value, pointer: vectors.silu(builder, value),
            ADD: lambda value, pointer: builder.fadd(value, vectors.load(builder, pointer)),
            GATE: lambda value, pointer: builder.fmul(vectors.sigmoid(builder, value), vectors.load(builder, pointer)),
        }
        end = builder.append_basic_block("written")
        switch = builder.switch(mode, end)
        for number, way in ways.items():
            block = builder.append_basic_block("write")
            switch.add_case(mode.type(number), block)
            with builder.goto_block(block):
                self._write(target, stride, way)
                builder.branch(end)
        builder.position_at_end(end)

    def _write(self, target: ir.Value, stride: ir.Value, way: Callable) -> None:
        for row, sums in enumerate(self.sums):
            start = self.builder.gep(target, [self.builder.mul(stride, stride.type(row))])
            for place, pointer in zip(sums, self._along(start)):
                vectors.store(self.builder, way(self.builder.load(place), pointer), pointer)

    def _along(self, pointer: ir.Value) -> List[ir.Value]:
        return [_at(self.builder, pointer, LANES * number) for number in range(len(self.sums[0]))]


def _at(builder: ir.IRBuilder, pointer: ir.Value, offset: int) -> ir.Value:
    return builder.gep(pointer, [ir.IntType(64)(offset)])


def _pointers(context, builder, signature, values) -> list:
    """Data of the arrays among the arguments; None for the others."""
    return [
        context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else None
        for kind, value in zip(signature.args, values)
    ]

"""The operations of a compiled encoder, and the loop that runs a list of them.

A program is a table of int64, one operation a line: its number, then its arguments as below.  Rows are counted
in the one buffer of activations, (rows, stride) float32 with ``stride`` frames, of which the first ``frames`` are
the utterance; what lies behind them is finite and reaches none of them.

    MULTIPLY    rows of a tile, first group, last group + 1, source row, mode
    LAYER_NORM  source row, target row, rows, position of weights and biases, SiLU after it (0 or 1)
    ROTATE      first row, heads, rows a head
    ATTENTION   source row of queries, keys and values; target row; heads; rows a head
    DEPTHWISE   source row, target row, rows, taps, position of (rows, taps) weights and ``rows`` biases
    SHIFT       source row, target row, rows: one frame later, a zero before; the source's last frame becomes zero
                where the first convolution has an odd number of frames

A group is a tile's worth of outputs: target row, first of its columns, how many, position of its weights and of
its biases.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
from numba import njit

from rnnt_kd_engine.kernels import TILES, layer_norm, move, product, softmax, strided_product
from rnnt_kd_engine.vectors import LANES

MULTIPLY, LAYER_NORM, ROTATE, ATTENTION, DEPTHWISE, SHIFT = range(6)
ARGUMENTS = 6  # numbers an operation, at most
EPSILON = np.float32(1e-5)  # of torch's LayerNorm
PHASES = 5  # rows a bin: frames 4i - 1, 4i, 4i + 1, 4i + 2, 4i + 3

jit = njit(error_model="numpy")


def kept(function):
    """Compile, and keep the result on the disk for later processes."""
    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder where it could be kept
        return jit(function)


def _multiplier(rows: int):
    """Products with groups of ``rows`` outputs: tiles of frames of about the same width, one after the other."""
    widest = TILES[rows]
    multiply_tile = _tile_of_width(rows, widest)

    @jit
    def multiply(buffer, stride, groups, first, last, columns, parameters, source, mode):
        frame = 0
        while frame < stride:
            left = (stride - frame) // LANES
            tiles = (left + widest - 1) // widest
            width = (left + tiles - 1) // tiles
            multiply_tile(width, frame, buffer, stride, groups, first, last, columns, parameters, source, mode)
            frame += LANES * width

    return multiply


def _tile_of_width(rows: int, width: int):
    """All groups on a tile of ``wanted`` <= ``width`` vectors of frames: as many functions as there are widths."""
    kernel = product(rows, width)
    narrower = _tile_of_width(rows, width - 1) if width > 1 else None

    @jit
    def multiply_tile(wanted, frame, buffer, stride, groups, first, last, columns, parameters, source, mode):
        if narrower is not None:
            if wanted < width:
                narrower(wanted, frame, buffer, stride, groups, first, last, columns, parameters, source, mode)
                return
        x = source * stride + frame
        for number in range(first, last):
            column, count = np.int64(groups[number, 1]), np.int64(groups[number, 2])
            weights, bias = np.int64(groups[number, 3]), np.int64(groups[number, 4])
            y = np.int64(groups[number, 0]) * stride + frame
            kernel(buffer, columns, column, count, parameters, weights, bias, x, y, stride, mode)

    return multiply_tile


_multiply8, _multiply4, _multiply1 = _multiplier(8), _multiplier(4), _multiplier(1)
QUERIES = 2  # vectors of queries at a time in attention
SHORTEST = QUERIES * LANES  # frames a row, at least
_block8, _block1 = strided_product(8, QUERIES), strided_product(1, QUERIES)
_taps2, _taps4 = strided_product(1, 2), strided_product(1, 4)


@jit
def _rotate(buffer, stride, first, heads, rows, cos, sin):
    """Rotary positions: rows i and i + rows / 2 of each head."""
    half = rows // 2
    for head in range(heads):
        for pair in range(half):
            x = buffer[(first + head * rows + pair) * stride :][:stride]
            y = buffer[(first + head * rows + pair + half) * stride :][:stride]
            for frame in range(stride):
                a, b, c, s = x[frame], y[frame], cos[pair * stride + frame], sin[pair * stride + frame]
                x[frame] = a * c - b * s
                y[frame] = b * c + a * s


@jit
def _attention(buffer, frames, stride, source, target, heads, rows, scratch):
    """Softmax attention of all heads; queries are scaled already.  Scores: key by key, queries side by side."""
    width = LANES * QUERIES  # queries at a time
    keys_up = (frames + 7) // 8 * 8  # keys, filled up to whole tiles of 8; softmax reads the first `frames` alone
    zero = np.float32(0.0)
    inverse = keys_up * width  # scratch: (keys_up, width) scores, then the (width,) inverse sums of their exponentials
    for head in range(heads):
        queries = (source + head * rows) * stride
        keys = queries + heads * rows * stride
        values = keys + heads * rows * stride
        out = (target + head * rows) * stride
        for start in range(0, stride, width):
            frame = min(start, stride - width)  # the last ones again
            # scores[key, query] = sum over rows of keys[row, key] * queries[row, query]
            for key in range(0, keys_up, 8):
                _block8(
                    buffer, keys + key, stride, 1, buffer, queries + frame, stride, rows, zero,
                    scratch, key * width, width,
                )  # fmt: skip
            for part in range(0, width, LANES):
                softmax(scratch, part, frames, width, scratch, inverse + part)
            # out[row, query] = sum over keys of values[row, key] * exp(score), divided by the sum afterwards: it is the
            # same for all rows, so one multiplication an output replaces one a key
            row = 0
            while row < rows:
                weights, y = values + row * stride, out + row * stride + frame
                if row + 8 <= rows:
                    _block8(buffer, weights, 1, stride, scratch, 0, width, frames, zero, buffer, y, stride)
                    row += 8
                else:
                    _block1(buffer, weights, 1, stride, scratch, 0, width, frames, zero, buffer, y, stride)
                    row += 1
            for row in range(rows):
                for lane in range(width):
                    buffer[out + row * stride + frame + lane] *= scratch[inverse + lane]


@jit
def _depthwise(buffer, frames, stride, source, target, rows, taps, parameters, weights, scratch):
    """Convolution over time with zeros on either side."""
    before = taps // 2
    scratch[: stride + 2 * taps] = 0.0
    for row in range(rows):
        x, y = (source + row) * stride, (target + row) * stride
        for frame in range(0, stride, LANES):
            move(buffer, x + frame, scratch, before + frame)
        scratch[before + frames : before + stride] = 0.0
        bias = parameters[weights + rows * taps + row]
        w = weights + row * taps
        if stride >= 4 * LANES:
            for start in range(0, stride, 4 * LANES):
                frame = min(start, stride - 4 * LANES)  # the last ones again
                _taps4(parameters, w, 1, 0, scratch, frame, 1, taps, bias, buffer, y + frame, 0)
        else:
            for start in range(0, stride, 2 * LANES):
                frame = min(start, stride - 2 * LANES)
                _taps2(parameters, w, 1, 0, scratch, frame, 1, taps, bias, buffer, y + frame, 0)


@jit
def _shift(buffer, frames, stride, source, target, rows, odd):
    for row in range(rows):
        x, y = (source + row) * stride, (target + row) * stride
        if odd:
            buffer[x + frames - 1] = 0.0
        for frame in range(0, stride, LANES):
            move(buffer, x + frame - 1, buffer, y + frame)
        buffer[y] = 0.0


@kept
def write_input(features, buffer, stride, per_utterance, mean, scale):
    """Normalised features (T, bins), by their four phases: row 5 b + p is frame 4 i + p - 1 of bin b."""
    length, bins = features.shape
    means = np.full(bins, mean, np.float32)
    if per_utterance:
        means[:] = 0.0
        for frame in range(length):
            for bin in range(bins):
                means[bin] += features[frame, bin]
        means /= np.float32(length)
    for bin in range(bins):
        for phase in range(PHASES):
            row = (PHASES * bin + phase) * stride
            first = 1 if phase == 0 else 0
            end = (length - phase) // 4 + 1  # frames of this phase, the absent one before the first included
            if first:
                buffer[row] = 0.0
            for place in range(first, end):
                buffer[row + place] = (features[4 * place + phase - 1, bin] - means[bin]) * scale
            buffer[row + end : row + stride] = 0.0


@kept
def read_output(buffer, row, rows, frames, stride):
    """(frames, rows), frame by frame."""
    out = np.empty((frames, rows), np.float32)
    for frame in range(frames):
        for number in range(rows):
            out[frame, number] = buffer[(row + number) * stride + frame]
    return out


def rotary(stride: int, rows: int):
    """cos and sin of ``models.encoders.conformer.rotary_tables``, pair by pair."""
    rates = np.exp(np.arange(rows // 2, dtype=np.float32) * np.float32(-math.log(10000.0) / (rows // 2)))
    angles = rates[:, None] * np.arange(stride, dtype=np.float32)
    return np.cos(angles).ravel(), np.sin(angles).ravel()


def _compiled(sources: int):
    """``run``; ``sources`` changes with the files that its code is made of."""

    def run(program, groups, columns, parameters, buffer, frames, stride, odd, cos, sin, scratch):
        """Run the operations of ``program`` on ``buffer``.

        Args:
          groups (n, 5) int32, columns uint16, parameters float32: see above.
          frames, stride: valid frames, and frames a row: a multiple of LANES, at least SHORTEST.
          odd:            the first convolution has 2 * frames - 1 frames.
          cos, sin:       float32, tables of ``stride`` frames a pair of rows.
          scratch:        float32, (stride + 8) * SHORTEST, and no less than stride + 2 * taps.
        """
        if sources == 0:  # never; numba keys its cache with this file's time and what a function closes over
            return
        for step in range(len(program)):
            operation, a, b, c, d, e = program[step]
            if operation == MULTIPLY:
                if a == 8:
                    _multiply8(buffer, stride, groups, b, c, columns, parameters, d, e)
                elif a == 4:
                    _multiply4(buffer, stride, groups, b, c, columns, parameters, d, e)
                else:
                    _multiply1(buffer, stride, groups, b, c, columns, parameters, d, e)
            elif operation == LAYER_NORM:
                for frame in range(0, stride, LANES):
                    layer_norm(
                        buffer, a * stride + frame, b * stride + frame, c, stride, parameters, d, EPSILON, e != 0
                    )
            elif operation == ROTATE:
                _rotate(buffer, stride, a, b, c, cos, sin)
            elif operation == ATTENTION:
                _attention(buffer, frames, stride, a, b, c, d, scratch)
            elif operation == DEPTHWISE:
                _depthwise(buffer, frames, stride, a, b, c, d, parameters, e, scratch)
            else:
                _shift(buffer, frames, stride, a, b, c, odd)

    return kept(run)


def _sources() -> int:
    digest = hashlib.sha256()
    for name in ("kernels.py", "vectors.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return int.from_bytes(digest.digest()[:4], "big") + 1


run = _compiled(_sources())

"""A conformer -> the program that ``operations.run`` runs.

Rows of activations, one after the other: the input by phases, two bands of the first convolution, the second
convolution, then ``x`` (D rows, the residual stream), ``normed`` (D) and ``wide`` (what a branch needs inside).

The convolutions of stride 2 become matrix products without a stride: frames are kept by phases (even and odd
frames in rows of their own, and the odd ones once more a frame later), so every tap is a row.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from rnnt_kd.models.encoders.conformer import Conformer, ConformerLayer
from rnnt_kd.models.subsampling import FEATURE_MEAN, FEATURE_SCALE
from rnnt_kd_engine import operations as op
from rnnt_kd_engine.kernels import ADD, GATE, SILU, STORE
from rnnt_kd_engine.packing import Packed

EVEN, ODD, ODD_LATER = range(3)  # rows of a band of the first convolution, channels in each


@dataclass
class Program:
    """Arrays for ``operations``, and the sizes that go with them."""

    steps: np.ndarray
    names: List[str]  # of the steps, for people
    arrays: Dict[str, np.ndarray]
    rows: int
    output_row: int
    dim: int
    head_dim: int
    taps: int
    feature_dim: int
    per_utterance: bool
    mean: float = FEATURE_MEAN
    scale: float = FEATURE_SCALE

    @property
    def num_bytes(self) -> int:
        """The bytes of weights, their columns and the table of groups."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass
class _Builder:
    rows_a_group: Optional[int]
    packed: Packed = field(default_factory=Packed)
    steps: List[Tuple[int, ...]] = field(default_factory=list)
    names: List[str] = field(default_factory=list)
    rows: int = 0

    def take(self, rows: int) -> int:
        self.rows += rows
        return self.rows - rows

    def step(self, name: str, *numbers: int) -> None:
        self.steps.append(numbers + (0,) * (op.ARGUMENTS - len(numbers)))
        self.names.append(name)

    def multiply(self, name: str, weight: np.ndarray, bias: np.ndarray, source: int, target: int, mode: int) -> None:
        for part in self.packed.add_matrix(weight, bias, target, self.rows_a_group):
            self.step(name, op.MULTIPLY, part.rows, part.first, part.last, source, mode)

    def norm(self, name: str, module, source: int, target: int, silu: bool = False) -> None:
        weights = self.packed.add_parameters(np.stack([_array(module.weight), _array(module.bias)]))
        self.step(name, op.LAYER_NORM, source, target, module.normalized_shape[0], weights, int(silu))


def conformer_program(model: Conformer, rows_a_group: Optional[int] = None, feature_dim: int = 80) -> Program:
    """Compile the weights that ``model`` has now.

    Args:
      rows_a_group: 8, 4 or 1 for every matrix; None: what costs least, matrix by matrix.
      feature_dim:  mel bins of the input.
    """
    build, front = _Builder(rows_a_group), model.subsampling
    dim = model.output_dim
    layers: List[Any] = [layer for layer in model.layers if isinstance(layer, ConformerLayer)]
    assert front.linear.in_features == front.conv2.out_channels * ((feature_dim + 3) // 4), feature_dim
    source = build.take(op.PHASES * feature_dim)
    x, normed = build.take(dim), build.take(dim)
    inner = [module.linear_in.out_features for layer in layers for module in (layer.feedforward1, layer.feedforward2)]
    wide = build.take(max(*inner, 3 * dim))
    _front_end(build, front, feature_dim, source, x)
    for number, layer in enumerate(model.layers):
        if layer in layers:
            _branches(build, f"layers.{number}.", layer, x, normed, wide)
        build.norm(f"layers.{number}.output_norm", layer.output_norm, x, x)
    build.norm("final_norm", model.final_norm, x, x)
    return Program(
        np.array(build.steps, np.int64),
        build.names,
        build.packed.finish(),
        build.rows,
        output_row=x,
        dim=dim,
        head_dim=model.head_dim,
        taps=layers[0].convolution.depthwise.kernel_size[0],
        feature_dim=feature_dim,
        per_utterance=front.input_norm == "utterance",
    )


def _front_end(build: _Builder, module, feature_dim: int, source: int, x: int) -> None:
    """Band by band, so that the output of the first convolution stays in the cache."""
    channels, half_bins, bins = module.conv1.out_channels, (feature_dim + 1) // 2, (feature_dim + 3) // 4
    bands = build.take(3 * 3 * channels)  # bins 2 b - 1, 2 b, 2 b + 1 of the first convolution: bin modulo 3
    out = build.take(bins * channels)
    conv1 = _Convolution(build, "conv1", module.conv1, {EVEN: (0, 1, 2), ODD: (2, 3, 4)}, op.PHASES, 1, feature_dim)
    conv2 = _Convolution(build, "conv2", module.conv2, {EVEN: (ODD_LATER, EVEN, ODD)}, 3, channels, half_bins, 3)
    for band in range(bins):
        for bin in range(2 * band, min(2 * band + 2, half_bins)):
            target = bands + bin % 3 * 3 * channels
            for phase in (EVEN, ODD):
                conv1.at(bin, phase, source, target + phase * channels)
            build.step("shift", op.SHIFT, target + ODD * channels, target + ODD_LATER * channels, channels)
        conv2.at(band, EVEN, bands, out + band * channels)
    weight = _array(module.linear.weight).reshape(-1, channels, bins).transpose(0, 2, 1).reshape(-1, bins * channels)
    build.multiply("subsampling.linear", weight, _array(module.linear.bias), out, x, STORE)
    build.norm("subsampling.norm", module.norm, x, x)


class _Convolution:
    """A convolution of stride 2 as products, one a bin and phase, that share their weights.

    Args:
      phases:       phase of the output -> rows of the input that its three taps in time see.
      rows_a_bin:   of the input, each of ``channels``.
      input_bins:   of the input, of which the last ``ring`` are kept (None: all).
    """

    def __init__(self, build, name, module, phases, rows_a_bin, channels, input_bins, ring=None):
        self.build, self.name, self.phases, self.channels = build, name, phases, channels
        self.rows_a_bin, self.input_bins, self.ring = rows_a_bin, input_bins, ring or input_bins
        weight = _array(module.weight).transpose(0, 3, 2, 1)  # (outputs, bins, frames, inputs)
        self.rows = next(rows for rows in (8, 4, 1) if len(weight) % rows == 0)
        tiles = weight.reshape(-1, self.rows, weight[0].size).transpose(0, 2, 1)
        self.weights = [build.packed.add_parameters(tile) for tile in tiles]
        self.bias = build.packed.add_parameters(_array(module.bias))

    def at(self, bin: int, phase: int, source: int, target: int) -> None:
        """The outputs of a bin, to the rows from ``target`` on."""
        taps = [tap for tap in range(3) if 0 <= 2 * bin + tap - 1 < self.input_bins]
        places = [(2 * bin + tap - 1) % self.ring * self.rows_a_bin + row for tap in taps for row in self.phases[phase]]
        columns = [place * self.channels + channel for place in places for channel in range(self.channels)]
        packed, first = self.build.packed, len(self.build.packed.groups)
        start, skipped = packed.add_columns(np.array(columns)), taps[0] * 3 * self.channels * self.rows
        for number, weights in enumerate(self.weights):
            row = number * self.rows
            packed.groups.append((target + row, start, len(columns), weights + skipped, self.bias + row))
        self.build.step(self.name, op.MULTIPLY, self.rows, first, len(packed.groups), source, SILU)


def _branches(build: _Builder, name: str, layer, x: int, normed: int, wide: int) -> None:
    _feedforward(build, name + "feedforward1.", layer.feedforward1, x, normed, wide)
    _attention(build, name + "attention.", layer.attention, x, normed, wide)
    _convolution(build, name + "convolution.", layer.convolution, x, normed, wide)
    _feedforward(build, name + "feedforward2.", layer.feedforward2, x, normed, wide)


def _feedforward(build: _Builder, name: str, module, x: int, normed: int, wide: int) -> None:
    build.norm(name + "norm", module.norm, x, normed)
    build.multiply(name + "linear_in", *_linear(module.linear_in), normed, wide, SILU)
    weight, bias = _linear(module.linear_out)
    build.multiply(name + "linear_out", 0.5 * weight, 0.5 * bias, wide, x, ADD)


def _attention(build: _Builder, name: str, module, x: int, normed: int, wide: int) -> None:
    heads, head_dim = module.num_heads, module.head_dim
    weight, bias = (array.copy() for array in _linear(module.qkv_proj))
    weight[: heads * head_dim] *= head_dim**-0.5
    bias[: heads * head_dim] *= head_dim**-0.5
    build.norm(name + "norm", module.norm, x, normed)
    build.multiply(name + "qkv_proj", weight, bias, normed, wide, STORE)
    build.step(name + "rotate", op.ROTATE, wide, 2 * heads, head_dim)
    build.step(name + "softmax", op.ATTENTION, wide, normed, heads, head_dim)
    build.multiply(name + "out_proj", *_linear(module.out_proj), normed, x, ADD)


def _convolution(build: _Builder, name: str, module, x: int, normed: int, wide: int) -> None:
    dim, (weight, bias) = module.depthwise.in_channels, _linear(module.pointwise_in)
    build.norm(name + "norm", module.norm, x, normed)
    build.multiply(name + "pointwise_in", weight[:dim], bias[:dim], normed, wide, STORE)
    build.multiply(name + "pointwise_in", weight[dim:], bias[dim:], normed, wide, GATE)
    taps = np.concatenate([_array(module.depthwise.weight).ravel(), _array(module.depthwise.bias)])
    at = build.packed.add_parameters(taps)
    build.step(name + "depthwise", op.DEPTHWISE, wide, wide + dim, dim, module.depthwise.kernel_size[0], at)
    build.norm(name + "depthwise_norm", module.depthwise_norm, wide + dim, wide + dim, silu=True)
    build.multiply(name + "pointwise_out", *_linear(module.pointwise_out), wide + dim, x, ADD)


def _linear(module) -> Tuple[np.ndarray, np.ndarray]:
    return _array(module.weight), _array(module.bias)


def _array(tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()

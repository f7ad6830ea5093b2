"""Matrices taken apart by packing are put together again from its arrays, in plain loops."""

import numpy as np
import pytest

from rnnt_kd.inference.packing import Packed, cheapest_rows
from rnnt_kd.inference.structure import structure_of


def block_matrix(outputs, inputs, height, width, kept, seed=0):
    """Random weights in blocks, of which a share ``kept`` stays."""
    rng = np.random.default_rng(seed)
    mask = rng.random((-(-outputs // height), -(-inputs // width))) < kept
    mask = np.kron(mask, np.ones((height, width)))[:outputs, :inputs]
    return (rng.standard_normal((outputs, inputs)) * mask).astype(np.float32)


def unpacked(arrays, shape, target):
    """Weights and biases, from the groups alone."""
    weight, bias = np.zeros(shape, np.float32), np.full(shape[0], np.nan, np.float32)
    groups = arrays["groups"]
    for number, (row, column, count, weights, at_bias) in enumerate(groups):
        following = groups[number + 1][0] if number + 1 < len(groups) else target + shape[0]
        rows = following - row
        for place in range(count):
            for r in range(rows):
                weight[row - target + r, arrays["columns"][column + place]] = arrays["parameters"][
                    weights + place * rows + r
                ]
        bias[row - target : row - target + rows] = arrays["parameters"][at_bias : at_bias + rows]
    return weight, bias


@pytest.mark.parametrize("rows", [None, 8, 4, 1])
@pytest.mark.parametrize("shape", [(16, 5), (24, 16), (13, 7), (3, 40), (1, 1)])
@pytest.mark.parametrize("block", [(1, 1), (16, 1), (4, 4), (1, 16)])
def test_nothing_is_lost(rows, shape, block):
    weight = block_matrix(*shape, *block, kept=0.4)
    bias = np.arange(shape[0], dtype=np.float32)
    packed = Packed()
    segments = packed.add_matrix(weight, bias, 100, rows)
    found, found_bias = unpacked(packed.finish(), shape, 100)
    np.testing.assert_array_equal(found, weight)
    np.testing.assert_array_equal(found_bias, bias)
    assert [(part.first, part.last) for part in segments][-1][1] == len(packed.groups)


def test_a_matrix_of_zeros_keeps_its_biases():
    packed = Packed()
    packed.add_matrix(np.zeros((16, 8), np.float32), np.ones(16, np.float32), 0)
    arrays = packed.finish()
    assert len(arrays["columns"]) == 0 and all(count == 0 for _, _, count, _, _ in arrays["groups"])
    np.testing.assert_array_equal(unpacked(arrays, (16, 8), 0)[1], np.ones(16))


def test_blocks_are_stored_without_their_zeros():
    weight = block_matrix(96, 192, 16, 1, kept=0.1)
    packed = Packed()
    packed.add_matrix(weight, np.zeros(96, np.float32), 0)
    assert packed.num_parameters == np.count_nonzero(weight) + 96


@pytest.mark.parametrize(
    "block, kept, rows",
    [((1, 1), 1.0, 8), ((16, 1), 0.1, 8), ((16, 16), 0.1, 8), ((4, 4), 0.1, 4), ((1, 1), 0.1, 1), ((1, 16), 0.1, 1)],
)
def test_the_kind_of_group_follows_the_zeros(block, kept, rows):
    assert cheapest_rows(block_matrix(192, 96, *block, kept=kept)) == rows


@pytest.mark.parametrize(
    "block, name",
    [
        ((16, 16), "16x16"),
        ((16, 1), "16x1"),
        ((1, 16), "1x16"),
        ((4, 4), "4x4"),
        ((8, 1), "8x1"),
        ((4, 1), "4x1"),
        ((1, 1), "unstructured"),
    ],
)
@pytest.mark.parametrize("shape", [(96, 192), (90, 100)])
def test_structures_are_found_with_partial_blocks_at_the_edges(block, name, shape):
    assert structure_of(block_matrix(*shape, *block, kept=0.3)) == name


def test_dense_is_dense():
    assert structure_of(np.ones((5, 3), np.float32)) == "dense"
    weight = np.ones((96, 96), np.float32)
    weight[3, 7] = 0.0  # by chance
    assert structure_of(weight) == "dense"


def test_equal_lists_of_columns_are_stored_once():
    packed, weight = Packed(), block_matrix(64, 40, 16, 1, kept=0.5)
    packed.add_matrix(weight, np.zeros(64, np.float32), 0, 8)
    packed.add_matrix(np.ones((32, 40), np.float32), np.zeros(32, np.float32), 0, 8)
    arrays = packed.finish()
    per_block_row = (weight[::16] != 0).sum()
    assert len(arrays["columns"]) == per_block_row + 40 and len(arrays["groups"]) == 8 + 4

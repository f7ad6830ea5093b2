"""Packing a matrix: its structure, the kind of group it gets, what is stored; test_numba_engine.py computes with it."""

import numpy as np
import pytest

from rnnt_kd_engine.packing import Packed, cheapest_rows
from rnnt_kd_engine.structure import structure_of


def block_matrix(outputs, inputs, height, width, kept, seed=0):
    """Random weights in blocks, of which a share ``kept`` stays."""
    rng = np.random.default_rng(seed)
    mask = rng.random((-(-outputs // height), -(-inputs // width))) < kept
    mask = np.kron(mask, np.ones((height, width)))[:outputs, :inputs]
    return (rng.standard_normal((outputs, inputs)) * mask).astype(np.float32)


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


@pytest.mark.parametrize("name", ["16x16", "16x1", "1x16", "4x4", "8x1", "4x1", "unstructured"])
@pytest.mark.parametrize("shape", [(96, 192), (90, 100)])
def test_structures_are_found_with_partial_blocks_at_the_edges(name, shape):
    block = (1, 1) if name == "unstructured" else map(int, name.split("x"))
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

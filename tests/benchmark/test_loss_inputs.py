"""The benchmark's inputs are a valid pruned lattice."""

import pytest
import torch

from benchmark.loss_inputs import aligned_ranges, make_inputs
from benchmark.shapes import num_nodes
from rnnt_kd.losses.kept_nodes import kept_nodes

BATCH = [(30, 9), (24, 11), (26, 2), (12, 0)]


def inputs(batch=BATCH, seed=1, **changed):
    sizes = dict(vocab=11, joiner_dim=6, prune_range=4, dtype=torch.float32, device=torch.device("cpu"))
    return make_inputs(batch, seed=seed, **{**sizes, **changed})


@pytest.mark.parametrize("batch", [BATCH, [(7, 12), (8, 3)], [(1, 0)], [(1, 1)], [(5, 0), (4, 0)]])
def test_ranges_leave_a_path_and_the_nodes_are_counted(batch):
    made = inputs(batch)
    nodes = kept_nodes(made.symbols, made.ranges, 0, made.boundary, "regular")  # raises where no path is left
    assert made.num_nodes == int(nodes.node_mask.sum()) == num_nodes(batch, 4)


def test_ranges_follow_the_alignment():
    """With one symbol at most in a frame, a start moves by one at most, and 29 symbols move it 26 times."""
    boundary = torch.tensor([[0, 0, 29, 100]])
    ranges = aligned_ranges(boundary, 4, torch.Generator().manual_seed(0))
    steps = ranges[0, 1:, 0] - ranges[0, :-1, 0]
    assert ranges.shape == (1, 100, 4) and int(ranges[0, 0, 0]) == 0 and int(ranges[0, -1, -1]) == 29
    assert int((steps == 1).sum()) >= 20  # not one jump at the end, which would be valid, too


def test_shapes_gradients_and_equal_draws():
    made, again, other = inputs(), inputs(), inputs(seed=2)
    assert made.am.shape == (4, 30, 6) and made.lm.shape == (4, 12, 6)
    assert made.weight.shape == (11, 6) and made.bias.shape == (11,)
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in made.leaves)
    assert not any(tensor.requires_grad for tensor in made.teacher)
    assert all(torch.equal(a, b) for a, b in zip(made.leaves, again.leaves))
    assert torch.equal(made.ranges, again.ranges) and not torch.equal(made.am, other.am)
    assert int(made.symbols.min()) >= 1 and int(made.symbols.max()) <= 10  # never blank


def test_values_do_not_depend_on_the_dtype():
    torch.testing.assert_close(inputs(dtype=torch.bfloat16).am.float(), inputs().am, rtol=1e-2, atol=1e-2)

"""Which weights a mask keeps: unstructured, blocks, N:M, against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.structures import get_structure, only_sparsity, unstructured


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.0, 0.99), st.integers(0, 5))
def test_drops_exactly_the_smallest_magnitudes(rows, columns, sparsity, levels):
    torch.manual_seed(rows * 100 + columns)
    weight = torch.randn(rows, columns)
    if levels:  # ties
        weight = (weight * levels).round()
    (mask,) = unstructured([weight], sparsity)
    assert mask.shape == weight.shape and mask.dtype == torch.bool
    assert int((~mask).sum()) == round(sparsity * weight.numel())
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()
    assert torch.equal(mask, unstructured([weight.clone()], sparsity)[0])


def weights(height, width, levels):
    torch.manual_seed(height * 100 + width)
    weight = torch.randn(height, width, dtype=torch.float64)
    return (weight * levels).round() if levels else weight  # levels: ties


def masked(name, weight, sparsity):
    return get_structure(name)([weight], sparsity)[0]


def blocks_by_loops(matrices, sparsity, rows, columns):
    """Blocks of all matrices compete."""
    inside = {}
    for number, weight in enumerate(matrices):
        height, width = weight.shape
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                down, right = range(top, min(top + rows, height)), range(left, min(left + columns, width))
                inside[number, top, left] = [(i, j) for i in down for j in right]
    means = {
        place: sum(abs(float(matrices[place[0]][i, j])) for i, j in cells) / len(cells)
        for place, cells in inside.items()
    }
    masks = [torch.ones(weight.shape, dtype=torch.bool) for weight in matrices]
    budget = round(sparsity * sum(weight.numel() for weight in matrices))
    for place in sorted(inside, key=lambda place: round(means[place], 9)):
        if len(inside[place]) > budget:
            break
        budget -= len(inside[place])
        for i, j in inside[place]:
            masks[place[0]][i, j] = False
    return masks


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([(16, 1), (1, 16), (4, 4), (3, 5), (1, 1)]),
    st.floats(0.0, 0.99),
)
def test_blocks_equal_plain_loops(height, width, block, sparsity):
    weight = weights(height, width, 0)
    mask = masked("x".join(map(str, block)), weight, sparsity)
    assert mask.dtype == torch.bool and torch.equal(mask, blocks_by_loops([weight], sparsity, *block)[0])
    assert mask.any() or round(sparsity * weight.numel()) == weight.numel()  # never a whole matrix if the target is not


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.1, 1.0, 10.0])), min_size=1, max_size=4
    ),
    st.sampled_from([(16, 1), (1, 4), (4, 4), (1, 1)]),
    st.floats(0.0, 0.99),
)
def test_matrices_together_equal_plain_loops(sizes, block, sparsity):
    """Of different scales, so that some lose all they have; unstructured is blocks of one weight."""
    together = [scale * weights(height, width, 0) for height, width, scale in sizes]
    expected = blocks_by_loops(together, sparsity, *block)
    found = get_structure("x".join(map(str, block)))(together, sparsity)
    assert all(torch.equal(mine, right) for mine, right in zip(found, expected, strict=True))
    if block == (1, 1):
        dropped = [
            torch.cat([(~mask).flatten() for mask in masks]) for masks in (unstructured(together, sparsity), found)
        ]
        assert int(dropped[0].sum()) == int(dropped[1].sum())
        values = torch.cat([weight.abs().flatten() for weight in together])
        assert not dropped[0].any() or dropped[0].all() or values[dropped[0]].max() <= values[~dropped[0]].min()


def test_groups_do_not_compete():
    together = [weights(6, 8, 0), 100 * weights(5, 12, 0)]
    for sparsity in (0.2, 0.5):
        found = get_structure("2:4")(together, sparsity)
        assert all(torch.equal(mask, masked("2:4", weight, sparsity)) for mask, weight in zip(found, together))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.floats(0.0, 0.99))
def test_ties_between_blocks_are_settled_alike(height, width, levels, sparsity):
    weight = weights(height, width, levels)
    mask = masked("2x2", weight, sparsity)
    assert torch.equal(mask, masked("2x2", weight.clone(), sparsity))
    assert int((~mask).sum()) <= round(sparsity * weight.numel())


def n_of_m_by_loops(weight, kept, group):
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for i, row in enumerate(weight.tolist()):
        for start in range(0, len(row), group):
            cells = range(start, min(start + group, len(row)))
            for j in sorted(cells, key=lambda j: -abs(row[j]))[:kept]:
                mask[i, j] = True
    return mask


@given(
    st.integers(1, 12), st.integers(1, 21), st.sampled_from([(2, 4), (1, 4), (1, 2), (4, 8), (2, 3)]), st.integers(0, 3)
)
def test_n_of_m_equals_plain_loops(height, width, shape, levels):
    kept, group = shape
    weight = weights(height, width, levels)
    mask = masked(":".join(map(str, shape)), weight, 1 - kept / group)
    assert torch.equal(mask, n_of_m_by_loops(weight, kept, group))


@given(st.floats(0.0, 0.5))
def test_on_the_ramp_whole_groups_are_done_those_that_lose_least_first(sparsity):
    weight = weights(12, 20, 0)
    mask = masked("2:4", weight, sparsity)
    groups, lost = mask.view(-1, 4), (weight.abs() * ~n_of_m_by_loops(weight, 2, 4)).view(-1, 4).sum(1)
    done = groups.sum(1) == 2
    assert ((groups.sum(1) == 4) | done).all() and int(done.sum()) == round(sparsity * 2 * len(groups))
    assert not done.any() or done.all() or lost[done].max() <= lost[~done].min()


def test_a_convolutions_weight_is_a_matrix_of_its_outputs():
    weight = weights(8, 3 * 9, 0)
    assert torch.equal(masked("4x4", weight.view(8, 3, 3, 3), 0.5), masked("4x4", weight, 0.5).view(8, 3, 3, 3))


@pytest.mark.parametrize(
    "name", ["", "blocks", "16x", "x1", "0x4", "4x0", "4:2", "2:2", "0:4", "1x1x1", "-1x4", "16X1"]
)
def test_a_name_that_is_none_is_named(name):
    with pytest.raises(UserError, match="16x1"):
        get_structure(name)


@pytest.mark.parametrize("name", ["unstructured", "16x1", "4x4", "999999x999999", "2:4", "7:99999"])
@pytest.mark.parametrize("shape", [(), (7,), (1, 1), (0, 5), (5, 0), (3, 2, 1, 2), (33, 17)])
def test_odd_shapes_get_masks_of_their_shape(name, shape):
    torch.manual_seed(len(shape))
    weight = torch.randn(shape).half()
    limit = 0.5 if only_sparsity(name) is None else only_sparsity(name)
    for sparsity in (0.0, 0.3 * limit, limit):
        mask = masked(name, weight, sparsity)
        assert mask.shape == weight.shape and mask.dtype == torch.bool
        assert int((~mask).sum()) <= round(sparsity * weight.numel()) or 0.0 < sparsity < limit
        assert sparsity > 0.0 or mask.all()

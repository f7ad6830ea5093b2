"""Which weights an unstructured mask keeps."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.sparsity.structures import unstructured


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.0, 0.99), st.integers(0, 5))
def test_drops_exactly_the_smallest_magnitudes(rows, columns, sparsity, levels):
    torch.manual_seed(rows * 100 + columns)
    weight = torch.randn(rows, columns)
    if levels:  # ties
        weight = (weight * levels).round()
    mask = unstructured(weight, sparsity)
    assert mask.shape == weight.shape and mask.dtype == torch.bool
    assert int((~mask).sum()) == round(sparsity * weight.numel())
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()
    assert torch.equal(mask, unstructured(weight.clone(), sparsity))

"""Rounded weights: the grid against plain loops, and a model that learns on it."""

import numpy as np
import pytest
import torch
from torch import nn

from rnnt_kd.sparsity.rounding import CLIPPED, Rounder, grid, rounded

SHAPES = [(7, 5), (1, 1), (3, 1), (4, 2, 3), (5, 1, 9), (2, 3, 3, 3)]


def weights(shape, seed=0, zeros=0.3):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 0.1
    return values * (torch.rand(shape, generator=generator) >= zeros)


def row_by_loops(row):
    """(codes, scale) of a list of floats on 4 bits, in float64 but for the scale that float16 holds."""
    best = None
    for share in CLIPPED:
        largest = np.float32(max(map(abs, row))) / np.float32(7)
        scale = max(float(np.float16(np.float32(largest * np.float32(share)))), 2.0**-21)
        codes = [max(-7, min(7, round(value / scale))) for value in row]
        error = sum((code * scale - value) ** 2 for code, value in zip(codes, row))
        if best is None or error < best[0] - 1e-9 * error:
            best = error, codes, scale
    return best


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bits_are_the_best_of_some_scales_of_each_output(shape):
    weight = weights(shape, seed=len(shape))
    codes, scales = grid(weight, 4)
    assert codes.dtype == torch.int8 and codes.shape == weight.shape and int(codes.abs().max()) <= 7
    assert torch.equal(scales, scales.half().float()) and scales.shape == (shape[0], *[1] * (len(shape) - 1))
    for index, row in enumerate(weight.reshape(shape[0], -1).tolist()):
        error, own, scale = row_by_loops(row)
        found = (codes * scales).reshape(shape[0], -1)[index].tolist()
        assert sum((a - b) ** 2 for a, b in zip(found, row)) == pytest.approx(error, rel=1e-5, abs=1e-14)
    assert torch.equal(codes[weight == 0], torch.zeros_like(codes[weight == 0]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eight_bits_have_one_scale_a_tensor(shape):
    weight = weights(shape)
    codes, scale = grid(weight, 8)
    assert scale.shape == () and int(codes.abs().max()) == (127 if weight.any() else 0)
    assert (codes * scale - weight).abs().max() <= 0.5000001 * weight.abs().max() / 127
    assert torch.equal(codes == 0, (weight / weight.abs().max() * 127).round() == 0)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-5, 3e-6, 3e-8, 1e4])
@pytest.mark.parametrize("shape", [*SHAPES, (200, 97)], ids=str)
def test_what_is_on_the_grid_stays_bit_for_bit(shape, scale):
    once = rounded(weights(shape, seed=3) * scale, 4)
    assert torch.equal(rounded(once, 4), once)
    for length in (9, 64):
        vector = rounded(weights((length,)) * scale, 4)
        assert torch.equal(rounded(vector, 4), vector)
    assert torch.equal(rounded(weights((9,)), 4), weights((9,)).half().float())


def test_vectors_have_a_scale_for_each_sixteen_entries():
    vector = weights((64,)) * torch.logspace(1, -6, 4).repeat_interleave(16)
    for index, (group, found) in enumerate(zip(vector.reshape(4, 16), rounded(vector, 4).reshape(4, 16))):
        scale = max(float(np.float16(float(group.abs().max()) / np.float32(127))), 2.0**-14)
        is_small = (group.abs() < 0.5 * scale) & (group != 0)
        assert torch.allclose(found[is_small].abs(), torch.full_like(found[is_small], scale)), index  # not 0
        assert (found - group)[~is_small].abs().max() <= 0.50001 * scale, index
    assert torch.equal(rounded(vector, 8), vector.half().float())


@pytest.mark.parametrize("bits", [4, 8])
def test_finite_weights_stay_finite_and_what_is_not_zero_in_a_vector_stays_so(bits):
    for shape in ((3, 4), (32,), (5,)):
        assert torch.isfinite(rounded(torch.full(shape, 5e5), bits)).all()
    vector = torch.cat([torch.ones(1), torch.full((14,), 1e-3), torch.zeros(1)])
    assert torch.equal(rounded(vector, bits) == 0, vector == 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (4, 0), (0, 0, 3), (0,), (16,), ()], ids=str)
def test_nothing_and_zeros(bits, shape):
    assert torch.equal(rounded(torch.zeros(shape), bits), torch.zeros(shape))


def test_the_exact_weights_move_and_the_rounded_ones_are_seen():
    """Against plain SGD on a copy in float64: the gradient is that at the rounded weights."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    exact = {name: value.detach().double().clone() for name, value in model.named_parameters()}
    rounder, optimizer = Rounder(model, 4), torch.optim.SGD(model.parameters(), lr=0.05)
    moved = 0
    for step in range(40):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        for name, value in model.named_parameters():
            assert torch.equal(rounded(value.detach(), 4), value.detach())
            assert torch.allclose(value.detach(), rounded(exact[name].float(), 4), atol=0.02)
        before = model[0].weight.detach().clone()
        model.zero_grad()
        (model(x) - x[:, :2].sin()).square().sum().backward()
        for name, value in model.named_parameters():
            exact[name] -= 0.05 * value.grad.double()
        optimizer.step()
        rounder.restore()
        for name, value in model.named_parameters():
            assert torch.allclose(value.detach().double(), exact[name], atol=1e-5)
        rounder.round()
        moved += not torch.equal(before, model[0].weight.detach())
    assert moved > 10


def test_a_checkpoint_goes_on_where_it_was():
    first, second = nn.Linear(6, 5), nn.Linear(6, 5)
    rounder, other = Rounder(first, 4), Rounder(second, 4)
    second.load_state_dict(first.state_dict())
    other.load(rounder.tensors())
    for one in (rounder, other):
        one.restore()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_no_bits_do_nothing():
    model = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounder = Rounder(model, None)
    rounder.restore()
    rounder.round()
    assert rounder.tensors() == {}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

"""The sum over all paths of a whole lattice: arc occupancies, rounding, boundaries, and Triton's version of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, backend_on, every_rnnt_type, gradients, make_case, moved

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import torch_backend


def arcs(seed, rnnt_type="regular", B=3, T=6, S=3, scale=1.0):
    """px, py with some missing symbol arcs, and a boundary."""
    generator = torch.Generator().manual_seed(seed)
    px = scale * torch.randn(B, S, T + (rnnt_type == "regular"), generator=generator, dtype=torch.float64)
    py = scale * torch.randn(B, S + 1, T, generator=generator, dtype=torch.float64)
    px[torch.rand(px.shape, generator=generator) < 0.1] = float("-inf")
    return px, py, make_case(seed, B=B, T=T, S=S, rnnt_type=rnnt_type, full=True).boundary


def run(name, px, py, boundary):
    """[scores, px_grad, py_grad, and the gradients of a weighted sum of the scores], on the CPU."""
    backend, device = backend_on(name)
    px, py, boundary = moved((px, py, boundary), device)
    _, grads = gradients(lambda *x: backend.recursion(*x, boundary), px, py)
    scores, reads = backend.recursion(px, py, boundary, return_grad=True)
    return [x.cpu() for x in (scores, *reads, *grads)]


@every_rnnt_type
def test_returned_occupancies_are_the_gradient(rnnt_type):
    px, py, boundary = arcs(5, rnnt_type)
    px = px.clamp(min=-9.0)  # every path exists
    scores, px_grad, py_grad, *grads = run("torch", px, py, boundary)
    factors = torch.arange(1, 4).reshape(-1, 1, 1)  # those of ``gradients``
    torch.testing.assert_close([px_grad * factors, py_grad * factors], grads, rtol=1e-9, atol=1e-9)
    steps = boundary[:, 3] + (boundary[:, 2] if rnnt_type == "regular" else 0)
    total = px_grad.sum(dim=(1, 2)) + py_grad.sum(dim=(1, 2))
    torch.testing.assert_close(total, steps.double(), rtol=1e-9, atol=1e-9)
    leaves = [x[:, :, :].requires_grad_() for x in (px, py)]
    assert torch.autograd.gradcheck(lambda *x: torch_backend.recursion(*x, boundary), leaves)


@every_rnnt_type
def test_in_float32_it_is_float64_rounded(rnnt_type):
    px, py, boundary = arcs(1, rnnt_type, B=2, T=200, S=40, scale=4.0)
    px, py = px.float(), py.float()
    found, exact = run("torch", px, py, boundary), run("torch", px.double(), py.double(), boundary)
    for single, double in zip(found[:3], exact[:3]):
        assert torch.equal(single, double.float())


@every_rnnt_type
def test_no_boundary_means_no_padding(rnnt_type):
    px, py, _ = arcs(11, rnnt_type)
    whole = torch.tensor([[0, 0, 3, 6]] * 3)
    assert all(torch.equal(a, b) for a, b in zip(run("torch", px, py, None), run("torch", px, py, whole)))


@pytest.mark.parametrize("name", ["torch", "triton"])
@pytest.mark.parametrize("row", [[0, 1, 3, 5], [0, 0, 4, 5], [0, 0, 3, 7]])
def test_a_wrong_boundary_is_named(name, row):
    px, py, _ = arcs(11, B=2)
    with pytest.raises(UserError, match=str(row).replace("[", r"row \[")):
        run(name, px, py, torch.tensor([row, [0, 0, 3, 5]]))


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(0, 5), st.integers(1, 7), st.sampled_from(RNNT_TYPES), st.booleans())
def test_triton_is_torch(seed, S, T, rnnt_type, has_boundary):
    """Of any px: symbol arcs after the last blank ("regular", column T_b) count as well."""
    px, py, boundary = arcs(seed, rnnt_type, T=T, S=S)
    boundary = boundary if has_boundary else None
    found, expected = run("triton", px, py, boundary), run("torch", px, py, boundary)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_triton_takes_utterances_without_frames():
    px, py = torch.zeros(2, 3, 5), torch.zeros(2, 4, 4)
    boundary = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 0]])
    found, expected = run("triton", px, py, boundary), run("torch", px, py, boundary)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_too_wide_a_lattice_for_triton_goes_to_torch(monkeypatch):
    backend, device = backend_on("triton")
    case = make_case(2, B=2, T=5, S=4, full=True)
    monkeypatch.setattr(backend, "WIDEST", 3)
    monkeypatch.setattr(backend, "_walk", lambda *tensors, **options: pytest.fail("the kernels ran"))
    px, py, boundary = arcs(2, B=2, T=5, S=4)
    assert all(torch.equal(a, b) for a, b in zip(run("triton", px, py, boundary), run("torch", px, py, boundary)))
    even = torch.full(case.ranges.shape, -1.0)
    with pytest.raises(UserError, match="at most 3.*torch backend"):
        backend.pruned_recursion(*moved((even, even, case.ranges, case.boundary), device))

"""Torch backend = k2: values, gradients and ranges, for everything k2 accepts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, gradients, lattice_cases, make_case

k2 = pytest.importorskip("k2", reason="k2 is not in this environment")

from rnnt_kd.lattice import k2_backend, torch_backend  # noqa: E402

k2_cases = lattice_cases(max_T=12, max_S=7, min_S=1, max_C=8, T_not_below_S=True)


def assert_both_equal(function_name, *tensors, call, rtol=1e-8, atol=1e-8):
    """``call(function, *tensors)`` with k2's and the torch backend's function of that name."""
    found = gradients(lambda *x: call(getattr(torch_backend, function_name), *x), *tensors)
    expected = gradients(lambda *x: call(getattr(k2, function_name), *x), *tensors)
    for a, b in zip((found[0], *found[1]), (expected[0], *expected[1])):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@given(k2_cases)
def test_pruned_loss(case):
    assert_both_equal(
        "rnnt_loss_pruned", case.logits, call=lambda f, x: f(x, *case.arguments, delay_penalty=0.0, reduction="none")
    )


@given(k2_cases)
def test_smoothed_loss(case):
    assert_both_equal(
        "rnnt_loss_smoothed",
        case.lm,
        case.am,
        call=lambda f, lm, am: f(
            lm, am, case.symbols, case.blank, 0.25, 0.1, case.boundary, case.rnnt_type, 0.0, "none"
        ),
    )


@given(k2_cases, st.sampled_from([(0.0, 0.0), (0.25, 0.0), (0.0, 0.3)]))
def test_smoothed_loss_with_scales_of_zero(case, scales):
    assert_both_equal(
        "rnnt_loss_smoothed",
        case.lm,
        case.am,
        call=lambda f, lm, am: f(lm, am, case.symbols, case.blank, *scales, case.boundary, case.rnnt_type),
    )


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("has_boundary", [True, False])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3])
def test_delay_penalty_and_boundary(rnnt_type, has_boundary, delay_penalty):
    case = make_case(4, B=3, T=8, S=4, C=5, blank=2, rnnt_type=rnnt_type, full=True)
    boundary = case.boundary if has_boundary else None

    def pruned(f, x):
        return f(x, case.symbols, case.ranges, 2, boundary, rnnt_type, delay_penalty, "mean")

    def smoothed(f, lm, am):
        return f(lm, am, case.symbols, 2, 0.1, 0.1, boundary, rnnt_type, delay_penalty, "sum")

    # k2 multiplies the penalty out in float32
    assert_both_equal("rnnt_loss_pruned", case.logits, call=pruned, rtol=1e-5, atol=1e-6)
    assert_both_equal("rnnt_loss_smoothed", case.lm, case.am, call=smoothed, rtol=1e-5, atol=1e-6)


@given(k2_cases, st.integers(1, 10))
def test_ranges_are_exactly_k2s(case, s_range):
    if case.rnnt_type == "regular":
        s_range = max(s_range, 2)
    _, occupancies = k2.rnnt_loss_smoothed(
        case.lm, case.am, case.symbols, case.blank, 0.1, 0.1, case.boundary, case.rnnt_type, return_grad=True
    )
    found = torch_backend.get_rnnt_prune_ranges(*occupancies, case.boundary, s_range)
    expected = k2.get_rnnt_prune_ranges(*occupancies, case.boundary, s_range)
    assert found.dtype == torch.int64 and torch.equal(found, expected)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 8), st.integers(2, 12), st.booleans())
def test_ranges_of_arbitrary_numbers_are_exactly_k2s(seed, S, more_frames, s_range, is_regular):
    """Ties, wild starts, T_b < S_b, S_b = 0: whatever the occupancies say."""
    generator = torch.Generator().manual_seed(seed)
    B, T = 3, S + more_frames
    px_grad = torch.randint(0, 3, (B, S, T + is_regular), generator=generator) / 2.0
    py_grad = torch.randint(0, 3, (B, S + 1, T), generator=generator) / 2.0
    boundary = torch.zeros(B, 4, dtype=torch.int64)
    boundary[:, 2] = torch.randint(0, S + 1, (B,), generator=generator)
    boundary[:, 3] = torch.randint(1, T + 1, (B,), generator=generator)
    found = torch_backend.get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)
    assert torch.equal(found, k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range))


@given(k2_cases)
def test_pruning(case):
    for a, b in zip(
        torch_backend.do_rnnt_pruning(case.am, case.lm, case.ranges), k2.do_rnnt_pruning(case.am, case.lm, case.ranges)
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_at_working_size_in_float32(rnnt_type):
    """1e-4 relative, in value and gradient, against k2 in float64; k2's own float32 is about as far."""
    case = make_case(8, B=4, T=150, S=40, C=20, s_range=5, rnnt_type=rnnt_type, scale=2.0)

    def pruned(module, x):
        return module.rnnt_loss_pruned(x, *case.arguments, reduction="none")

    def smoothed(module, lm, am):
        return module.rnnt_loss_smoothed(lm, am, case.symbols, 0, 0.25, 0.1, case.boundary, rnnt_type, reduction="none")

    for function, tensors in ((pruned, (case.logits,)), (smoothed, (case.lm, case.am))):
        value, grads = gradients(lambda *x: function(torch_backend, *x), *(x.float() for x in tensors))
        true_value, true_grads = gradients(lambda *x: function(k2, *x), *tensors)
        torch.testing.assert_close(value.double(), true_value, rtol=1e-5, atol=0)
        for grad, true_grad in zip(grads, true_grads):
            assert (grad - true_grad).norm() <= 1e-4 * true_grad.norm()


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_extreme_logits(rnnt_type):
    case = make_case(6, B=2, T=8, S=4, C=5, rnnt_type=rnnt_type, scale=1e4)
    assert_both_equal(
        "rnnt_loss_pruned", case.logits, call=lambda f, x: f(x, *case.arguments, reduction="none"), atol=1e-6
    )


@given(lattice_cases(max_T=3, max_S=6))
def test_k2_backend_takes_what_k2_refuses(case):
    """T < S and S = 0: same functions, same values as the torch backend."""
    for name, arguments in (
        ("rnnt_loss_pruned", (case.logits, *case.arguments)),
        ("rnnt_loss_smoothed", (case.lm, case.am, case.symbols, case.blank, 0.1, 0.1, case.boundary, case.rnnt_type)),
    ):
        torch.testing.assert_close(getattr(k2_backend, name)(*arguments), getattr(torch_backend, name)(*arguments))
    _, occupancies = k2_backend.rnnt_loss_smoothed(
        case.lm, case.am, case.symbols, case.blank, 0.1, 0.1, case.boundary, case.rnnt_type, return_grad=True
    )
    assert torch.equal(
        k2_backend.get_rnnt_prune_ranges(*occupancies, case.boundary, 3),
        torch_backend.get_rnnt_prune_ranges(*occupancies, case.boundary, 3),
    )

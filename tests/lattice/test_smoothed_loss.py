"""The loss of the simple heads, and the ranges from its arc occupancies: the plain loops, and k2."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, backend_on, every_backend, gradients, lattice_cases, make_case, moved

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import torch_backend
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning, get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed


def smoothed(name, case, lm, am, scales=(0.25, 0.1), delay_penalty=0.0, reduction="none", boundary=True):
    """The loss by a backend, or by k2's own function."""
    options = (*scales, case.boundary if boundary else None, case.rnnt_type, delay_penalty, reduction)
    if name == "k2 itself":
        k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
        return k2.rnnt_loss_smoothed(lm, am, case.symbols, case.blank, *options)
    backend, device = backend_on(name)
    arguments = moved((lm, am, case.symbols, case.blank, *options), device)
    return rnnt_loss_smoothed(*arguments, backend=backend).cpu()


@every_backend
@given(lattice_cases(max_T=4, max_S=3, max_C=4))
def test_it_is_the_sum_over_all_paths(backend, case):
    """In value and gradient; T < S and S = 0, which k2's own function refuses, are among the cases."""

    def specified(lm, am):
        return reference.rnnt_losses_smoothed(
            lm, am, case.transcripts, case.blank, case.frames, 0.25, 0.1, case.rnnt_type, 0.05
        )

    found = gradients(lambda *x: smoothed(backend, case, *x, delay_penalty=0.05), case.lm, case.am)
    torch.testing.assert_close(found, gradients(specified, case.lm, case.am), rtol=1e-9, atol=1e-9)


@given(
    lattice_cases(max_T=12, max_S=7, min_S=1, max_C=8, T_not_below_S=True),
    st.sampled_from([(0.25, 0.1), (0.0, 0.0), (0.25, 0.0), (0.0, 0.3)]),
)
def test_it_is_k2s_for_any_scales(case, scales):
    ours, theirs = (
        gradients(lambda *x: smoothed(name, case, *x, scales), case.lm, case.am)  # noqa: B023
        for name in ("torch", "k2 itself")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("has_boundary", [True, False])
@pytest.mark.parametrize("reduction, delay_penalty", [("sum", 0.0), ("sum", 0.3), ("mean", 0.3)])
def test_delay_penalty_boundary_and_reduction_are_k2s(rnnt_type, has_boundary, reduction, delay_penalty):
    case = make_case(4, B=3, T=8, S=4, C=5, blank=2, rnnt_type=rnnt_type, full=True)
    options = dict(delay_penalty=delay_penalty, reduction=reduction, boundary=has_boundary)
    ours, theirs = (
        gradients(lambda *x: smoothed(name, case, *x, **options), case.lm, case.am)  # noqa: B023
        for name in ("torch", "k2 itself")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # k2 multiplies the penalty out in float32


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_in_float32_at_working_size_it_is_near_k2_in_float64(rnnt_type):
    """1e-5 relative in value and 1e-4 in gradient; k2's own float32 is about as far."""
    case = make_case(8, B=4, T=150, S=40, C=20, s_range=5, rnnt_type=rnnt_type, scale=2.0)
    value, grads = gradients(lambda *x: smoothed("torch", case, *x), case.lm.float(), case.am.float())
    true_value, true_grads = gradients(lambda *x: smoothed("k2 itself", case, *x), case.lm, case.am)
    torch.testing.assert_close(value.double(), true_value, rtol=1e-5, atol=0)
    for grad, true_grad in zip(grads, true_grads):
        assert (grad - true_grad).norm() <= 1e-4 * true_grad.norm()


@pytest.mark.parametrize(
    "change, told", [(dict(reduction="max"), "none, mean or sum"), (dict(rnnt_type="fast"), "regular, modified")]
)
def test_wrong_values_are_named(change, told):
    case = make_case(11)
    with pytest.raises(UserError, match=told):
        rnnt_loss_smoothed(case.lm, case.am, case.symbols, 0, **change, backend=torch_backend)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 8), st.integers(2, 12), st.booleans(), st.booleans())
def test_ranges_of_arbitrary_numbers_are_exactly_k2s(seed, S, more_frames, s_range, is_regular, has_ties):
    """Ties, rounded sums, wild starts, T_b < S_b, S_b = 0: whatever the occupancies say."""
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    generator = torch.Generator().manual_seed(seed)
    B, T = 3, S + more_frames
    shapes = (B, S, T + is_regular), (B, S + 1, T)
    if has_ties:
        grads = [torch.randint(0, 3, shape, generator=generator) / 2.0 for shape in shapes]
    else:
        grads = [torch.rand(shape, generator=generator) for shape in shapes]
    boundary = torch.zeros(B, 4, dtype=torch.int64)
    boundary[:, 2] = torch.randint(0, S + 1, (B,), generator=generator)
    boundary[:, 3] = torch.randint(1, T + 1, (B,), generator=generator)
    found = get_rnnt_prune_ranges(*grads, boundary, s_range)
    assert found.dtype == torch.int64 and torch.equal(found, k2.get_rnnt_prune_ranges(*grads, boundary, s_range))


def test_too_small_a_prune_range_is_named():
    case = make_case(11)
    _, grads = rnnt_loss_smoothed(case.lm, case.am, case.symbols, 0, return_grad=True, backend=torch_backend)
    with pytest.raises(UserError, match="at least 2"):
        get_rnnt_prune_ranges(*grads, case.boundary, 1)


def test_pruning_picks_the_kept_rows():
    case = make_case(7, B=3, T=6, S=4)
    am, lm = do_rnnt_pruning(case.am, case.lm, case.ranges)
    for b in range(3):
        for t in range(6):
            for k, s in enumerate(case.ranges[b, t].tolist()):
                assert torch.equal(am[b, t, k], case.am[b, t]) and torch.equal(lm[b, t, k], case.lm[b, s])

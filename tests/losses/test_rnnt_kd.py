"""The distillation term: against the plain loops, and the promises it makes."""

import importlib.util

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, gradients, lattice_cases, make_case

from rnnt_kd.losses import available_variants, available_weightings, rnnt_kd_loss, rnnt_loss_pruned

VARIANTS, WEIGHTINGS = available_variants(), available_weightings()
every_pair = pytest.mark.parametrize("variant, weighting", [(v, w) for v in VARIANTS for w in WEIGHTINGS])


def kd(case, logits, variant="collapsed", weighting="uniform", reduction="none", **options):
    teacher_logits = options.pop("teacher_logits", case.teacher_logits)
    return rnnt_kd_loss(
        logits, teacher_logits, *case.arguments, reduction, kd_variant=variant, kd_weighting=weighting, **options
    )


def specified(case, logits, variant, weighting, **options):
    return reference.kd_losses(
        logits, case.teacher_logits, case.transcripts, case.ranges, case.blank, case.frames, case.rnnt_type,
        variant=variant, weighting=weighting, **options,
    )  # fmt: skip


def assert_as_specified(case, variant, weighting, options, their_options, backend="auto"):
    """Weights are constants to both: student-occupancy sends no gradient through them."""
    value, (grad,) = gradients(lambda x: kd(case, x, variant, weighting, backend=backend, **options), case.logits)
    true_value, (true_grad,) = gradients(lambda x: specified(case, x, variant, weighting, **their_options), case.logits)
    torch.testing.assert_close(value, true_value, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(grad, true_grad, rtol=1e-7, atol=1e-9)


@every_pair
@pytest.mark.parametrize("backend", ["torch", "k2"])
@given(case=lattice_cases(max_T=4, max_S=3, max_C=4))
def test_value_and_gradient_are_the_plain_loops(case, variant, weighting, backend):
    if backend == "k2":
        pytest.importorskip("k2", reason="k2 is not in this environment")
    assert_as_specified(case, variant, weighting, {}, {}, backend)


@every_pair
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_temperature_and_class_scales(variant, weighting, rnnt_type):
    case = make_case(3, B=2, T=4, S=3, C=4, blank=1, rnnt_type=rnnt_type)
    scales = (0.5, 2.0, 0.25)
    assert_as_specified(
        case, variant, weighting,
        dict(kd_temperature=2.5, kd_class_scales=scales), dict(temperature=2.5, class_scales=scales),
    )  # fmt: skip


@every_pair
def test_no_gradient_into_the_teacher(variant, weighting):
    case = make_case(4)
    teacher_logits = case.teacher_logits.requires_grad_()
    logits = case.logits.requires_grad_()
    rnnt_loss_pruned(
        logits, *case.arguments, teacher_logits=teacher_logits, kd_variant=variant, kd_weighting=weighting
    ).backward()
    assert teacher_logits.grad is None and logits.grad.any()


@every_pair
@given(case=lattice_cases())
def test_padding_has_no_gradient_and_no_influence(case, variant, weighting):
    value, (grad,) = gradients(lambda x: kd(case, x, variant, weighting), case.logits)
    assert not grad[case.is_padding].any()

    padding = case.is_padding.unsqueeze(-1)
    other = torch.where(padding, torch.full_like(case.logits, 77.0), case.logits)
    other_teacher = torch.where(padding, torch.full_like(case.logits, -55.0), case.teacher_logits)
    found = kd(case, other, variant, weighting, teacher_logits=other_teacher)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@given(case=lattice_cases(), shift=st.floats(0.5, 5.0))
def test_weights_sum_to_the_arcs_of_a_path(case, weighting, shift):
    """A divergence that is the same at all nodes comes out T_b + S_b times.

    Student uniform over C; teacher with blank raised by ``shift``: KL(teacher || student) = log C - entropy.
    """
    C = case.logits.shape[3]
    teacher_logits = torch.zeros_like(case.logits)
    teacher_logits[..., case.blank] = shift
    q = teacher_logits[0, 0, 0].softmax(dim=0)
    at_one_node = (q * (q * C).log()).sum()
    found = kd(case, torch.zeros_like(case.logits), "full", weighting, teacher_logits=teacher_logits)
    torch.testing.assert_close(found, at_one_node * (case.boundary[:, 2] + case.boundary[:, 3]))


@every_pair
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite_in_float32(variant, weighting, size):
    for C in (2, 5):
        case = make_case(5, T=6, S=3, C=C)
        logits, teacher_logits = case.logits.float() * size, case.teacher_logits.float() * size
        value, (grad,) = gradients(lambda x: kd(case, x, variant, weighting, teacher_logits=teacher_logits), logits)
        assert torch.isfinite(value).all() and torch.isfinite(grad).all() and (value >= 0).all()
        value, (grad,) = gradients(lambda x: rnnt_loss_pruned(x, *case.arguments, reduction="none"), logits)  # noqa: B023
        assert torch.isfinite(value).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_symbols_ruled_out_by_minus_infinity(variant):
    """A masked vocabulary: no NaN where neither can say the symbol."""
    case = make_case(5, C=6)
    masked = next(c for c in range(6) if c != case.blank and c not in case.symbols)
    case.logits[..., masked] = case.teacher_logits[..., masked] = float("-inf")
    value, (grad,) = gradients(lambda x: kd(case, x, variant, "occupancy"), case.logits)
    assert torch.isfinite(value).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_teacher_that_cannot_say_the_text_weighs_no_path_of_it(weighting):
    """None of its own is there: what is weighed by it says nothing, in every backend, and nothing is NaN."""
    case = make_case(5, C=6)
    case.teacher_logits[0, ..., case.symbols[0, 0]] = float("-inf")
    assert case.boundary[0, 2] > 0
    backends = ["torch"] + (["k2"] if importlib.util.find_spec("k2") else [])
    found = [
        gradients(lambda x: kd(case, x, "collapsed", weighting, backend=backend), case.logits)  # noqa: B023
        for backend in backends
    ]
    for value, (grad,) in found:
        assert torch.isfinite(value).all() and torch.isfinite(grad).all()
        assert (value[0] == 0) == (weighting in ("occupancy", "one-best"))
        torch.testing.assert_close(value, found[0][0])


@every_pair
def test_padding_of_whole_logits_may_hold_anything(variant, weighting):
    case = make_case(5, B=3, T=6, S=4, C=5)
    padding = (torch.arange(6) >= case.boundary[:, 3:]).reshape(3, 6, 1, 1)
    assert padding.any()
    right, (right_grad,) = gradients(lambda x: kd(case, x, variant, weighting), case.logits)
    for filler in (float("nan"), float("inf"), float("-inf")):
        poisoned = case.teacher_logits.masked_fill(padding, filler)
        value, (grad,) = gradients(
            lambda x: kd(case, x, variant, weighting, teacher_logits=poisoned),  # noqa: B023
            case.logits,
        )
        assert torch.equal(value, right) and torch.equal(grad, right_grad)
        assert torch.equal(kd(case, case.logits.masked_fill(padding, filler), variant, weighting), right)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_error_where_the_rest_has_almost_no_probability(variant):
    """1 - p(blank) - p(label) would have no correct digit; bound: float32 rounding of the logits."""
    case = make_case(6, C=5, scale=1.0)
    logits, teacher_logits = case.logits.clone(), case.teacher_logits.clone()
    logits[..., case.blank] += 25.0
    teacher_logits[..., case.blank] += 18.0
    logits, teacher_logits = logits.float(), teacher_logits.float()
    single = kd(case, logits, variant, teacher_logits=teacher_logits, kd_class_scales=(0.0, 0.0, 1.0))
    double = kd(case, logits.double(), variant, teacher_logits=teacher_logits.double(), kd_class_scales=(0.0, 0.0, 1.0))
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0.0)

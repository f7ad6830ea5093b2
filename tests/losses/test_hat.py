"""k2's ``use_hat_loss``: blank as a Bernoulli of its own, against the plain loops, with the distillation terms on it."""

import inspect

import pytest
import reference
import torch
from hypothesis import given, settings
from joiner_cases import joiner_cases, loss, make_joiner_case, value_and_gradients
from lattice_cases import every_rnnt_type, gradients, lattice_cases, make_case

from rnnt_kd.losses import available_variants, available_weightings, rnnt_kd_loss, rnnt_loss_pruned

every_pair = pytest.mark.parametrize(
    "variant, weighting", [(v, w) for v in available_variants() for w in available_weightings()]
)
few = settings(max_examples=6, deadline=None)
close = dict(rtol=1e-7, atol=1e-9)


def specified(logits, teacher_logits, lattice, variant, weighting):
    shared = (lattice.transcripts, lattice.ranges, lattice.blank, lattice.frames, lattice.rnnt_type)
    logits, teacher_logits = reference.hat(logits, lattice.blank), reference.hat(teacher_logits, lattice.blank)
    kd = reference.kd_losses(logits, teacher_logits, *shared, variant=variant, weighting=weighting)
    return reference.rnnt_losses_pruned(logits, *shared) + 0.7 * kd


@every_pair
@few
@given(case=lattice_cases(max_T=4, max_S=3, max_C=4))
def test_from_logits_it_is_the_plain_loops(case, variant, weighting):
    options = dict(use_hat_loss=True, kd_scale=0.7, kd_variant=variant, kd_weighting=weighting, reduction="none")
    found = gradients(
        lambda x: rnnt_loss_pruned(x, *case.arguments, teacher_logits=case.teacher_logits, **options), case.logits
    )
    expected = gradients(lambda x: specified(x, case.teacher_logits, case, variant, weighting), case.logits)
    torch.testing.assert_close(found, expected, **close)


@every_pair
@few
@given(case=joiner_cases(max_T=4, max_S=3))
def test_without_logits_it_is_the_plain_loops(case, variant, weighting):
    ranges = case.lattice.ranges
    theirs = reference.joiner_logits(*case.teacher[:4], ranges)
    options = dict(use_hat_loss=True, kd_scale=0.7, kd_variant=variant, kd_weighting=weighting)
    found = value_and_gradients(case.student, lambda x: loss(case, x, teacher=case.teacher, impl="torch", **options))
    expected = value_and_gradients(
        case.student,
        lambda x: specified(reference.joiner_logits(*x[:4], ranges), theirs, case.lattice, variant, weighting),
    )
    torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("variant", available_variants())
@every_rnnt_type
def test_temperature_divides_the_logits_of_both(variant, rnnt_type):
    case = make_joiner_case(3, B=2, T=4, S=3, C=5, blank=1, rnnt_type=rnnt_type)
    lattice = case.lattice
    shared = (lattice.transcripts, lattice.ranges, lattice.blank, lattice.frames, rnnt_type)
    theirs = reference.hat(reference.joiner_logits(*case.teacher[:4], lattice.ranges) / 2.5, lattice.blank)

    def kd(joiner):
        ours = reference.hat(reference.joiner_logits(*joiner[:4], lattice.ranges) / 2.5, lattice.blank)
        return reference.kd_losses(ours, theirs, *shared, variant=variant, weighting="uniform")

    def found(joiner):
        with_kd = dict(teacher=case.teacher, kd_variant=variant, kd_temperature=2.5)
        return loss(case, joiner, use_hat_loss=True, **with_kd) - loss(case, joiner, use_hat_loss=True)

    torch.testing.assert_close(value_and_gradients(case.student, found), value_and_gradients(case.student, kd), **close)


def test_it_differs_from_the_softmax_and_equals_k2_where_k2_has_it():
    case = make_case(2, T=6, S=3, C=5)
    hat = gradients(lambda x: rnnt_loss_pruned(x, *case.arguments, 0.0, "none", True), case.logits)
    assert (hat[0] - rnnt_loss_pruned(case.logits, *case.arguments, 0.0, "none")).abs().min() > 0.01
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    if "use_hat_loss" not in inspect.signature(k2.rnnt_loss_pruned).parameters:
        pytest.skip("this k2 is older than 1.24.4 and has no use_hat_loss")
    torch.testing.assert_close(
        hat, gradients(lambda x: k2.rnnt_loss_pruned(x, *case.arguments, 0.0, "none", True), case.logits)
    )


@every_pair
def test_extreme_logits_stay_finite_in_float32(variant, weighting):
    case = make_case(5, T=6, S=3, C=5)
    logits, teacher_logits = case.logits.float() * 1e20, case.teacher_logits.float() * 1e20
    options = dict(use_hat_loss=True, kd_variant=variant, kd_weighting=weighting)
    value, (grad,) = gradients(lambda x: rnnt_kd_loss(x, teacher_logits, *case.arguments, "none", **options), logits)
    assert torch.isfinite(value).all() and torch.isfinite(grad).all() and (value >= 0).all()

"""The public loss without logits: the plain loops, the loss with logits, every teacher."""

import inspect
import logging
import math

import pytest
import reference
import torch
from hypothesis import given, settings
from joiner_cases import (
    JoinerCase,
    allowed_error,
    assert_no_worse,
    every_dtype,
    every_impl,
    joiner_cases,
    leaves_of,
    loss,
    make_joiner_case,
    naive_logits,
    place_for,
    value_and_gradients,
    with_leaves,
)
from lattice_cases import every_rnnt_type

from rnnt_kd.losses import (
    JoinerParts,
    NodeScores,
    available_variants,
    available_weightings,
    pruned_transducer_loss,
    pruned_transducer_terms,
    rnnt_kd_loss,
    rnnt_loss_pruned,
)
from rnnt_kd.losses.node_scores import node_scores
from rnnt_kd.losses.packed_posteriors import pack, unpack

VARIANTS, WEIGHTINGS = available_variants(), available_weightings()
every_pair = pytest.mark.parametrize("variant, weighting", [(v, w) for v in VARIANTS for w in WEIGHTINGS])
few = settings(max_examples=8)


def loss_from_logits(case: JoinerCase, joiner: JoinerParts, dtype=None, teacher=None, kd_class_scales=None, **options):
    """The same from whole logits, by the functions that take them."""
    kd_scale = options.pop("kd_scale", 1.0)
    delay_penalty = options.pop("delay_penalty", 0.0)
    logits = naive_logits(joiner, case.lattice.ranges, dtype)
    total = rnnt_loss_pruned(logits, *case.arguments, delay_penalty, "none")
    if teacher is None:
        return total
    teacher_logits = naive_logits(teacher, case.lattice.ranges, dtype)
    options = {"kd_variant": "collapsed", "kd_weighting": "uniform", "kd_class_scales": kd_class_scales, **options}
    return total + kd_scale * rnnt_kd_loss(logits, teacher_logits, *case.arguments, "none", **options)


def assert_close(found, expected, rtol=1e-9, atol=1e-10):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_options_are_those_of_the_loss_with_logits():
    """And stand in its order."""
    ours = inspect.signature(pruned_transducer_loss).parameters
    theirs = inspect.signature(rnnt_loss_pruned).parameters
    shared = [name for name in theirs if name not in ("logits", "teacher_logits")]
    assert [name for name in ours if name in shared] == shared
    assert all(ours[name].default == theirs[name].default for name in shared)


@every_pair
@few
@given(case=joiner_cases(max_T=4, max_S=3))
def test_value_and_gradient_are_the_plain_loops(case, variant, weighting):
    lattice = case.lattice
    teacher_logits = reference.joiner_logits(*case.teacher[:4], lattice.ranges)
    shared = (lattice.transcripts, lattice.ranges, lattice.blank, lattice.frames, lattice.rnnt_type)

    def specified(joiner):
        logits = reference.joiner_logits(*joiner[:4], lattice.ranges)
        rnnt = reference.rnnt_losses_pruned(logits, *shared)
        kd = reference.kd_losses(logits, teacher_logits, *shared, variant=variant, weighting=weighting)
        return rnnt + 0.7 * kd

    options = dict(teacher=case.teacher, kd_scale=0.7, kd_variant=variant, kd_weighting=weighting)
    found = value_and_gradients(case.student, lambda x: loss(case, x, impl="torch", **options))
    assert_close(found, value_and_gradients(case.student, specified), rtol=1e-7, atol=1e-9)


@every_impl
@every_dtype
@pytest.mark.parametrize("variant, weighting", [("collapsed", "student-occupancy"), ("full", "uniform")])
def test_no_worse_than_whole_logits(variant, weighting, dtype, impl):
    """Of three cases: the package, whole logits in ``dtype``, and those in float64."""
    if variant == "full" and impl == "triton":
        pytest.skip("full compares whole logits, which no implementation of the node scores makes")
    options = dict(kd_scale=0.7, kd_variant=variant, kd_weighting=weighting)
    runs = []
    for seed in range(3):
        case = place_for(impl, make_joiner_case(seed, B=4, T=8, S=4, C=9, J=12, blank=2).to(dtype))
        double = case.to(torch.float64)
        functions = (
            (case.student, lambda x: loss(case, x, teacher=case.teacher, impl=impl, **options)),  # noqa: B023
            (case.student, lambda x: loss_from_logits(case, x, dtype, teacher=case.teacher, **options)),  # noqa: B023
            (double.student, lambda x: loss_from_logits(double, x, teacher=double.teacher, **options)),  # noqa: B023
        )
        runs.append([value_and_gradients(*pair) for pair in functions])
    found, _, true = runs[0]
    assert [x.dtype for x in found[1:]] == [dtype] * 4
    if dtype == torch.float64:
        assert_close(found, true)
    else:
        assert found[0].dtype == torch.float32
        assert_no_worse(runs, allowed_error(impl, dtype))


@every_pair
@every_rnnt_type
def test_all_options_together(variant, weighting, rnnt_type):
    """Temperature, class scales, delay penalty, another activation: as from whole logits."""
    silu = torch.nn.functional.silu
    case = make_joiner_case(3, B=3, T=7, S=4, C=6, J=5, blank=1, rnnt_type=rnnt_type, activation=silu)
    options = dict(
        kd_scale=0.3, kd_variant=variant, kd_weighting=weighting, kd_temperature=2.5, kd_class_scales=(0.5, 2.0, 0.25),
        delay_penalty=0.1,
    )  # fmt: skip
    found = value_and_gradients(case.student, lambda x: loss(case, x, teacher=case.teacher, **options))
    assert_close(
        found, value_and_gradients(case.student, lambda x: loss_from_logits(case, x, teacher=case.teacher, **options))
    )


@pytest.mark.parametrize("variant, weighting, backend, impl", [
    (variant, weighting, *parts)
    for parts in (("k2", "torch"), ("triton", "torch"), ("triton", "triton"))
    for variant in VARIANTS
    for weighting in WEIGHTINGS
    if (variant, parts[1]) != ("full", "triton")
])  # fmt: skip
def test_any_lattice_backend(variant, weighting, backend, impl):
    """In float64; both of Triton's parts together in float32."""
    pytest.importorskip(backend, reason=f"{backend} is not in this environment")
    case = make_joiner_case(2, B=3, T=6, S=4, C=6, J=5)
    if backend == "triton" and torch.cuda.is_available():
        case = case.to(torch.device("cuda"))
    options = dict(teacher=case.teacher, kd_variant=variant, kd_weighting=weighting, delay_penalty=0.1)
    expected = value_and_gradients(case.student, lambda x: loss(case, x, backend="torch", impl="torch", **options))
    close = dict(rtol=1e-9, atol=1e-10)
    if impl == "triton":
        case, close = place_for("triton", case.to(torch.float32)), dict(rtol=1e-5, atol=1e-5)
        options["teacher"] = case.teacher
    found = value_and_gradients(case.student, lambda x: loss(case, x, backend=backend, impl=impl, **options))
    assert_close([x.double() for x in found], expected, **close)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_terms_and_reduction(reduction):
    """Both terms are reduced alike, so ``kd_scale`` does not depend on the batch size."""
    case = make_joiner_case(2, B=3, T=6, S=4, C=6, J=5)
    options = dict(teacher=case.teacher, kd_weighting="occupancy")
    single = pruned_transducer_terms(*case.student[:4], *case.arguments, reduction="none", **options)
    terms = pruned_transducer_terms(*case.student[:4], *case.arguments, reduction=reduction, **options)
    reduce = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]
    assert terms._fields == ("rnnt", "kd")
    assert_close(terms, [reduce(x) for x in single])
    torch.testing.assert_close(
        loss(case, case.student, reduction, kd_scale=0.3, **options), terms.rnnt + 0.3 * terms.kd
    )
    without = pruned_transducer_terms(*case.student[:4], *case.arguments, reduction=reduction)
    assert torch.equal(without.rnnt, terms.rnnt) and without.kd.shape == terms.kd.shape and not without.kd.any()


def test_boundary_none_is_no_padding():
    case = make_joiner_case(2, B=1, T=6, S=4, C=6)
    symbols, ranges, blank, _, rnnt_type = case.arguments
    found = pruned_transducer_loss(*case.student[:4], symbols, ranges, blank, rnnt_type=rnnt_type)
    assert torch.equal(found, loss(case, case.student, "mean"))


def test_kd_scale_zero_runs_no_teacher():
    case = make_joiner_case(2)
    broken = JoinerParts(*(x * float("nan") for x in case.teacher[:4]))
    assert torch.equal(loss(case, case.student, teacher=broken, kd_scale=0.0), loss(case, case.student))


@every_pair
def test_teacher_equal_to_student_is_zero_with_zero_gradient(variant, weighting):
    case = make_joiner_case(2, B=3, T=6, S=4, C=6, J=5)
    for scales in (None, (3.0, 0.0, 1.0)):
        options = dict(kd_variant=variant, kd_weighting=weighting, kd_class_scales=scales, teacher=case.student)
        with_kd = value_and_gradients(case.student, lambda x: loss(case, x, **options))  # noqa: B023
        assert_close(with_kd, value_and_gradients(case.student, lambda x: loss(case, x)), atol=1e-12)


@every_pair
def test_no_gradient_into_the_teacher(variant, weighting):
    case = make_joiner_case(2)
    leaves = [x.clone().requires_grad_() for x in leaves_of(case.teacher)]
    student = [x.clone().requires_grad_() for x in leaves_of(case.student)]
    options = dict(kd_variant=variant, kd_weighting=weighting, reduction="sum")
    teachers = [with_leaves(case.teacher, leaves)]
    if variant == "collapsed":
        teachers.append(node_scores(teachers[0], case.nodes))
    for teacher in teachers:
        loss(case, with_leaves(case.student, student), teacher=teacher, **options).backward()
        assert all(x.grad is None for x in leaves) and all(x.grad.any() for x in student)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_teacher_by_its_scores_is_the_teacher_by_its_joiner(weighting, temperature):
    case = make_joiner_case(5, B=3, T=7, S=4, C=6, J=5)
    options = dict(kd_weighting=weighting, kd_temperature=temperature, kd_class_scales=(1.0, 2.0, 0.5))
    scores = node_scores(case.teacher, case.nodes)
    tempered = None if temperature == 1.0 else node_scores(case.teacher, case.nodes, temperature=temperature)
    found = value_and_gradients(
        case.student, lambda x: loss(case, x, teacher=scores, tempered_teacher=tempered, **options)
    )
    assert_close(found, value_and_gradients(case.student, lambda x: loss(case, x, teacher=case.teacher, **options)))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_what_a_hand_made_teacher_gives_to_no_label_is_rest(weighting):
    """Behind the last symbol there is no label: scores that have one there mean the rest."""
    case = make_joiner_case(5, B=4, T=12, S=5, C=30, J=8)
    scores = node_scores(case.teacher, case.nodes)
    half = scores.log_rest - math.log(2.0)
    is_last = case.nodes.labels == case.lattice.blank
    assert bool((is_last & case.nodes.node_mask).any())
    hand_made = NodeScores(
        scores.log_blank, torch.where(is_last, half, scores.log_label), torch.where(is_last, half, scores.log_rest)
    )
    options = dict(kd_weighting=weighting, reduction="none")
    torch.testing.assert_close(
        loss(case, case.student, teacher=hand_made, **options), loss(case, case.student, teacher=scores, **options)
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_teacher_from_float16_is_near_the_teacher_itself(weighting, temperature):
    """As in the cache: the terms agree to the rounding of two float16 numbers a node, some 2^-11 of each."""
    case = make_joiner_case(5, B=4, T=12, S=5, C=30, J=8).to(torch.float32)
    nodes, options = case.nodes, dict(kd_weighting=weighting, kd_temperature=temperature, reduction="none")
    stored = unpack(pack(node_scores(case.teacher, nodes)))
    tempered = unpack(pack(node_scores(case.teacher, nodes, temperature=temperature)))
    online = value_and_gradients(case.student, lambda x: loss(case, x, teacher=case.teacher, **options))
    cached = value_and_gradients(
        case.student, lambda x: loss(case, x, teacher=stored, tempered_teacher=tempered, **options)
    )
    for a, b in zip(cached, online):
        assert (a - b).norm() < 2e-3 * b.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_changes_nothing(variant):
    """Around the loss, not around the backward pass, as PyTorch wants it."""
    case = make_joiner_case(4, B=2, T=9, S=4, C=7, J=5).to(torch.float32)

    def with_autocast(enabled):
        def run(joiner):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                return loss(case, joiner, teacher=case.teacher, kd_variant=variant)

        return value_and_gradients(case.student, run)

    found = with_autocast(True)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, with_autocast(False)))


def test_mixed_dtypes():
    """Encoder in bfloat16 under autocast, parameters in float32: each gradient in its own."""
    case = make_joiner_case(4, B=2, T=9, S=4, C=7, J=5).to(torch.float32)
    student = case.student._replace(am=case.student.am.bfloat16(), lm=case.student.lm.bfloat16())
    leaves = [x.clone().requires_grad_() for x in leaves_of(student)]
    value = loss(case, with_leaves(student, leaves), "sum", teacher=case.teacher)
    grads = torch.autograd.grad(value, leaves)
    assert [x.dtype for x in (value, *grads)] == [torch.float32] + [torch.bfloat16] * 2 + [torch.float32] * 2
    exact = loss(case, JoinerParts(*(x.detach().float() for x in leaves)), "sum", teacher=case.teacher)
    torch.testing.assert_close(value, exact)


def test_a_variant_is_a_function_and_its_first_argument_says_what_it_needs(monkeypatch):
    """One of ``scores`` takes a teacher from the cache."""
    from rnnt_kd.losses import kd_variants

    def blank_only(scores, teacher_scores, class_scales=None):
        return (scores.log_blank.exp() - teacher_scores.log_blank.exp()).square()

    blank_only.__module__ = kd_variants.__name__
    monkeypatch.setattr(kd_variants, "blank_only", blank_only, raising=False)
    assert available_variants()[-1] == "blank-only"
    case = make_joiner_case(1)
    scores = node_scores(case.teacher, case.nodes)
    found = loss(case, case.student, teacher=scores, kd_variant="blank-only")
    assert (found > loss(case, case.student)).all()
    assert torch.equal(found, loss(case, case.student, teacher=case.teacher, kd_variant="blank-only"))


def test_both_joiners_run_in_the_implementation_chosen(caplog):
    case = make_joiner_case(1)
    with caplog.at_level(logging.DEBUG, logger="rnnt_kd"):
        loss(case, case.student, teacher=case.teacher)
    assert caplog.text.count("node scores: torch") == 2  # of the student, of the teacher

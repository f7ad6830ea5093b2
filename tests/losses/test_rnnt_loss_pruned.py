"""The public loss: k2's value without a teacher, the sum of two terms with one, and its errors."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, gradients, lattice_cases, make_case

import rnnt_kd
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import torch_backend
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.losses import rnnt_kd_loss, rnnt_loss_pruned


def test_exported_from_the_package():
    assert rnnt_kd.rnnt_loss_pruned is rnnt_loss_pruned
    assert rnnt_kd.rnnt_kd_loss is rnnt_kd_loss
    with pytest.raises(AttributeError):
        rnnt_kd.something_else


def test_signature_is_k2s_and_keywords():
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    theirs = list(inspect.signature(k2.rnnt_loss_pruned).parameters.values())
    ours = list(inspect.signature(rnnt_loss_pruned).parameters.values())
    for a, b in zip(theirs, ours):
        assert (a.name, a.default, a.kind) == (b.name, b.default, b.kind)
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@given(lattice_cases(min_S=1, T_not_below_S=True))
def test_without_a_teacher_it_is_k2(case):
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    expected = gradients(lambda x: k2.rnnt_loss_pruned(x, *case.arguments, reduction="none"), case.logits)
    for backend in ("k2", "torch"):
        options = dict(reduction="none", backend=backend)
        found = gradients(lambda x: rnnt_loss_pruned(x, *case.arguments, **options), case.logits)  # noqa: B023
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_with_a_teacher_it_is_the_sum_of_both_terms(reduction, rnnt_type):
    case = make_case(1, B=3, rnnt_type=rnnt_type, blank=2)
    options = dict(kd_variant="full", kd_weighting="occupancy", kd_temperature=2.0)

    def total(x):
        return rnnt_loss_pruned(
            x, *case.arguments, 0.1, reduction, teacher_logits=case.teacher_logits, kd_scale=0.3, **options
        )

    def parts(x):
        rnnt = rnnt_loss_pruned(x, *case.arguments, 0.1, reduction)
        return rnnt + 0.3 * rnnt_kd_loss(x, case.teacher_logits, *case.arguments, reduction, **options)

    torch.testing.assert_close(gradients(total, case.logits), gradients(parts, case.logits))


def test_kd_scale_zero_is_no_teacher():
    case = make_case(1)
    with_teacher = rnnt_loss_pruned(case.logits, *case.arguments, teacher_logits=case.teacher_logits, kd_scale=0.0)
    assert torch.equal(with_teacher, rnnt_loss_pruned(case.logits, *case.arguments))


@given(lattice_cases(max_T=3, max_S=6))
def test_short_and_empty_utterances_are_finite(case):
    """T_b < S_b, S_b = 0, T_b = 1: value and gradient."""
    value, (grad,) = gradients(
        lambda x: rnnt_loss_pruned(x, *case.arguments, reduction="none", teacher_logits=case.teacher_logits),
        case.logits,
    )
    assert torch.isfinite(value).all() and torch.isfinite(grad).all()
    assert not grad[case.is_padding].any()


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.sampled_from(RNNT_TYPES))
def test_error_exactly_where_no_path_exists(seed, T, S, s_range, rnnt_type):
    """Ranges of k2's kind for lengths that may not fit: either a finite loss or the named error."""
    s_range = max(s_range, 2) if rnnt_type == "regular" else s_range
    generator = torch.Generator().manual_seed(seed)
    boundary = torch.tensor([[0, 0, S, T]])
    px_grad = torch.rand(1, S, T + (rnnt_type == "regular"), generator=generator)
    ranges = get_rnnt_prune_ranges(px_grad, torch.rand(1, S + 1, T, generator=generator), boundary, s_range)
    logits = torch.randn(*ranges.shape, 4, generator=generator)
    arguments = (logits, torch.ones(1, S, dtype=torch.int64), ranges, 0, boundary, rnnt_type)
    even = torch.full(ranges.shape, -1.0)
    if torch.isfinite(torch_backend.pruned_recursion(even, even, ranges, boundary, rnnt_type)):
        assert torch.isfinite(rnnt_loss_pruned(*arguments))
    else:
        with pytest.raises(UserError, match="utterance 0 of the batch: no path"):
            rnnt_loss_pruned(*arguments)


def test_padding_of_symbols_may_hold_anything():
    case = make_case(13, B=3, T=6, S=4)
    expected = rnnt_loss_pruned(case.logits, *case.arguments, reduction="none", teacher_logits=case.teacher_logits)
    padded = torch.arange(4) >= case.boundary[:, 2:3]
    assert padded.any()
    for filler in (-1, 10**6):
        case.symbols = case.symbols.masked_fill(padded, filler)
        found = rnnt_loss_pruned(case.logits, *case.arguments, reduction="none", teacher_logits=case.teacher_logits)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    case = make_case(14, T=20, S=6)
    logits, teacher_logits = case.logits.to(dtype), case.teacher_logits.to(dtype)
    found = rnnt_loss_pruned(logits, *case.arguments, teacher_logits=teacher_logits)
    expected = rnnt_loss_pruned(logits.float(), *case.arguments, teacher_logits=teacher_logits.float())
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_autocast_changes_nothing():
    case = make_case(14, T=20, S=6)
    logits, teacher_logits = case.logits.float(), case.teacher_logits.float()
    expected = rnnt_loss_pruned(logits, *case.arguments, teacher_logits=teacher_logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rnnt_loss_pruned(logits, *case.arguments, teacher_logits=teacher_logits)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(kd_variant="squashed"), "one of: collapsed, full"),
        (dict(kd_weighting="student_occupancy"), "one of: uniform, occupancy, student-occupancy, one-best"),
        (dict(kd_temperature=0.0), "a number above 0"),
        (dict(rnnt_type="fast"), "regular, modified or constrained"),
        (dict(reduction="max"), "none, mean or sum"),
        (dict(backend="numpy"), "auto, k2, torch"),
        (dict(termination_symbol=4), "0 to 3"),
        (dict(teacher_logits=torch.zeros(2, 5, 3, 7)), "share vocabulary, frame rate and ranges"),
        (dict(ranges=torch.zeros(2, 4, 3, dtype=torch.int64)), r"\(B, T, s_range\)"),
        (dict(symbols=torch.full((2, 3), 4)), "symbol 4"),
        (dict(symbols=torch.full((2, 3), -2)), "symbol -2"),
    ],
)
def test_wrong_values_are_named(change, told):
    case = make_case(1, B=2, T=5, S=3, C=4, s_range=3)
    arguments = dict(
        logits=case.logits, symbols=case.symbols, ranges=case.ranges, termination_symbol=0, boundary=case.boundary,
        teacher_logits=case.teacher_logits,
    )  # fmt: skip
    with pytest.raises(UserError, match=told):
        rnnt_loss_pruned(**{**arguments, **change})


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))])
def test_wrong_class_scales_are_named(scales):
    case = make_case(1)
    with pytest.raises(UserError, match="three numbers >= 0"):
        rnnt_kd_loss(
            case.logits, case.teacher_logits, *case.arguments,
            kd_variant="full", kd_weighting="uniform", kd_class_scales=scales,
        )  # fmt: skip

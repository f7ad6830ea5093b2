"""Padding, in the loss without logits: read by nobody, whatever it holds."""

import pytest
import torch
from joiner_cases import JoinerCase, loss, make_joiner_case, value_and_gradients

from rnnt_kd.losses import JoinerParts, NodeScores, available_variants, available_weightings
from rnnt_kd.losses.node_scores import node_scores

every_weighting = pytest.mark.parametrize("weighting", available_weightings())


def poison(case: JoinerCase, joiner: JoinerParts) -> JoinerParts:
    """NaN in every frame and position of padding."""
    am, lm, *others = joiner
    am, lm = am.clone(), lm.clone()
    frames, symbols = case.lattice.boundary[:, 3:], case.lattice.boundary[:, 2:3]
    am[torch.arange(am.shape[1]) >= frames] = float("nan")
    lm[torch.arange(lm.shape[1]) > symbols] = float("nan")
    return JoinerParts(am, lm, *others)


@every_weighting
@pytest.mark.parametrize("variant", available_variants())
def test_padding_has_no_gradient_and_no_influence(variant, weighting):
    """NaN on it, in student and teacher: not a bit changes."""
    case = make_joiner_case(12, B=4, T=9, S=6, C=6, J=5, s_range=4)
    student, teacher = poison(case, case.student), poison(case, case.teacher)
    assert student.am.isnan().any() and student.lm.isnan().any()
    options = dict(kd_variant=variant, kd_weighting=weighting)
    expected = value_and_gradients(case.student, lambda x: loss(case, x, teacher=case.teacher, **options))
    found = value_and_gradients(student, lambda x: loss(case, x, teacher=teacher, **options))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert not found[1][student.am.isnan()].any() and not found[2][student.lm.isnan()].any()


@every_weighting
def test_padding_of_a_cached_teacher_may_hold_anything(weighting):
    case = make_joiner_case(12, B=4, T=9, S=6, C=6, J=5, s_range=4)
    scores = node_scores(case.teacher, case.nodes)
    for filler in (float("nan"), float("inf"), -7.0):
        other = NodeScores(*(x.masked_fill(~case.nodes.node_mask, filler) for x in scores))
        found = value_and_gradients(
            case.student,
            lambda x: loss(case, x, teacher=other, kd_weighting=weighting),  # noqa: B023
        )
        expected = value_and_gradients(case.student, lambda x: loss(case, x, teacher=scores, kd_weighting=weighting))
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_padding_of_symbols_may_hold_anything():
    case = make_joiner_case(13, B=3, T=6, S=4)
    expected = loss(case, case.student, teacher=case.teacher)
    padded = torch.arange(4) >= case.lattice.boundary[:, 2:3]
    assert padded.any()
    for filler in (-1, 10**6, case.lattice.blank):
        case.lattice.symbols = case.lattice.symbols.masked_fill(padded, filler)
        assert torch.equal(loss(case, case.student, teacher=case.teacher), expected)

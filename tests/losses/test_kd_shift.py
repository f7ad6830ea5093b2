"""A teacher's lattice moved later: the plain loops, k2's rules for ranges, and a shift of nothing."""

import dataclasses

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joiner_cases import joiner_cases, make_joiner_case, value_and_gradients
from lattice_cases import RNNT_TYPES

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses import JoinerParts, NodeScores, pruned_transducer_terms
from rnnt_kd.losses.kd_shift import later, shift_nodes
from rnnt_kd.losses.kept_nodes import kept_nodes
from rnnt_kd.losses.node_scores import Posteriors, node_scores
from rnnt_kd.losses.terms import TeacherView, transducer_terms

WEIGHTINGS = ("uniform", "occupancy", "student-occupancy", "one-best", "mixed")
shifts = st.integers(0, 7)


def moved_teacher(case, shift):
    """Its posteriors on its own ranges, moved: ranges, NodeScores, mask."""
    lattice = case.lattice
    starts, is_known, scores = shift_nodes(
        lattice.ranges[:, :, 0], node_scores(case.teacher, case.nodes), lattice.boundary[:, 3], shift
    )
    ranges = starts.unsqueeze(2) + torch.arange(lattice.ranges.shape[2])
    return ranges, NodeScores(*scores), is_known


def kd_term(case, student, ranges, teacher, mask, weighting, backend="torch"):
    lattice = case.lattice
    return pruned_transducer_terms(
        *student[:4], lattice.symbols, ranges, lattice.blank, lattice.boundary, lattice.rnnt_type, reduction="none",
        activation=student.activation, teacher=teacher, teacher_mask=mask, kd_weighting=weighting, backend=backend,
    ).kd  # fmt: skip


def test_frames_move_later_and_the_first_is_repeated():
    x = torch.arange(10).reshape(1, 5, 2)
    assert later(x, 2)[0, :, 0].tolist() == [0, 0, 0, 2, 4]
    assert later(x, 9)[0, :, 0].tolist() == [0] * 5 and torch.equal(later(x, 0), x)


def test_ranges_rise_to_the_end_by_one_a_frame():
    """Unmoved the last frame keeps 6 ..; moved by 3 it would keep 1 .., and the text's end would be out of reach."""
    starts = torch.tensor([[0, 0, 0, 1, 2, 4, 6, 6, 6]])  # the last two are padding
    moved = shift_nodes(starts, (torch.zeros(1, 9, 3),), torch.tensor([7]), 3)
    assert moved.starts[0, :7].tolist() == [0, 0, 0, 1, 2, 4, 6]  # it could not rise later than it did
    moved = shift_nodes(starts[:, :7] // 3, (torch.zeros(1, 7, 3),), torch.tensor([7]), 3)
    assert moved.starts[0].tolist() == [0, 0, 0, 0, 0, 1, 2]  # 0 0 0 0 0 1 2 before, and 0 0 0 0 0 0 0 moved
    assert moved.is_known[0].tolist() == [[True] * 3] * 5 + [[True, True, False], [True, False, False]]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@settings(max_examples=25, deadline=None)
@given(case=joiner_cases(max_T=5, max_S=4), shift=shifts)
def test_value_and_gradient_are_the_plain_loops(weighting, case, shift):
    lattice = case.lattice
    ranges, teacher, mask = moved_teacher(case, shift)
    for b, (T, row) in enumerate(zip(lattice.frames, lattice.ranges[:, :, 0].tolist())):
        assert ranges[b, :T, 0].tolist() == reference.shifted_starts(row[:T], shift)
    student = case.student
    if student.am.ndim == 4:  # pruned before, to other ranges
        student = JoinerParts(
            *(x if x is None or x.ndim != 4 else x.roll(1, 0) for x in student[:4]), student.activation
        )
    teacher_logits = reference.joiner_logits(*case.teacher[:4], lattice.ranges)

    def specified(joiner):
        return reference.shifted_kd_losses(
            reference.joiner_logits(*joiner[:4], ranges), teacher_logits, lattice.transcripts, lattice.ranges,
            lattice.blank, lattice.frames, lattice.rnnt_type, shift=shift, weighting=weighting,
        )  # fmt: skip

    found = value_and_gradients(student, lambda x: kd_term(case, x, ranges, teacher, mask, weighting))
    torch.testing.assert_close(found, value_and_gradients(student, specified), rtol=1e-7, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shift=st.integers(0, 40),
    T=st.integers(1, 30),
    S=st.integers(0, 20),
    s_range=st.integers(2, 6),
    rnnt_type=st.sampled_from(RNNT_TYPES),
)
def test_moved_ranges_keep_the_rules_of_k2_and_a_path(seed, shift, T, S, s_range, rnnt_type):
    case = make_joiner_case(seed, B=3, T=T, S=S, C=5, s_range=s_range, rnnt_type=rnnt_type).lattice
    (_, T, s_range), starts, frames = case.ranges.shape, case.ranges[:, :, 0], case.boundary[:, 3]
    moved = shift_nodes(starts, (torch.zeros(case.ranges.shape),), frames, shift).starts
    steps = moved[:, 1:] - moved[:, :-1]
    largest = s_range - 1 if rnnt_type == "regular" else 1
    assert bool((moved[:, 0] == 0).all()) and bool((steps >= 0).all()) and bool((steps <= largest).all())
    last = (frames - 1).unsqueeze(1)
    assert torch.equal(moved.gather(1, last), starts.gather(1, last))
    assert bool((moved <= starts).all()) and bool((moved >= later(starts, shift)).all())
    ranges = moved.unsqueeze(2) + torch.arange(s_range)
    kept_nodes(case.symbols, ranges, case.blank, case.boundary, rnnt_type)  # raises where no path is left
    even = torch.full(ranges.shape, -1.0)
    assert torch.isfinite(get_backend("torch").pruned_recursion(even, even, ranges, case.boundary, rnnt_type)).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_shift_of_nothing_changes_no_bit(weighting):
    case = make_joiner_case(5, B=3, T=9, S=5, C=6).to(torch.float32)
    ranges, teacher, mask = moved_teacher(case, 0)
    assert torch.equal(ranges, case.lattice.ranges) and bool(mask.all())
    plain = node_scores(case.teacher, case.nodes)
    assert all(torch.equal(found, right) for found, right in zip(teacher, plain))
    with_mask = kd_term(case, case.student, ranges, teacher, mask, weighting)
    assert torch.equal(with_mask, kd_term(case, case.student, ranges, plain, None, weighting))


@pytest.mark.parametrize("backend", ["torch", "k2"])
def test_nodes_of_which_nothing_is_known_carry_no_term_and_break_no_path(backend):
    if backend == "k2":
        pytest.importorskip("k2")
    case = make_joiner_case(11, B=2, T=8, S=6, C=5, s_range=3).to(torch.float32)
    ranges, teacher, mask = moved_teacher(case, 5)
    assert not bool(mask.all())
    for weighting in WEIGHTINGS:
        value = kd_term(case, case.student, ranges, teacher, mask, weighting, backend)
        garbage = NodeScores(*(x.masked_fill(~mask, float("nan")) for x in teacher))
        same = kd_term(case, case.student, ranges, garbage, mask, weighting, backend)
        assert torch.isfinite(value).all() and torch.equal(same, value)
        (gradient,) = value_and_gradients(
            case.student, lambda x: kd_term(case, x, ranges, garbage, mask, weighting, backend)
        )[1:2]
        assert torch.isfinite(gradient).all()


def test_a_teacher_of_other_nodes_than_the_students_is_refused_where_both_are_compared():
    case = make_joiner_case(11, B=2, T=8, S=6, C=5, s_range=3)
    ranges, teacher, mask = moved_teacher(case, 5)
    moved = TeacherView(Posteriors(teacher), mask, ranges)
    given = (case.student, case.lattice.symbols, case.lattice.ranges, case.lattice.blank, case.lattice.boundary)
    with pytest.raises(UserError, match="ranges: nodes other than the ranges given; expected the teacher's ranges"):
        transducer_terms(*given, teacher=moved)
    unknown = dataclasses.replace(moved, is_known=torch.zeros_like(mask))
    assert not transducer_terms(*given, teacher=unknown).kd.any()
    assert transducer_terms(*given[:2], ranges, *given[3:], teacher=moved).kd > 0


def test_posteriors_and_a_joiner_agree_on_the_whole_lattice():
    """Where every node is kept all is known, and a teacher that runs online says the same."""
    case = make_joiner_case(3, B=2, T=6, S=3, C=5, full=True)
    ranges, teacher, mask = moved_teacher(case, 2)
    assert torch.equal(ranges, case.lattice.ranges) and bool(mask.all())
    online = case.teacher._replace(am=later(case.teacher.am, 2))
    for weighting in WEIGHTINGS:
        found = kd_term(case, case.student, ranges, teacher, mask, weighting)
        torch.testing.assert_close(found, kd_term(case, case.student, ranges, online, None, weighting))

"""A teacher with other numbers of frames than its student: the stated rule against the plain loops, online and cached."""

import contextlib
import itertools

import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from joiner_cases import make_joiner_case, value_and_gradients
from lattice_cases import RNNT_TYPES

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.losses import Distillation, Posteriors, TeacherView, available_weightings, transducer_terms
from rnnt_kd.losses.kd_shift import align_nodes, shift_nodes
from rnnt_kd.losses.kept_nodes import kept_nodes
from rnnt_kd.losses.node_scores import NodeScores, node_scores
from rnnt_kd.losses.packed_posteriors import pack
from rnnt_kd.teachers.views import CachedTeacher, OnlineTeacher, check_frames


class Pair:
    """A student's lattice, and a teacher of the same texts with ``difference`` more frames in each utterance.

    Raises UserError: one of them has too few frames for a path.
    """

    def __init__(self, seed, difference, **options):
        self.case = make_joiner_case(seed, **options)
        lattice = self.lattice = self.case.lattice
        self.num_frames = lattice.boundary[:, 3]
        self.frames = self.num_frames + difference
        if bool((self.frames < 1).any()):
            raise UserError("frames", "none", "one at least")
        T, s_range = int(self.frames.max()), lattice.ranges.shape[2]
        generator = torch.Generator().manual_seed(seed)
        B, S = lattice.symbols.shape
        boundary = lattice.boundary.clone()
        boundary[:, 3] = self.frames
        arcs = torch.rand(B, S, T + (lattice.rnnt_type == "regular"), generator=generator)
        ranges = get_rnnt_prune_ranges(arcs, torch.rand(B, S + 1, T, generator=generator), boundary, s_range)
        am = torch.randn(B, T, self.case.teacher.am.shape[2], generator=generator, dtype=torch.float64)
        self.teacher, self.ranges = self.case.teacher._replace(am=am), ranges
        self.step = s_range - 1 if lattice.rnnt_type == "regular" else 1
        self.nodes = kept_nodes(lattice.symbols, ranges, lattice.blank, boundary, lattice.rnnt_type)
        for theirs, frames, ours in zip(ranges[:, :, 0].tolist(), self.frames.tolist(), self.num_frames.tolist()):
            if reference.aligned_starts(theirs[:frames], ours, self.step)[0] != 0:
                raise UserError("ranges", "do not begin at 0", "a path")

    def term(self, student, view, weighting, ranges=None):
        lattice = self.lattice
        return transducer_terms(
            student, lattice.symbols, view.ranges if ranges is None else ranges, lattice.blank, lattice.boundary,
            lattice.rnnt_type, reduction="none", teacher=view, kd=Distillation(weighting=weighting), backend="torch",
        ).kd  # fmt: skip

    def specified(self, student, ranges, shift, weighting, teacher_ranges=None):
        lattice, theirs = self.lattice, self.ranges if teacher_ranges is None else teacher_ranges
        return reference.shifted_kd_losses(
            reference.joiner_logits(*student[:4], ranges), reference.joiner_logits(*self.teacher[:4], theirs),
            lattice.transcripts, theirs, lattice.blank, lattice.frames, lattice.rnnt_type, shift=shift,
            weighting=weighting, teacher_frames=self.frames.tolist(),
        )  # fmt: skip


def any_pair(difference, **options):
    """The first that has paths."""
    for seed in range(100):
        with contextlib.suppress(UserError):
            return Pair(seed, difference, **options)


@pytest.mark.parametrize("weighting", available_weightings())
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    difference=st.sampled_from([-2, -1, 1, 2]),
    shift=st.integers(0, 3),
    rnnt_type=st.sampled_from(RNNT_TYPES),
    s_range=st.sampled_from([2, 3]),
)
def test_known_nodes_fitted_to_the_students_frames_are_the_plain_loops(
    weighting, seed, difference, shift, rnnt_type, s_range
):
    try:
        pair = Pair(seed, difference, B=2, T=6, S=4, C=5, s_range=s_range, rnnt_type=rnnt_type)
    except UserError:
        assume(False)
    T = pair.lattice.ranges.shape[1]
    scores = node_scores(pair.teacher, pair.nodes)
    starts, known, values = align_nodes(pair.ranges[:, :, 0], scores, pair.frames, pair.num_frames, T, pair.step)
    for b, frames in enumerate(pair.frames.tolist()):
        theirs = pair.ranges[b, :frames, 0].tolist()
        ours = int(pair.num_frames[b])
        assert starts[b, :ours].tolist() == reference.aligned_starts(theirs, ours, pair.step)
    starts, is_there, (*values, known) = shift_nodes(starts, (*values, known), pair.num_frames, shift)
    ranges = starts.unsqueeze(2) + torch.arange(s_range)
    view = TeacherView(Posteriors(NodeScores(*values)), is_there & known, ranges)
    student = pair.case.student
    found = value_and_gradients(student, lambda x: pair.term(x, view, weighting))
    expected = value_and_gradients(student, lambda x: pair.specified(x, ranges, shift, weighting))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("difference", [-2, 1])
@pytest.mark.parametrize("shift", [0, 2])
def test_from_the_cache(difference, shift):
    """Up to the float16 of the cache."""
    pair = any_pair(difference, B=3, T=8, S=4, C=5, s_range=3)
    packed = pack(node_scores(pair.teacher, pair.nodes))
    cached = CachedTeacher(pair.ranges[:, :, 0], packed, packed, frames=pair.frames)
    view = cached.view(pair.num_frames, pair.lattice.ranges.shape[1], shift=shift, align="crop-pad")
    student = pair.case.student
    for weighting in ("uniform", "occupancy"):
        found, expected = pair.term(student, view, weighting), pair.specified(student, view.ranges, shift, weighting)
        torch.testing.assert_close(found, expected, rtol=4 * 2.0**-11, atol=1e-4)
        assert expected.min() > 0.01
    with pytest.raises(UserError, match="teacher's cache: .* encoder frames where the student makes"):
        cached.view(pair.num_frames, pair.lattice.ranges.shape[1])


class Foreign:
    """A teacher that is no module of ours: it has its frames ready."""

    blank_id = 0

    def __init__(self, pair):
        self.pair = pair

    def encode(self, x, x_lens):
        return self.pair.teacher.am, self.pair.frames.int()

    def predict(self, labels):
        return self.pair.teacher.lm

    def joiner(self, encoder_out, predictor_out):
        return self.pair.teacher._replace(am=encoder_out, lm=predictor_out)

    def simple(self, encoder_out, predictor_out):
        return None


@pytest.mark.parametrize("difference", [-2, -1, 1, 2])
@pytest.mark.parametrize("shift", [0, 1])
def test_online(difference, shift):
    """On a lattice that keeps every node, where the student's nodes are the teacher's."""
    pair = any_pair(difference, B=2, T=5, S=3, C=4, full=True)
    T, every = pair.lattice.ranges.shape[1], pair.lattice.ranges
    teacher = OnlineTeacher(Foreign(pair), shift, align="crop-pad")
    view = teacher.view(torch.zeros(2, 1, 80), torch.ones(2), pair.lattice.symbols, pair.num_frames, T)
    theirs = every[:, :1].expand(-1, int(pair.frames.max()), -1)
    for weighting in available_weightings():
        found = value_and_gradients(pair.case.student, lambda x: pair.term(x, view, weighting, every))  # noqa: B023
        expected = value_and_gradients(
            pair.case.student,
            lambda x: pair.specified(x, every, shift, weighting, theirs),  # noqa: B023
        )
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    strict = OnlineTeacher(Foreign(pair))
    with pytest.raises(UserError, match="encoder frames where the student makes"):
        strict.view(torch.zeros(2, 1, 80), torch.ones(2), pair.lattice.symbols, pair.num_frames, T)


def test_more_padding_is_no_other_number_of_frames():
    """Features may be padded beyond the longest utterance."""
    pair = any_pair(0, B=2, T=5, S=3, C=4, full=True)
    T = pair.lattice.ranges.shape[1]
    given = torch.zeros(2, 1, 80), torch.ones(2), pair.lattice.symbols, pair.num_frames
    expected = OnlineTeacher(Foreign(pair)).view(*given, T)
    for align, more in itertools.product(("strict", "crop-pad"), (-1, 1, 2)):
        view = OnlineTeacher(Foreign(pair), align=align).view(*given, T + more)
        shorter = min(T, T + more)
        assert view.is_known is None and view.on_nodes.am.shape[1] == T + more
        torch.testing.assert_close(view.on_nodes.am[:, :shorter], expected.on_nodes.am[:, :shorter])


def test_more_than_two_frames_are_an_error_that_names_both():
    ours = torch.tensor([5, 9, 7])
    assert not check_frames("teacher", ours.clone(), ours, "strict")
    assert check_frames("teacher", torch.tensor([5, 11, 6]), ours, "crop-pad")
    with pytest.raises(
        UserError, match=r"teacher: 12 encoder frames where the student makes 9 \(utterance 1 .*at most 2"
    ):
        check_frames("teacher", torch.tensor([6, 12, 7]), ours, "crop-pad")
    with pytest.raises(UserError, match=r"8 encoder frames where the student makes 7 \(utterance 2"):
        check_frames("teacher", torch.tensor([5, 9, 8]), ours, "strict")

"""The term of the teacher's alignments against all paths, and what training makes of it."""

import pytest
import reference
import torch
from hypothesis import given
from lattice_cases import backend_on, every_backend, gradients, lattice_cases, make_case, moved

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses import Distillation, Logits, TeacherView, kept_nodes, lattice_terms


def term(case, logits, teacher, backend, is_known=None, scale=1.0):
    """What it adds to the term without it."""
    nodes, view = kept_nodes(*moved(case.arguments, logits.device)), TeacherView(Logits(teacher), is_known)
    taught = [(view, Distillation(path_scale=own)) for own in (0.0, scale)]
    _, without, both = lattice_terms(Logits(logits), nodes, taught, backend)
    return both - without


@every_backend
@given(lattice_cases())
def test_value_and_gradient_are_those_of_all_paths(backend, case):
    backend, device = backend_on(backend)
    teacher = case.logits.roll(1, -1) * 1.5

    def plain(logits):
        given = logits, teacher, case.transcripts, case.ranges, case.blank, case.frames, case.rnnt_type
        return reference.path_losses(*given)

    expected = gradients(plain, case.logits)
    logits, tolerance = case.logits.to(device), 1e-9
    if backend.__name__.endswith("triton_backend"):  # works in float32
        logits, tolerance = logits.float(), 2e-3
    found = gradients(lambda x: term(case, x, teacher.to(x), backend), logits)
    for mine, right in zip((found[0], *found[1]), (expected[0], *expected[1])):
        torch.testing.assert_close(mine.detach().cpu().double(), right.detach(), rtol=tolerance, atol=tolerance)


def test_of_the_teacher_itself_it_is_nothing_and_it_is_scaled():
    case, backend = make_case(2), get_backend("torch")
    torch.testing.assert_close(term(case, case.logits, case.logits, backend), torch.zeros(len(case.frames)).double())
    other = case.logits.roll(1, -1)
    one, two = (term(case, case.logits, other, backend, scale=scale) for scale in (1.0, 2.5))
    assert one.abs().min() > 1e-3
    torch.testing.assert_close(two, 2.5 * one)


def test_where_nothing_is_known_nothing_is_learned():
    case, backend = make_case(5, B=2, T=6, S=3, C=5, full=True), get_backend("torch")
    logits, teacher = case.logits.clone().requires_grad_(), case.logits.roll(1, -1)
    is_known = torch.ones(2, 6, case.ranges.shape[2], dtype=torch.bool)
    is_known[0], is_known[1, :3] = False, False
    found = term(case, logits, teacher, backend, is_known)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert found[0] == 0.0 and not gradient[0].any() and not gradient[1, :3].any() and gradient[1, 3:].any()


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), "1"])
def test_a_scale_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="kd path scale: .*; expected a number >= 0"):
        Distillation(path_scale=wrong)

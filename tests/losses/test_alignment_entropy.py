"""The entropy of alignments against all paths, and what training makes of it."""

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from joiner_cases import loss, make_joiner_case
from lattice_cases import backend_on, every_backend, every_rnnt_type, gradients, lattice_cases, make_case, moved

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses import Logits, kept_nodes, lattice_terms


def entropies(case, logits, backend, delay_penalty=0.0):
    arguments = moved(case.arguments, logits.device)
    student = Logits(logits)
    rnnt, found = lattice_terms(
        student, kept_nodes(*arguments), [], backend, delay_penalty=delay_penalty, with_entropy=True
    )
    assert torch.equal(rnnt, lattice_terms(student, kept_nodes(*arguments), [], backend, delay_penalty)[0])
    return found


@every_backend
def test_value_and_gradient_are_those_of_all_paths(backend):
    examples = 8 if backend == "triton" else 25  # its interpreter takes its time
    backend, device = backend_on(backend)
    tolerance = 1e-3 if backend.__name__.endswith("triton_backend") else 1e-9  # works in float32

    @settings(max_examples=examples)
    @given(lattice_cases())
    def holds(case):
        def plain(logits):
            return reference.alignment_entropies(
                logits, case.transcripts, case.ranges, case.blank, case.frames, case.rnnt_type
            )

        expected = gradients(plain, case.logits)
        logits = case.logits.to(device)
        logits = logits.float() if tolerance == 1e-3 else logits
        found = gradients(lambda x: entropies(case, x, backend), logits)
        for mine, right in zip((found[0], *found[1]), (expected[0], *expected[1])):
            torch.testing.assert_close(mine.detach().cpu().double(), right.detach(), rtol=tolerance, atol=tolerance)

    holds()


@every_rnnt_type
def test_equal_paths_have_the_logarithm_of_their_number_and_one_path_has_none(rnnt_type):
    case = make_case(3, B=1, T=5, S=2, C=4, full=True, rnnt_type=rnnt_type)
    backend = get_backend("torch")
    number = len(reference.all_paths(2, 5, rnnt_type))
    if rnnt_type != "constrained":  # there the number of posteriors on a path depends on the path
        assert entropies(case, torch.zeros_like(case.logits), backend).item() == pytest.approx(math.log(number))
    certain = 1e4 * case.logits
    assert entropies(case, certain, backend).item() == pytest.approx(0.0, abs=1e-6)
    assert entropies(case, certain.float(), backend).item() >= -1e-2


def test_less_of_it_means_a_best_path_that_has_more_of_the_probability():
    """A few steps down its gradient alone."""
    case = make_case(5, B=2, T=6, S=3, C=5, full=True)
    logits = case.logits.clone().requires_grad_()
    backend = get_backend("torch")

    def share_of_best(logits):
        log_prob = reference._log_prob_of(logits.detach(), case.transcripts, case.ranges, 0, case.blank)
        scores = torch.stack(reference.path_scores(reference.all_paths(3, 6, "regular"), log_prob, 6))
        return scores.softmax(0).max().item()

    before = share_of_best(logits)
    for _ in range(30):
        (gradient,) = torch.autograd.grad(entropies(case, logits, backend).sum(), logits)
        with torch.no_grad():
            logits -= 0.5 * gradient
    assert before < 0.5 < 0.9 < share_of_best(logits)


def test_a_delay_penalty_is_no_part_of_it():
    case, backend = make_case(2), get_backend("torch")
    assert torch.equal(entropies(case, case.logits, backend), entropies(case, case.logits, backend, 3.0))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_public_loss_adds_it_by_utterance(reduction):
    case = make_joiner_case(3, B=3, T=7, S=4, C=6)
    options = dict(teacher=case.teacher, kd_scale=0.5, reduction=reduction)
    plain, more = (loss(case, case.student, entropy_scale=scale, **options) for scale in (0.0, 0.3))
    each = lattice_terms(case.student, case.nodes, [], get_backend("torch"), with_entropy=True)[-1]
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    assert each.max() > 0.1
    torch.testing.assert_close(more - plain, 0.3 * expected)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="entropy_scale: .*; expected a number >= 0"):
            loss(case, case.student, entropy_scale=wrong, **options)

"""The sum over all paths from posteriors on the kept nodes: every backend, one specification."""

import importlib

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, gradients, lattice_cases, make_case

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import available_backends, torch_backend
from rnnt_kd.losses.kept_nodes import kept_nodes

every_backend = pytest.mark.parametrize("backend", ["torch", "k2", "triton"])
few = settings(max_examples=12)


def load(name):
    """The backend, and the device that it is tested on."""
    package = {"k2": "k2", "triton": "triton", "torch": "torch"}[name]
    pytest.importorskip(package, reason=f"{package} is not in this environment")
    backend = importlib.import_module(f"rnnt_kd.lattice.{name}_backend")
    device = torch.device("cuda" if name == "triton" and torch.cuda.is_available() else "cpu")
    if not backend.supports(device):
        pytest.skip(f"{name} cannot compute on {device}")
    return backend, device


def test_all_backends_are_here():
    assert available_backends() == ["k2", "torch", "triton"]


def scores_like(case, seed=0, dtype=torch.float64):
    """log_blank, log_label (B, T, s_range): any numbers below 0, no posteriors of anything."""
    generator = torch.Generator().manual_seed(seed)
    return [-torch.rand(case.ranges.shape, generator=generator, dtype=dtype) * 3 for _ in range(2)]


def run(name, case, log_blank, log_label, delay_penalty=0.0):
    """(scores, blank_grad, label_grad) on the CPU."""
    backend, device = load(name)
    arguments = [x.to(device) for x in (log_blank, log_label, case.ranges, case.boundary)]
    scores, grads = backend.pruned_recursion(*arguments, case.rnnt_type, delay_penalty, return_grad=True)
    return [x.detach().cpu() for x in (scores, *grads)]


@every_backend
@few
@given(lattice_cases(max_T=4, max_S=3, max_C=3), st.integers(0, 1000), st.sampled_from([0.0, 0.3]))
def test_value_and_gradient_are_the_sum_over_all_paths(backend, case, seed, delay_penalty):
    """In value and gradient; and ``return_grad`` is the gradient."""
    module, device = load(backend)
    log_blank, log_label = scores_like(case, seed)

    def specified(*scores):
        values = []
        for b, symbols in enumerate(case.transcripts):
            kept = [[int(s) for s in row] for row in case.ranges[b]]
            paths = reference.all_paths(len(symbols), case.frames[b], case.rnnt_type, lambda t, s: s in kept[t])  # noqa: B023

            def log_prob(t, s, kind):
                return scores[kind == "label"][b, t, kept[t].index(s)]  # noqa: B023

            values.append(reference.log_add(reference.path_scores(paths, log_prob, case.frames[b], delay_penalty)))
        return torch.stack(values) + 0.0 * sum(x.sum() for x in scores)  # which no path may read

    def ours(*scores):
        arguments = [x.to(device) for x in (*scores, case.ranges, case.boundary)]
        return module.pruned_recursion(*arguments, case.rnnt_type, delay_penalty).cpu()

    expected, found = gradients(specified, log_blank, log_label), gradients(ours, log_blank, log_label)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    scores, *reads = run(backend, case, log_blank, log_label, delay_penalty)
    torch.testing.assert_close(scores, expected[0], rtol=1e-9, atol=1e-9)
    factors = torch.arange(1, len(scores) + 1).reshape(-1, 1, 1)  # those of ``gradients``
    torch.testing.assert_close([x * factors for x in reads], list(found[1]), rtol=1e-9, atol=1e-9)


@every_backend
@few
@given(case=lattice_cases(max_T=6, max_S=4))
def test_every_path_reads_a_label_per_symbol_and_a_blank_per_frame(backend, case):
    _, blank_reads, label_reads = run(backend, case, *scores_like(case))
    symbols, frames = case.boundary[:, 2].double(), case.boundary[:, 3].double()
    torch.testing.assert_close(label_reads.sum(dim=(1, 2)), symbols)
    blanks = frames - symbols if case.rnnt_type == "modified" else frames
    torch.testing.assert_close(blank_reads.sum(dim=(1, 2)), blanks)
    assert min(blank_reads.min(), label_reads.min()) >= 0.0


@every_backend
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_padding_is_not_read(backend, rnnt_type):
    """NaN on padded nodes changes no bit of score or gradient, and their own gradient is 0."""
    case = make_case(12, B=4, T=9, S=6, s_range=4, rnnt_type=rnnt_type)
    assert case.is_padding.any()
    clean = scores_like(case)
    poisoned = [x.masked_fill(case.is_padding, float("nan")) for x in clean]
    found, expected = run(backend, case, *poisoned, 0.1), run(backend, case, *clean, 0.1)
    for a, b in zip(found, expected):
        assert torch.equal(a, b)
    for reads in found[1:]:
        assert not reads[case.is_padding].any()


@every_backend
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_no_arc_leaves_the_last_position(backend, rnnt_type):
    """Whatever stands in for the label there, -1e30 or 0, is not read."""
    case = make_case(6, B=3, T=7, S=4, s_range=3, rnnt_type=rnnt_type)
    log_blank, log_label = scores_like(case)
    is_last = case.ranges == case.boundary[:, 2].reshape(-1, 1, 1)
    expected = run(backend, case, log_blank, log_label)
    for filler in (-1e30, 0.0):
        found = run(backend, case, log_blank, log_label.masked_fill(is_last, filler))
        torch.testing.assert_close(found, expected)
        assert not found[2][is_last].any()


@every_backend
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_long_utterances_in_float32(backend, rnnt_type):
    """Scores to 1e-5 of their size, reads to 1e-4 (by k2, in its own float32, to 2e-3), against float64."""
    T = 100 if backend == "triton" and not torch.cuda.is_available() else 2000  # its interpreter takes its time
    case = make_case(1, B=2, T=T, S=T // 8, C=2, s_range=5, rnnt_type=rnnt_type)
    log_blank, log_label = (5.0 * x.float() for x in scores_like(case))
    scores, *reads = run(backend, case, log_blank, log_label)
    true_scores, *true_reads = run("torch", case, log_blank.double(), log_label.double())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), true_scores, rtol=1e-5, atol=0.0)
    for a, b in zip(reads, true_reads):
        torch.testing.assert_close(a.double(), b, rtol=0.0, atol=2e-3 if backend == "k2" else 1e-4)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_k2_is_the_judge(name, rnnt_type):
    """k2's own loss, from logits, whose posteriors are the scores here."""
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    case = make_case(8, B=3, T=12, S=7, C=6, s_range=4, rnnt_type=rnnt_type, blank=2)
    nodes = kept_nodes(*case.arguments)
    logs = case.logits.log_softmax(dim=-1)
    log_blank, log_label = logs[..., case.blank], logs.gather(-1, nodes.labels.unsqueeze(-1)).squeeze(-1)
    judged = -k2.rnnt_loss_pruned(case.logits, *case.arguments, reduction="none")
    torch.testing.assert_close(run(name, case, log_blank, log_label)[0], judged, rtol=1e-9, atol=1e-9)


@every_backend
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_same_bits_from_run_to_run(backend, rnnt_type):
    case = make_case(5, B=3, T=40, S=12, s_range=5, rnnt_type=rnnt_type)
    scores = scores_like(case, dtype=torch.float32)
    first = run(backend, case, *scores)
    assert all(torch.equal(a, b) for a, b in zip(run(backend, case, *scores), first))


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_gradcheck(rnnt_type):
    case = make_case(3, B=2, T=4, S=3, rnnt_type=rnnt_type)
    scores = [x.requires_grad_() for x in scores_like(case)]
    assert torch.autograd.gradcheck(
        lambda *x: torch_backend.pruned_recursion(*x, case.ranges, case.boundary, rnnt_type, 0.1), scores
    )


@every_backend
def test_wrong_rnnt_type_is_named(backend):
    case = make_case(1, rnnt_type="regular")
    case.rnnt_type = "fast"
    with pytest.raises(UserError, match="regular, modified, constrained"):
        run(backend, case, *scores_like(case))

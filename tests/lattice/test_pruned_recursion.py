"""The sum over all paths from posteriors on the kept nodes: every backend, one specification."""

import pytest
import reference
import torch
from command_cases import told
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_cases import backend_on, every_backend, every_rnnt_type, gradients, lattice_cases, make_case, moved

without_k2 = pytest.mark.parametrize("backend", ["torch", "triton"])
few = settings(max_examples=12)


def scores_like(case, seed=0, dtype=torch.float64):
    """log_blank, log_label (B, T, s_range): any numbers below 0, no posteriors of anything."""
    generator = torch.Generator().manual_seed(seed)
    return [-torch.rand(case.ranges.shape, generator=generator, dtype=dtype) * 3 for _ in range(2)]


def run(name, case, log_blank, log_label, delay_penalty=0.0):
    """(scores, blank_grad, label_grad) on the CPU."""
    backend, device = backend_on(name)
    arguments = moved((log_blank, log_label, case.ranges, case.boundary), device)
    scores, grads = backend.pruned_recursion(*arguments, case.rnnt_type, delay_penalty, return_grad=True)
    return [x.detach().cpu() for x in (scores, *grads)]


@every_backend
@few
@given(lattice_cases(max_T=4, max_S=3, max_C=3), st.integers(0, 1000), st.sampled_from([0.0, 0.3]))
def test_value_and_gradient_are_the_sum_over_all_paths(backend, case, seed, delay_penalty):
    """In value and gradient; and ``return_grad`` is the gradient."""
    module, device = backend_on(backend)
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
        arguments = moved((*scores, case.ranges, case.boundary), device)
        return module.pruned_recursion(*arguments, case.rnnt_type, delay_penalty).cpu()

    expected, found = gradients(specified, log_blank, log_label), gradients(ours, log_blank, log_label)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    scores, *reads = run(backend, case, log_blank, log_label, delay_penalty)
    torch.testing.assert_close(scores, expected[0], rtol=1e-9, atol=1e-9)
    factors = torch.arange(1, len(scores) + 1).reshape(-1, 1, 1)  # those of ``gradients``
    torch.testing.assert_close([x * factors for x in reads], list(found[1]), rtol=1e-9, atol=1e-9)


@every_backend
@every_rnnt_type
def test_padding_and_labels_behind_the_last_symbol_are_not_read(backend, rnnt_type):
    """NaN there changes no bit of score or gradient, and its own gradient is 0."""
    case = make_case(12, B=4, T=9, S=6, s_range=4, rnnt_type=rnnt_type)
    is_unread = case.is_padding | (case.ranges == case.boundary[:, 2].reshape(-1, 1, 1))
    log_blank, log_label = scores_like(case)
    expected = run(backend, case, log_blank, log_label.masked_fill(is_unread, -1e30), 0.1)
    poisoned = log_blank.masked_fill(case.is_padding, float("nan")), log_label.masked_fill(case.is_padding, 9.0)
    for filler in (0.0, -1e30) if backend == "k2" else (0.0, -1e30, float("nan")):
        found = run(backend, case, poisoned[0], poisoned[1].masked_fill(is_unread, filler), 0.1)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
        assert not found[1][case.is_padding].any() and not found[2][is_unread].any()


@pytest.mark.parametrize("backend, scale", [
    ("torch", 5.0), ("torch", 30.0), ("k2", 5.0), ("k2", 30.0), ("triton", 5.0),
    *([("triton", 30.0)] if torch.cuda.is_available() else []),
])  # fmt: skip
@every_rnnt_type
def test_long_utterances_in_float32(backend, rnnt_type, scale):
    """Scores to 1e-5 of their size, reads to 1e-4 (by k2, in its own float32, to 2e-3), against float64."""
    T = 100 if backend == "triton" and not torch.cuda.is_available() else 2000  # its interpreter takes its time
    case = make_case(1, B=2, T=T, S=T // 8, C=2, s_range=5, rnnt_type=rnnt_type)
    log_blank, log_label = (scale * x.float() for x in scores_like(case))
    scores, *reads = run(backend, case, log_blank, log_label)
    true_scores, *true_reads = run("torch", case, log_blank.double(), log_label.double())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), true_scores, rtol=1e-5, atol=0.0)
    if backend == "k2" and scale > 5.0:
        return  # its reads are off by more, and nobody promises them
    for a, b in zip(reads, true_reads):
        torch.testing.assert_close(a.double(), b, rtol=0.0, atol=2e-3 if backend == "k2" else 1e-4)


@without_k2
@every_rnnt_type
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_posteriors(backend, rnnt_type, size):
    case = make_case(2, T=6, S=3, rnnt_type=rnnt_type)
    extreme = [x.sign() * size * (x < -1.5) for x in scores_like(case)]
    found = run(backend, case, *extreme)
    assert all(torch.isfinite(x).all() for x in found)
    torch.testing.assert_close(found, run("torch", case, *extreme), rtol=1e-9, atol=1e-9)


@without_k2
@every_rnnt_type
def test_no_path_is_minus_infinity_without_gradient_not_nan(backend, rnnt_type):
    case = make_case(0, B=2, T=3, S=2, s_range=3, rnnt_type=rnnt_type, full=True)
    log_blank, log_label = scores_like(case)
    log_label[0, :, 0] = float("-inf")  # the first symbol of utterance 0 cannot be emitted
    scores, *reads = run(backend, case, log_blank, log_label)
    assert scores[0] == float("-inf") and torch.isfinite(scores[1])
    assert all(torch.isfinite(x).all() and not x[0].any() for x in reads)


@pytest.mark.parametrize("backend", ["k2", "triton"])
@every_rnnt_type
@pytest.mark.parametrize(
    "shape", [dict(S=75, T=5, full=True), dict(S=3, T=6, s_range=1), dict(S=7, T=12, s_range=4)], ids=str
)
def test_bands_of_any_width_are_those_of_torch(backend, rnnt_type, shape):
    """One position, and more than a warp has lanes; the arguments may have any strides."""
    if shape.get("s_range") == 1:
        rnnt_type = "modified"  # the only one with a path
    case = make_case(2, B=2, C=5, rnnt_type=rnnt_type, **shape)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in scores_like(case)]
    found = run(backend, case, *strided)
    torch.testing.assert_close(found, run("torch", case, *scores_like(case)), rtol=1e-9, atol=1e-9)


@every_backend
@every_rnnt_type
def test_same_bits_from_run_to_run(backend, rnnt_type):
    case = make_case(5, B=3, T=40, S=12, s_range=5, rnnt_type=rnnt_type)
    scores = scores_like(case, dtype=torch.float32)
    first = run(backend, case, *scores)
    assert all(torch.equal(a, b) for a, b in zip(run(backend, case, *scores), first))


def test_triton_takes_an_empty_batch():
    backend, device = backend_on("triton")
    none = torch.zeros(0, 4, 2, device=device)
    boundary = torch.zeros(0, 4, dtype=torch.int64, device=device)
    assert backend.pruned_recursion(none, none, none.long(), boundary).shape == (0,)


@every_backend
def test_wrong_rnnt_type_is_named(backend):
    case = make_case(1, rnnt_type="regular")
    case.rnnt_type = "fast"
    assert "regular, modified, constrained" in told(lambda: run(backend, case, *scores_like(case)))

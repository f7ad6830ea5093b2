"""The Triton backend against the specification, the torch backend and k2.

On a GPU the kernels run there, elsewhere in Triton's interpreter (``conftest.py`` turns it on), and
Triton's compiler proves that they would run.
"""

import os
import subprocess
import sys

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, gradients, lattice_cases, make_case

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend, torch_backend
from rnnt_kd.lattice.node_log_probs import node_log_probs

pytest.importorskip("triton", reason="triton is not in this environment")

from rnnt_kd.lattice import triton_backend  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if not triton_backend.supports(DEVICE):
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)

LONG = 2000 if DEVICE.type == "cuda" else 100  # frames; the interpreter needs a hundredth of a second for each

few = settings(max_examples=8)


def pruned(backend, case, log_blank, log_label, delay_penalty=0.0):
    """scores, blank_grad, label_grad; and the gradients of a weighted sum of the scores."""
    device = DEVICE if backend is triton_backend else torch.device("cpu")
    blank, label = (x.detach().to(device).requires_grad_() for x in (log_blank, log_label))
    arguments = case.ranges.to(device), case.boundary.to(device), case.rnnt_type, delay_penalty
    scores, reads = backend.pruned_recursion(blank, label, *arguments, return_grad=True)
    weights = torch.arange(1, len(scores) + 1, device=device)
    grads = torch.autograd.grad((scores * weights).sum(), (blank, label))
    return [x.detach().cpu() for x in (scores, *reads, *grads)]


def posteriors(case, dtype=torch.float64, garbage=float("nan")):
    """Of blank and label on the kept nodes; ``garbage`` on padded ones and where no symbol arc leaves."""
    S = case.symbols.shape[1]
    symbols = torch.nn.functional.pad(case.symbols, (0, 1), value=case.blank)
    labels = symbols.unsqueeze(1).expand(-1, case.ranges.shape[1], S + 1).gather(2, case.ranges)
    log_blank, log_label, _ = node_log_probs(case.logits, labels, case.blank)
    leaves_none = case.is_padding | (case.ranges == case.boundary[:, 2].reshape(-1, 1, 1))
    return log_blank.masked_fill(case.is_padding, garbage).to(dtype), log_label.masked_fill(leaves_none, garbage).to(
        dtype
    )


def whole(backend, px, py, boundary):
    """As ``pruned``, of ``mutual_information_recursion``."""
    device = DEVICE if backend is triton_backend else torch.device("cpu")
    px, py = (x.detach().to(device).requires_grad_() for x in (px, py))
    boundary = None if boundary is None else boundary.to(device)
    scores, reads = backend.mutual_information_recursion(px, py, boundary, return_grad=True)
    weights = torch.arange(1, len(scores) + 1, device=device)
    grads = torch.autograd.grad((scores * weights).sum(), (px, py))
    return [x.detach().cpu() for x in (scores, *reads, *grads)]


def assert_same(found, expected, rtol=1e-9, atol=1e-9):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@few
@given(lattice_cases(max_T=5, max_S=3, max_C=4))
def test_the_score_is_the_sum_over_all_kept_paths(case):
    """In value and gradient, whatever padded nodes hold."""

    def ours(logits):
        case.logits = logits.cpu()
        arguments = case.ranges, case.boundary
        scores_of = [x.to(DEVICE) for x in (*posteriors(case), *arguments)]
        return -triton_backend.pruned_recursion(*scores_of, case.rnnt_type, 0.1).cpu()

    def specified(logits):
        return reference.rnnt_losses_pruned(
            logits, case.transcripts, case.ranges, case.blank, case.frames, case.rnnt_type, 0.1
        )

    logits = case.logits
    (value, (grad,)), (true_value, (true_grad,)) = gradients(ours, logits), gradients(specified, logits)
    assert_same((value, grad), (true_value, true_grad))


@few
@given(lattice_cases(max_T=9, max_S=6), st.sampled_from([0.0, 0.2]))
def test_pruned_recursion_is_that_of_torch(case, delay_penalty):
    found = pruned(triton_backend, case, *posteriors(case), delay_penalty)
    assert_same(found, pruned(torch_backend, case, *posteriors(case, garbage=-3.0), delay_penalty))
    for reads in found[1:]:
        assert not reads[case.is_padding].any()


@few
@given(lattice_cases(max_T=7, max_S=5), st.booleans(), st.integers(0, 1000))
def test_whole_recursion_is_that_of_torch(case, has_boundary, seed):
    """Of any px: symbol arcs after the last blank ("regular", column T_b) count as well."""
    B, S = case.symbols.shape
    T = case.ranges.shape[1]
    generator = torch.Generator().manual_seed(seed)
    px = torch.randn(B, S, T + (case.rnnt_type == "regular"), generator=generator, dtype=torch.float64)
    py = torch.randn(B, S + 1, T, generator=generator, dtype=torch.float64)
    px[torch.rand(px.shape, generator=generator) < 0.1] = float("-inf")
    boundary = case.boundary if has_boundary else None
    assert_same(whole(triton_backend, px, py, boundary), whole(torch_backend, px, py, boundary))


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_both_losses_are_those_of_torch(rnnt_type):
    case = make_case(3, B=3, T=7, S=4, C=5, blank=2, rnnt_type=rnnt_type)

    def smoothed(backend):
        def loss(lm, am):
            arguments = (case.symbols, 2, 0.25, 0.1, case.boundary, rnnt_type, 0.1, "none")
            arguments = [x.to(lm.device) if isinstance(x, torch.Tensor) else x for x in arguments]
            return backend.rnnt_loss_smoothed(lm, am, *arguments)

        return loss

    value, grads = gradients(smoothed(triton_backend), case.lm.to(DEVICE), case.am.to(DEVICE))
    true_value, true_grads = gradients(smoothed(torch_backend), case.lm, case.am)
    assert_same([x.cpu() for x in (value, *grads)], [true_value, *true_grads])


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_gradcheck(rnnt_type):
    case = make_case(3, B=1, T=3, S=2, C=3, s_range=2, rnnt_type=rnnt_type)
    posterior = [x.to(DEVICE).requires_grad_() for x in posteriors(case, garbage=-1.0)]
    assert torch.autograd.gradcheck(
        lambda *x: triton_backend.pruned_recursion(
            *x, case.ranges.to(DEVICE), case.boundary.to(DEVICE), rnnt_type, 0.1
        ),
        posterior,
    )


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("scale", [2.0, 30.0])
def test_float32_on_many_frames(rnnt_type, scale):
    """Scores to 1e-5 relative, occupancies to 1e-4, against float64; sharp posteriors make scores in the thousands."""
    case = make_case(8, B=1, T=LONG, S=LONG // 7, C=4, s_range=5, rnnt_type=rnnt_type, scale=scale)
    exact = pruned(torch_backend, case, *posteriors(case, garbage=-1.0))
    found = pruned(triton_backend, case, *posteriors(case, torch.float32))
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=0)
    for a, b in zip(found[1:], exact[1:]):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_k2_agrees(rnnt_type):
    k2_backend = pytest.importorskip("rnnt_kd.lattice.k2_backend", reason="k2 is not in this environment")
    case = make_case(5, B=3, T=40, S=12, C=6, s_range=5, rnnt_type=rnnt_type)
    expected = pruned(k2_backend, case, *posteriors(case, garbage=-1.0))
    assert_same(pruned(triton_backend, case, *posteriors(case)), expected, rtol=1e-6, atol=1e-6)


def test_wide_bands_use_more_lanes_than_a_warp():
    case = make_case(2, B=2, T=5, S=75, C=5, full=True)
    assert_same(
        pruned(triton_backend, case, *posteriors(case)),
        pruned(torch_backend, case, *posteriors(case, garbage=-1.0)),
    )


def test_one_kept_position():
    case = make_case(4, B=2, T=6, S=3, s_range=1, rnnt_type="modified")
    assert case.ranges.shape[2] == 1
    assert_same(
        pruned(triton_backend, case, *posteriors(case)), pruned(torch_backend, case, *posteriors(case, garbage=-1.0))
    )


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_posteriors(rnnt_type, size):
    case = make_case(2, T=6, S=3, rnnt_type=rnnt_type)
    case.logits = case.logits.sign() * size
    found = pruned(triton_backend, case, *posteriors(case))
    assert_same(found, pruned(torch_backend, case, *posteriors(case, garbage=-1.0)))
    assert all(torch.isfinite(x).all() for x in found)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_no_path_is_minus_infinity_without_gradient_not_nan(rnnt_type):
    case = make_case(0, B=2, T=3, S=2, s_range=3, rnnt_type=rnnt_type, full=True)
    log_blank, log_label = posteriors(case)
    log_label[0, :, 0] = float("-inf")  # the first symbol of utterance 0 cannot be emitted
    scores, *reads = pruned(triton_backend, case, log_blank, log_label)
    assert scores[0] == float("-inf") and torch.isfinite(scores[1])
    assert all(torch.isfinite(x).all() and not x[0].any() for x in reads)


def test_empty_batch_and_no_frames():
    none = torch.zeros(0, 4, 2, device=DEVICE)
    ranges, boundary = none.long(), torch.zeros(0, 4, dtype=torch.int64, device=DEVICE)
    assert triton_backend.pruned_recursion(none, none, ranges, boundary).shape == (0,)
    px, py = torch.zeros(2, 3, 5, device=DEVICE), torch.zeros(2, 4, 4, device=DEVICE)
    boundary = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 0]], device=DEVICE)
    assert_same(whole(triton_backend, px, py, boundary), whole(torch_backend, px.cpu(), py.cpu(), boundary.cpu()))


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_same_bits_every_time(rnnt_type):
    case = make_case(9, B=3, T=20, S=8, rnnt_type=rnnt_type)
    first, second = (pruned(triton_backend, case, *posteriors(case, torch.float32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_arguments_may_have_any_strides():
    case = make_case(6, B=2, T=5, S=3)
    log_blank, log_label = posteriors(case)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (log_blank, log_label)]
    assert_same(pruned(triton_backend, case, *strided), pruned(triton_backend, case, log_blank, log_label))


def test_too_wide_a_lattice_goes_to_torch(monkeypatch):
    case = make_case(2, B=2, T=5, S=4, full=True)
    px, py = torch_backend.get_rnnt_logprobs_pruned(case.logits, *case.arguments)
    monkeypatch.setattr(triton_backend, "WIDEST", 3)
    monkeypatch.setattr(triton_backend, "_walk", None)  # the kernels would not be found
    assert_same(whole(triton_backend, px, py, case.boundary), whole(torch_backend, px, py, case.boundary))
    with pytest.raises(UserError, match="at most 3.*torch backend"):
        pruned(triton_backend, case, *posteriors(case))


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(rnnt_type="fast"), "regular, modified, constrained"),
        (dict(boundary=torch.tensor([[0, 1, 3, 5], [0, 0, 3, 5]])), r"row \[0, 1, 3, 5\]"),
    ],
)
def test_wrong_values_are_named(change, told):
    case = make_case(11, B=2, T=5, S=3)
    arguments = {**dict(boundary=case.boundary, rnnt_type="regular"), **change}
    arguments["boundary"] = arguments["boundary"].to(DEVICE)
    with pytest.raises(UserError, match=told):
        triton_backend.rnnt_loss_pruned(
            case.logits.to(DEVICE), case.symbols.to(DEVICE), case.ranges.to(DEVICE), 0, **arguments
        )
    if "rnnt_type" in change:
        posterior = [x.to(DEVICE) for x in posteriors(case)]
        with pytest.raises(UserError, match=told):
            triton_backend.pruned_recursion(*posterior, case.ranges.to(DEVICE), **arguments)


def test_it_is_chosen_by_name():
    assert get_backend("triton", DEVICE) is triton_backend
    assert not triton_backend.supports(torch.device("meta"))


def test_kernels_compile_for_gpus(root, tmp_path):
    """For an H100, whether or not one is here; no program asks for more shared memory than any GPU has."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.update(PYTHONPATH=str(root / "plugin"), TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, str(root / "tests" / "compile_kernels.py"), "lattice", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = [int(line.split()[2]) for line in done.stdout.splitlines()]
    assert len(shared) == 12 and max(shared) <= 48 * 1024

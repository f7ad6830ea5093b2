"""The Triton kernels of the node scores against plain PyTorch, all nodes at once.

On a GPU they run there, elsewhere in Triton's interpreter (``conftest.py`` turns it on), and Triton's
compiler proves that they would run.  Errors are bounded by those of the naive version, which
builds all logits, in the same dtype; the truth is the naive version in float64.
"""

import logging
import os
import subprocess
import sys

import pytest
import torch
from lattice_cases import gradients, make_case

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.losses import pruned_transducer_loss
from rnnt_kd.losses.kept_nodes import kept_nodes
from rnnt_kd.losses.node_scores import JoinerParts, choose_impl, node_scores, triton_impl

pytest.importorskip("triton", reason="triton is not in this environment")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and not triton_impl.is_interpreted():
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ids = {"ids": lambda x: str(x).replace("torch.", "")}


def make_inputs(N=40, A=12, L=7, C=20, J=24, has_bias=True, blank=0, scale=1.0, seed=0, dtype=torch.float32):
    """(am, lm, weight, bias, labels, am_rows, lm_rows, blank); some labels are blank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).to(DEVICE)

    def integers(high):
        return torch.randint(0, high, (N,), generator=generator).to(DEVICE)

    bias = normal(C) if has_bias else None
    am, lm, weight = normal(A, J), normal(L, J), normal(C, J)
    return [am, lm, weight / J**0.5, bias, integers(C), integers(A).sort().values, integers(L), blank]


def naive(am, lm, weight, bias, labels, am_rows, lm_rows, blank):
    """All logits by autograd, in the inputs' dtype; from there on in float32 at least, as in eager training."""
    hidden = torch.tanh(am[am_rows] + lm[lm_rows])
    logits = torch.nn.functional.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    columns = labels.unsqueeze(1)
    rest = logits.scatter(1, columns, LOG_ZERO).scatter(1, torch.full_like(columns, blank), LOG_ZERO)
    return logits[:, blank], logits.gather(1, columns).squeeze(1), rest.logsumexp(dim=1)


def values_and_gradients(function, inputs, seed=1):
    """Named results, float64: three values and the gradients of a random combination of them."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs[:4]]
    values = function(*leaves, *inputs[4:])
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(value.shape, generator=generator).to(value) for value in values]
    total = sum((value * factor).sum() for value, factor in zip(values, factors))
    there = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad(total, there)
    for grad, leaf in zip(grads, there):
        assert grad.dtype == leaf.dtype
    names = ("blank", "label", "log_rest", "am", "lm", "weight", "bias")
    return {name: x.detach().double().cpu() for name, x in zip(names, (*values, *grads))}


def as_float64(inputs):
    return [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]


def assert_no_worse_than_naive(inputs):
    """Of each result, the largest error is at most twice naive's, plus some rounding in case that naive is lucky.

    That is one rounding of the largest value to 16 bits, or eight to float32.  The interpreter needs
    them: it adds up one after another, and cuts bfloat16 off instead of rounding it.
    """
    exact = values_and_gradients(naive, as_float64(inputs))
    found = values_and_gradients(triton_impl.split_logits, inputs)
    plain = values_and_gradients(naive, inputs)
    rounding = torch.finfo(inputs[0].dtype).eps * (8 if inputs[0].dtype == torch.float32 else 1)
    for name, truth in exact.items():
        if truth.numel() == 0:
            continue
        error, allowed = (found[name] - truth).abs().max(), (plain[name] - truth).abs().max()
        assert error <= 2 * allowed + rounding * truth.abs().max(), f"{name}: error {error:.2e}, naive {allowed:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize(
    "shape",
    [
        dict(N=1, A=1, L=1, C=2, J=1, blank=1),
        dict(N=5, A=3, L=2, C=3, J=5, has_bias=False),
        dict(N=130, A=40, L=9, C=77, J=77, blank=76),
        dict(N=200, A=50, L=30, C=503, J=40, blank=251),
        dict(N=64, A=16, L=7, C=64, J=64, has_bias=False, blank=3),
        dict(N=0, A=2, L=2, C=5, J=3),
    ],
    ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()),
)
def test_value_and_gradient(shape, dtype):
    assert_no_worse_than_naive(make_inputs(**shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("scale", [1e-3, 8.0])
def test_small_and_large_inputs(scale, dtype):
    """tanh near 0, where it keeps its relative precision, and where it is flat."""
    assert_no_worse_than_naive(make_inputs(scale=scale, dtype=dtype))


def test_tanh_has_the_precision_of_float32():
    import triton

    from rnnt_kd.losses.node_scores import triton_kernels

    x = torch.cat((torch.linspace(-12, 12, 4001), torch.logspace(-38, 1, 500), torch.tensor([0.0, 1e4, -1e4])))
    x = torch.nn.functional.pad(x, (0, 16 * triton.cdiv(x.numel(), 16) - x.numel())).reshape(1, -1).to(DEVICE)
    J = x.shape[1]
    row = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    found = torch.empty_like(x)
    triton_kernels.make_hidden[(1, triton.cdiv(J, 128))](x, torch.zeros_like(x), row, row, found, 1, J, J, 16, 128)
    truth = x.double().tanh()
    assert ((found - truth).abs() <= 4 * torch.finfo(torch.float32).eps * truth.abs()).all()


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_any_number_of_nodes_around_the_block_sizes(monkeypatch, offset):
    """Nodes, classes and columns one below, at, and one above a block; several chunks, parts and pieces of a row."""
    sizes = triton_impl._Sizes(16, 16, 16, 4, 2)
    monkeypatch.setattr(triton_impl, "SINGLE", sizes)
    monkeypatch.setattr(triton_impl, "FORWARD_NODES", 80)
    monkeypatch.setattr(triton_impl, "BACKWARD_NODES", 160)  # two parts of the weight's gradient
    assert_no_worse_than_naive(make_inputs(N=320 + offset, A=70, L=6, C=32 + offset, J=16 + offset))


def test_chunks_do_not_change_the_values(monkeypatch):
    inputs = make_inputs(N=100, C=30)
    whole = values_and_gradients(triton_impl.split_logits, inputs)
    monkeypatch.setattr(triton_impl, "FORWARD_NODES", 64)
    monkeypatch.setattr(triton_impl, "BACKWARD_NODES", 64)
    chunks = values_and_gradients(triton_impl.split_logits, inputs)
    for name in whole:
        assert torch.equal(whole[name], chunks[name]) or name in ("am", "lm", "weight", "bias")
        torch.testing.assert_close(whole[name], chunks[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["am_rows", "lm_rows", "none"])
def test_nodes_may_come_in_any_order(order):
    inputs = make_inputs(N=90, A=40, L=25)
    if order != "am_rows":
        rows = inputs[6] if order == "lm_rows" else torch.randperm(90, generator=torch.Generator().manual_seed(1))
        at = rows.argsort().to(DEVICE)
        inputs[4:7] = [x[at] for x in inputs[4:7]]
    assert_no_worse_than_naive(inputs)


def test_rows_without_nodes_are_never_read():
    inputs = make_inputs(N=30, A=80, L=50, seed=3)
    am, lm, am_rows, lm_rows = inputs[0], inputs[1], inputs[5], inputs[6]
    am_free, lm_free = (torch.ones(len(x), dtype=torch.bool, device=DEVICE) for x in (am, lm))
    am_free[am_rows], lm_free[lm_rows] = False, False
    clean = values_and_gradients(triton_impl.split_logits, inputs)
    am[am_free], lm[lm_free] = float("nan"), float("nan")
    poisoned = values_and_gradients(triton_impl.split_logits, inputs)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)
    assert not poisoned["am"][am_free.cpu()].any() and not poisoned["lm"][lm_free.cpu()].any()


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_same_bits_every_time(dtype):
    inputs = make_inputs(N=150, A=40, C=50, dtype=dtype)
    first, second = (values_and_gradients(triton_impl.split_logits, inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_rest_is_log_zero_without_gradient():
    inputs = make_inputs(C=2, blank=1, N=20)
    inputs[4].zero_()  # every label is class 0: nothing is left
    found = values_and_gradients(triton_impl.split_logits, inputs)
    assert (found["log_rest"] == torch.tensor(LOG_ZERO).double()).all()
    assert_no_worse_than_naive(inputs)


def test_extreme_logits_stay_finite():
    inputs = make_inputs(C=40, scale=1.0)
    inputs[2], inputs[3] = inputs[2] * 1e15, inputs[3] * 1e15
    found = values_and_gradients(triton_impl.split_logits, inputs)
    assert all(torch.isfinite(x).all() for x in found.values())
    inputs[3][:] = float("-inf")  # classes may be switched off
    inputs[3][:3] = 0.0
    found = values_and_gradients(triton_impl.split_logits, inputs)
    assert not any(torch.isnan(x).any() for x in found.values())
    inputs[3][:] = -1e34  # less than nothing is nothing
    found = values_and_gradients(triton_impl.split_logits, inputs)
    assert (found["log_rest"] == torch.tensor(LOG_ZERO).double()).all()


@pytest.mark.parametrize("size", [2.0**-20, 2.0**20])
def test_float16_gradients_of_any_size(size):
    """Small ones do not vanish in the block of logits' gradients, large ones do not overflow there."""
    inputs = make_inputs(dtype=torch.float16)
    inputs[2:4] = [x.float() for x in inputs[2:4]]  # their gradients come in float32

    def sized(*arguments):
        return [x * size for x in triton_impl.split_logits(*arguments)]

    one, found = values_and_gradients(triton_impl.split_logits, inputs), values_and_gradients(sized, inputs)
    for name in ("weight", "bias"):
        torch.testing.assert_close(found[name], one[name] * size, rtol=1e-6, atol=0)
    for name in ("am", "lm"):  # these are as near as float16 comes, infinity included
        torch.testing.assert_close(found[name], (one[name] * size).half().double(), rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("needed", range(4))
def test_only_the_gradients_asked_for(needed):
    inputs = make_inputs(N=20)
    everything = values_and_gradients(triton_impl.split_logits, inputs)
    leaves = [x.requires_grad_(i == needed) for i, x in enumerate(inputs[:4])]
    values = triton_impl.split_logits(*leaves, *inputs[4:])
    generator = torch.Generator().manual_seed(1)
    total = sum((v * torch.randn(v.shape, generator=generator).to(v)).sum() for v in values)
    total.backward()
    assert [x.grad is not None for x in leaves] == [i == needed for i in range(4)]
    assert torch.equal(leaves[needed].grad.double().cpu(), everything[("am", "lm", "weight", "bias")[needed]])


def test_mixed_dtypes_as_under_autocast():
    """bfloat16 activations with float32 weights: products in bfloat16, weight gradients in float32."""
    am, lm, weight, bias, *rows = make_inputs(dtype=torch.bfloat16)
    found = values_and_gradients(triton_impl.split_logits, [am, lm, weight.float(), bias.float(), *rows])
    same = values_and_gradients(triton_impl.split_logits, [am, lm, weight, bias, *rows])
    for name in ("blank", "label", "log_rest", "am", "lm"):
        assert torch.equal(found[name], same[name])
    torch.testing.assert_close(found["weight"], same["weight"], rtol=8e-3, atol=1e-6)


def test_never_more_than_a_block(monkeypatch):
    """However many nodes and classes: no tensor is larger than the inputs, their gradients, or a block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                self.bytes = max(self.bytes, x.numel() * x.element_size() if isinstance(x, torch.Tensor) else 0)
            return result

    N, A, L, C, J = 300, 60, 20, 90, 16
    monkeypatch.setattr(triton_impl, "SINGLE", triton_impl._Sizes(16, 16, 16, 4, 2))
    monkeypatch.setattr(triton_impl, "FORWARD_NODES", 64)
    monkeypatch.setattr(triton_impl, "BLOCK_BYTES", 4 * 32 * 96)  # 32 nodes, C rounded up to 96
    inputs = make_inputs(N=N, A=A, L=L, C=C, J=J)
    with Largest() as largest:
        values_and_gradients(triton_impl.split_logits, inputs)
    assert largest.bytes == 4 * 32 * 96 < 4 * N * C


# Through the public functions.


def make_joiner(case, dtype=torch.float32, J=16, C=None, is_pruned=False, **more):
    B, T, s_range = case.ranges.shape
    C, S = C or case.logits.shape[3], case.symbols.shape[1]
    generator = torch.Generator().manual_seed(5)
    shapes = [(B, T, s_range, J)] * 2 if is_pruned else [(B, T, J), (B, S + 1, J)]
    tensors = [torch.randn(*shape, generator=generator).to(dtype).to(DEVICE) for shape in (*shapes, (C, J), (C,))]
    return JoinerParts(*tensors, **more)


def nodes_of(case):
    return kept_nodes(
        case.symbols.to(DEVICE), case.ranges.to(DEVICE), case.blank, case.boundary.to(DEVICE), case.rnnt_type
    )


@pytest.mark.parametrize("is_pruned", [False, True])
def test_node_scores_are_those_of_torch(is_pruned):
    case = make_case(4, B=3, T=7, S=4, C=9, blank=2)
    joiner = make_joiner(case, is_pruned=is_pruned)
    found = node_scores(joiner, nodes_of(case), impl="triton", temperature=1.5)
    expected = node_scores(joiner, nodes_of(case), impl="torch", temperature=1.5)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rnnt_type", ["regular", "constrained"])
def test_the_loss_by_triton_alone_is_that_by_torch(rnnt_type):
    """Both kernels' packages together: scores, recursion, weights of the teacher's term."""
    case = make_case(6, B=3, T=9, S=5, C=11, blank=3, rnnt_type=rnnt_type)
    joiner, teacher = make_joiner(case), make_joiner(case, J=8)
    arguments = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in case.arguments]

    def loss(name):
        def function(*parts):
            options = dict(teacher=teacher, kd_weighting="occupancy", delay_penalty=0.1, reduction="none")
            return pruned_transducer_loss(*parts, *arguments, **options, backend=name, impl=name)

        return function

    (value, grads), (true_value, true_grads) = (gradients(loss(name), *joiner[:4]) for name in ("triton", "torch"))
    for found, expected in zip((value, *grads), (true_value, *true_grads)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_why_not():
    joiner = make_joiner(make_case(1))
    assert triton_impl.why_not(joiner) is None
    assert "float32" in triton_impl.why_not(joiner._replace(am=joiner.am.double()))
    assert "tanh" in triton_impl.why_not(joiner._replace(activation=torch.relu))
    assert "not on a GPU" in triton_impl.why_not(joiner._replace(am=joiner.am.to("meta")))


def test_without_triton_the_reason_is_told(monkeypatch):
    joiner = make_joiner(make_case(1))
    monkeypatch.delattr("rnnt_kd.losses.node_scores.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "rnnt_kd.losses.node_scores.triton_kernels", None)
    assert "triton cannot be imported" in triton_impl.why_not(joiner)
    with pytest.raises(UserError, match="'triton' cannot run: triton cannot be imported"):
        choose_impl("triton", joiner)
    assert choose_impl("auto", joiner).__name__.endswith("torch_impl")


def test_auto_takes_it_on_a_gpu_and_leaves_the_interpreter_alone(caplog):
    caplog.set_level(logging.DEBUG, logger="rnnt_kd.losses.node_scores")
    chosen = choose_impl("auto", make_joiner(make_case(1)))
    name = "triton" if DEVICE.type == "cuda" else "torch"
    assert chosen.__name__.endswith(f"{name}_impl") and f"node scores: {name}" in caplog.text


def test_kernels_compile_for_gpus(root, tmp_path):
    """For an H100, whether or not one is here; two programs share a multiprocessor's memory."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.update(PYTHONPATH=str(root / "plugin"), TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, str(root / "tests" / "compile_kernels.py"), "node_scores", "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = [int(line.split()[2]) for line in done.stdout.splitlines()]
    assert len(shared) == 12 and max(shared) <= 228 * 1024 // 2

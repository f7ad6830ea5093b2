"""What only the Triton kernels of the node scores promise; ``test_node_scores.py`` holds them to what all do.

On a GPU they run there, elsewhere in Triton's interpreter (``conftest.py`` turns it on).
"""

import logging
import sys

import pytest
import torch
from joiner_cases import NOTHING, allowed_error, assert_no_worse, make_joiner_case, place_for, three_ways
from joiner_cases import value_and_gradients as run
from torch.utils._python_dispatch import TorchDispatchMode

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.losses.node_scores import choose_impl, node_scores, triton_impl

pytest.importorskip("triton", reason="triton is not in this environment")


def case_of(seed=4, dtype=torch.float32, **options):
    return place_for(
        "triton", make_joiner_case(seed, **{"B": 2, "T": 6, "S": 4, "C": 20, "J": 24, **options}).to(dtype)
    )


def scored(case, size=1.0):
    nodes = case.nodes
    return lambda joiner: size * torch.stack(node_scores(joiner, nodes, impl="triton")).clamp(min=NOTHING)


def test_tanh_has_the_precision_of_float32():
    import triton

    from rnnt_kd.losses.node_scores import triton_kernels

    device = case_of().student.am.device
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.logspace(-38, 1, 500), torch.tensor([0.0, 1e4, -1e4])))
    x = torch.nn.functional.pad(x, (0, 16 * triton.cdiv(x.numel(), 16) - x.numel())).reshape(1, -1).to(device)
    J = x.shape[1]
    row = torch.zeros(1, dtype=torch.int64, device=device)
    found = torch.empty_like(x)
    triton_kernels.make_hidden[(1, triton.cdiv(J, 128))](x, torch.zeros_like(x), row, row, found, 1, J, J, 16, 128)
    truth = x.double().tanh()
    assert ((found - truth).abs() <= 4 * torch.finfo(torch.float32).eps * truth.abs()).all()


@pytest.mark.parametrize("offset, frames, positions", [(-1, 29, 11), (0, 80, 4), (1, 107, 3)])
def test_any_number_of_nodes_around_the_block_sizes(monkeypatch, offset, frames, positions):
    """Nodes, classes and columns one below, at, and one above a block; several chunks, parts and pieces of a row."""
    monkeypatch.setattr(triton_impl, "SINGLE", triton_impl._Sizes(16, 16, 16, 4, 2))
    monkeypatch.setattr(triton_impl, "FORWARD_NODES", 80)
    monkeypatch.setattr(triton_impl, "BACKWARD_NODES", 160)  # two parts of the weight's gradient
    shape = dict(B=1, T=frames, S=positions - 1, C=32 + offset, J=16 + offset, full=True)
    assert frames * positions == 320 + offset
    runs = [three_ways(case_of(seed, **shape), "triton") for seed in range(3)]
    assert_no_worse(runs, allowed_error("triton", torch.float32))


def test_less_than_log_zero_is_log_zero():
    """Classes may be switched off by -1e34 as well."""
    am, lm, weight, bias, *_ = case_of().student
    bias = torch.full_like(bias, -1e34)
    rows = torch.zeros(5, dtype=torch.int64, device=am.device)
    _, _, log_rest = triton_impl.split_logits(am[0], lm[0], weight, bias, rows + 1, rows, rows, 0)
    assert (log_rest == torch.tensor(LOG_ZERO)).all()


@pytest.mark.parametrize("size", [2.0**-20, 2.0**20])
def test_float16_gradients_of_any_size(size):
    """Small ones do not vanish in the block of logits' gradients, large ones do not overflow there."""
    case = case_of()
    student = case.student._replace(am=case.student.am.half(), lm=case.student.lm.half())
    one, found = run(student, scored(case)), run(student, scored(case, size))
    for a, b in zip(found[3:], one[3:]):  # of weight and bias, in float32
        torch.testing.assert_close(a, b * size, rtol=1e-6, atol=0)
    for a, b in zip(found[1:3], one[1:3]):  # of am and lm: as near as float16 comes, infinity included
        torch.testing.assert_close(a.double(), (b.double() * size).half().double(), rtol=0, atol=2.0**-24)


def test_mixed_dtypes_as_under_autocast():
    """bfloat16 activations with float32 weights: products in bfloat16, weight gradients in float32."""
    case = case_of(dtype=torch.bfloat16)
    am, lm, weight, bias, *_ = case.student
    mixed = case.student._replace(weight=weight.float(), bias=bias.float())
    found, same = run(mixed, scored(case)), run(case.student, scored(case))
    assert all(torch.equal(a, b) for a, b in zip(found[:3], same[:3]))
    assert found[3].dtype == torch.float32
    torch.testing.assert_close(found[3], same[3].float(), rtol=8e-3, atol=1e-6)


def test_never_more_than_a_block(monkeypatch):
    """However many nodes and classes: no tensor is larger than the inputs, their gradients, or a block."""

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            for x in result if isinstance(result, (tuple, list)) else (result,):
                self.bytes = max(self.bytes, x.numel() * x.element_size() if isinstance(x, torch.Tensor) else 0)
            return result

    monkeypatch.setattr(triton_impl, "SINGLE", triton_impl._Sizes(16, 16, 16, 4, 2))
    monkeypatch.setattr(triton_impl, "FORWARD_NODES", 64)
    monkeypatch.setattr(triton_impl, "BLOCK_BYTES", 4 * 32 * 96)  # 32 nodes, C rounded up to 96
    case = case_of(B=1, T=60, S=4, C=90, J=16, full=True)
    with Largest() as largest:
        run(case.student, scored(case))
    assert largest.bytes == 4 * 32 * 96 < 4 * int(case.nodes.node_mask.sum()) * 90


def test_why_not():
    joiner = case_of().student
    assert triton_impl.why_not(joiner) is None
    assert "float32" in triton_impl.why_not(joiner._replace(am=joiner.am.double()))
    assert "tanh" in triton_impl.why_not(joiner._replace(activation=torch.relu))
    assert "not on a GPU" in triton_impl.why_not(joiner._replace(am=joiner.am.to("meta")))


def test_without_triton_the_reason_is_told(monkeypatch):
    joiner = case_of().student
    monkeypatch.delattr("rnnt_kd.losses.node_scores.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "rnnt_kd.losses.node_scores.triton_kernels", None)
    assert "triton cannot be imported" in triton_impl.why_not(joiner)
    with pytest.raises(UserError, match="'triton' cannot run: triton cannot be imported"):
        choose_impl("triton", joiner)
    assert choose_impl("auto", joiner).__name__.endswith("torch_impl")


def test_auto_takes_it_on_a_gpu_and_leaves_the_interpreter_alone(caplog):
    caplog.set_level(logging.DEBUG, logger="rnnt_kd.losses.node_scores")
    joiner = case_of().student
    name = "triton" if joiner.am.device.type == "cuda" else "torch"
    assert choose_impl("auto", joiner).__name__.endswith(f"{name}_impl") and f"node scores: {name}" in caplog.text

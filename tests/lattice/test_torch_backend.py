"""The torch backend against the specification in plain loops."""

import pytest
import reference
import torch
from hypothesis import given
from lattice_cases import RNNT_TYPES, gradients, lattice_cases, make_case

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import torch_backend

CLOSE = dict(rtol=1e-9, atol=1e-9)


def assert_same(found, expected, **tolerance):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, **(tolerance or CLOSE))


@given(lattice_cases(max_T=5, max_S=3, max_C=4))
def test_pruned_loss_is_the_sum_over_all_kept_paths(case):
    def ours(logits):
        return torch_backend.rnnt_loss_pruned(logits, *case.arguments, delay_penalty=0.1, reduction="none")

    def specified(logits):
        return reference.rnnt_losses_pruned(
            logits, case.transcripts, case.ranges, case.blank, case.frames, case.rnnt_type, 0.1
        )

    (value, (grad,)), (true_value, (true_grad,)) = gradients(ours, case.logits), gradients(specified, case.logits)
    assert_same((value, grad), (true_value, true_grad))
    assert not grad[case.is_padding].any()


@given(lattice_cases(max_T=4, max_S=3, max_C=4))
def test_smoothed_loss_is_the_sum_over_all_paths(case):
    def ours(lm, am):
        return torch_backend.rnnt_loss_smoothed(
            lm, am, case.symbols, case.blank, 0.25, 0.1, case.boundary, case.rnnt_type, 0.05, "none"
        )

    def specified(lm, am):
        return reference.rnnt_losses_smoothed(
            lm, am, case.transcripts, case.blank, case.frames, 0.25, 0.1, case.rnnt_type, 0.05
        )

    (value, grads), (true_value, true_grads) = gradients(ours, case.lm, case.am), gradients(specified, case.lm, case.am)
    assert_same((value, *grads), (true_value, *true_grads))


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_gradcheck(rnnt_type):
    case = make_case(3, B=2, T=4, S=3, C=3, rnnt_type=rnnt_type)
    logits = case.logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: torch_backend.rnnt_loss_pruned(x, *case.arguments, reduction="none"), (logits,)
    )


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_returned_occupancies_are_the_gradient(rnnt_type):
    case = make_case(5, B=3, T=6, S=3, rnnt_type=rnnt_type)
    px, py = torch_backend.get_rnnt_logprobs_pruned(case.logits, *case.arguments)
    px.requires_grad_(), py.requires_grad_()
    scores, (px_grad, py_grad) = torch_backend.mutual_information_recursion(px, py, case.boundary, return_grad=True)
    assert_same((px_grad, py_grad), torch.autograd.grad(scores.sum(), (px, py)))
    per_step = px_grad.sum(dim=(1, 2)) + py_grad.sum(dim=(1, 2))
    arcs = case.boundary[:, 3] + (case.boundary[:, 2] if rnnt_type == "regular" else 0)
    torch.testing.assert_close(per_step, arcs.double(), **CLOSE)


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_float32_recursion_is_as_good_as_float64_rounded(rnnt_type):
    case = make_case(1, B=2, T=200, S=40, C=3, s_range=5, rnnt_type=rnnt_type, scale=4.0)
    px, py = torch_backend.get_rnnt_logprobs_pruned(case.logits.float(), *case.arguments)
    single = torch_backend.mutual_information_recursion(px, py, case.boundary, return_grad=True)
    double = torch_backend.mutual_information_recursion(px.double(), py.double(), case.boundary, return_grad=True)
    assert torch.equal(single[0], double[0].float())
    for a, b in zip(single[1], double[1]):
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
@pytest.mark.parametrize("size", [1e3, 1e4, 1e30])
def test_extreme_logits_stay_finite(rnnt_type, size):
    case = make_case(2, T=6, S=3, rnnt_type=rnnt_type)
    logits = case.logits.sign().float() * size

    def loss(x):
        return torch_backend.rnnt_loss_pruned(x, *case.arguments, reduction="none")

    value, (grad,) = gradients(loss, logits)
    assert torch.isfinite(value).all() and torch.isfinite(grad).all()


def test_no_path_is_an_infinite_loss_without_gradient_not_nan():
    case = make_case(0, B=1, T=2, S=2, s_range=3, rnnt_type="modified")
    boundary = torch.tensor([[0, 0, 2, 1]])

    def loss(x):
        return torch_backend.rnnt_loss_pruned(
            x, case.symbols, case.ranges, case.blank, boundary, "modified", reduction="none"
        )

    value, (grad,) = gradients(loss, case.logits)
    assert value.tolist() == [float("inf")] and not grad.any()


@given(lattice_cases(max_T=12, max_S=8))
def test_ranges_hold_a_path_and_keep_to_the_lattice(case):
    B, T, s_range = case.ranges.shape
    starts = case.ranges[:, :, 0]
    assert (case.ranges == starts.unsqueeze(2) + torch.arange(s_range)).all()
    assert not starts[:, 0].any() and (case.ranges <= case.symbols.shape[1]).all()
    steps = starts[:, 1:] - starts[:, :-1]
    assert (steps >= 0).all() and (steps <= (s_range - 1 if case.rnnt_type == "regular" else 1)).all()
    losses = torch_backend.rnnt_loss_pruned(case.logits, *case.arguments, reduction="none")
    if case.rnnt_type != "constrained" or s_range > 1:
        assert torch.isfinite(losses).all()


def test_pruning_picks_the_kept_rows():
    case = make_case(7, B=3, T=6, S=4)
    am, lm = torch_backend.do_rnnt_pruning(case.am, case.lm, case.ranges)
    for b in range(3):
        for t in range(6):
            for k, s in enumerate(case.ranges[b, t].tolist()):
                assert torch.equal(am[b, t, k], case.am[b, t]) and torch.equal(lm[b, t, k], case.lm[b, s])


def test_reductions():
    case = make_case(9, B=3)
    none, mean, total = (
        torch_backend.rnnt_loss_pruned(case.logits, *case.arguments, reduction=r) for r in ("none", "mean", "sum")
    )
    torch.testing.assert_close(mean, none.mean())
    torch.testing.assert_close(total, none.sum())


def test_no_boundary_means_no_padding():
    case = make_case(11, B=2, T=5, S=3)
    whole = torch.tensor([[0, 0, 3, 5]] * 2)
    torch.testing.assert_close(
        torch_backend.rnnt_loss_pruned(case.logits, case.symbols, case.ranges, 0, None, delay_penalty=0.2),
        torch_backend.rnnt_loss_pruned(case.logits, case.symbols, case.ranges, 0, whole, delay_penalty=0.2),
    )


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(rnnt_type="fast"), "regular, modified, constrained"),
        (dict(reduction="max"), "none, mean or sum"),
        (dict(boundary=torch.tensor([[0, 1, 3, 5], [0, 0, 3, 5]])), r"row \[0, 1, 3, 5\]"),
    ],
)
def test_wrong_values_are_named(change, told):
    case = make_case(11, B=2, T=5, S=3)
    arguments = dict(boundary=case.boundary, rnnt_type="regular", reduction="mean")
    with pytest.raises(UserError, match=told):
        torch_backend.rnnt_loss_pruned(case.logits, case.symbols, case.ranges, 0, **{**arguments, **change})


def test_too_small_a_prune_range_is_named():
    case = make_case(11)
    _, (px_grad, py_grad) = torch_backend.rnnt_loss_smoothed(case.lm, case.am, case.symbols, 0, return_grad=True)
    with pytest.raises(UserError, match="at least 2"):
        torch_backend.get_rnnt_prune_ranges(px_grad, py_grad, case.boundary, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
def test_gpu_equals_cpu(rnnt_type):
    from rnnt_kd import rnnt_loss_pruned

    case = make_case(1, B=4, T=60, S=15, C=30, s_range=5, blank=3, rnnt_type=rnnt_type)

    def loss(x):
        device = x.device
        arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in case.arguments]
        options = dict(teacher_logits=case.teacher_logits.to(device), kd_weighting="occupancy", backend="torch")
        return rnnt_loss_pruned(x, *arguments, reduction="none", **options)

    value, (grad,) = gradients(loss, case.logits)
    gpu_value, (gpu_grad,) = gradients(loss, case.logits.cuda())
    assert_same((gpu_value.cpu(), gpu_grad.cpu()), (value, grad))

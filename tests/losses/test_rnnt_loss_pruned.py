"""The public loss: k2's value without a teacher, the sum of two terms with one, and its errors."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lattice_cases import RNNT_TYPES, every_rnnt_type, gradients, lattice_cases, make_case, moved

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import torch_backend
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.losses import rnnt_kd_loss, rnnt_loss_pruned


def test_signature_is_k2s_and_keywords():
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    theirs = list(inspect.signature(k2.rnnt_loss_pruned).parameters.values())
    ours = list(inspect.signature(rnnt_loss_pruned).parameters.values())
    for a, b in zip(theirs, ours):
        assert (a.name, a.default, a.kind) == (b.name, b.default, b.kind)
    more = [p for p in ours[len(theirs) :] if p.name != "use_hat_loss"]  # of k2 from 1.24.4 on, after its reduction
    assert all(p.kind is p.KEYWORD_ONLY for p in more)


@given(lattice_cases(min_S=1, max_T=12, max_S=7, max_C=8, T_not_below_S=True), st.sampled_from([1.0, 1e4]))
def test_without_a_teacher_it_is_k2(case, scale):
    """Also of extreme logits."""
    k2 = pytest.importorskip("k2", reason="k2 is not in this environment")
    expected = gradients(lambda x: k2.rnnt_loss_pruned(x, *case.arguments, reduction="none"), scale * case.logits)
    for backend in ("k2", "torch"):
        options = dict(reduction="none", backend=backend)
        found = gradients(lambda x: rnnt_loss_pruned(x, *case.arguments, **options), scale * case.logits)  # noqa: B023
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@every_rnnt_type
def test_with_a_teacher_it_is_the_sum_of_both_terms(reduction, rnnt_type):
    case = make_case(1, B=3, rnnt_type=rnnt_type, blank=2)
    options = dict(kd_variant="full", kd_weighting="occupancy", kd_temperature=2.0)

    def total(x):
        return rnnt_loss_pruned(
            x, *case.arguments, 0.1, reduction, teacher_logits=case.teacher_logits, kd_scale=0.3, **options
        )

    def parts(x):
        rnnt = rnnt_loss_pruned(x, *case.arguments, 0.1, reduction)
        return rnnt + 0.3 * rnnt_kd_loss(x, case.teacher_logits, *case.arguments, reduction, **options)

    torch.testing.assert_close(gradients(total, case.logits), gradients(parts, case.logits))


def test_kd_scale_zero_is_no_teacher():
    case = make_case(1)
    with_teacher = rnnt_loss_pruned(case.logits, *case.arguments, teacher_logits=case.teacher_logits, kd_scale=0.0)
    assert torch.equal(with_teacher, rnnt_loss_pruned(case.logits, *case.arguments))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.sampled_from(RNNT_TYPES))
def test_error_exactly_where_no_path_exists(seed, T, S, s_range, rnnt_type):
    """Ranges of k2's kind for lengths that may not fit: either a finite loss or the named error."""
    s_range = max(s_range, 2) if rnnt_type == "regular" else s_range
    generator = torch.Generator().manual_seed(seed)
    boundary = torch.tensor([[0, 0, S, T]])
    px_grad = torch.rand(1, S, T + (rnnt_type == "regular"), generator=generator)
    ranges = get_rnnt_prune_ranges(px_grad, torch.rand(1, S + 1, T, generator=generator), boundary, s_range)
    logits = torch.randn(*ranges.shape, 4, generator=generator)
    arguments = (logits, torch.ones(1, S, dtype=torch.int64), ranges, 0, boundary, rnnt_type)
    even = torch.full(ranges.shape, -1.0)
    if torch.isfinite(torch_backend.pruned_recursion(even, even, ranges, boundary, rnnt_type)):
        assert torch.isfinite(rnnt_loss_pruned(*arguments))
    else:
        with pytest.raises(UserError, match="utterance 0 of the batch: no path"):
            rnnt_loss_pruned(*arguments)


@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.sampled_from(RNNT_TYPES))
def test_ranges_of_another_batch_are_an_error_and_no_infinite_loss(data, T, S, s_range, rnnt_type):
    """Any starts; of the regular type exactly where there is no path, of the others only there."""
    s_range = min(s_range, S + 1)
    starts = data.draw(st.lists(st.integers(0, S + 1 - s_range), min_size=T, max_size=T))
    ranges = torch.tensor(starts)[None, :, None] + torch.arange(s_range)
    boundary = torch.tensor([[0, 0, data.draw(st.integers(0, S)), data.draw(st.integers(1, T))]])
    even = torch.full(ranges.shape, -1.0)
    has_path = bool(torch.isfinite(torch_backend.pruned_recursion(even, even, ranges, boundary, rnnt_type)))
    symbols = torch.ones(1, S, dtype=torch.int64)
    try:
        loss = rnnt_loss_pruned(torch.zeros(*ranges.shape, 4), symbols, ranges, 0, boundary, rnnt_type)
    except UserError as error:
        assert "utterance 0 of the batch: no path" in str(error) and not has_path
    else:
        assert has_path == bool(torch.isfinite(loss)) and (has_path or rnnt_type != "regular")


@pytest.mark.parametrize(
    "dtype, has_autocast", [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)], ids=str
)
def test_half_precision_and_autocast_are_computed_in_float32(dtype, has_autocast):
    case = make_case(14, T=20, S=6)
    logits, teacher_logits = case.logits.to(dtype), case.teacher_logits.to(dtype)
    expected = rnnt_loss_pruned(logits.float(), *case.arguments, teacher_logits=teacher_logits.float())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_autocast):
        found = rnnt_loss_pruned(logits, *case.arguments, teacher_logits=teacher_logits)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.gpu
@every_rnnt_type
def test_gpu_equals_cpu(rnnt_type):
    case = make_case(1, B=4, T=60, S=15, C=30, s_range=5, blank=3, rnnt_type=rnnt_type)
    options = dict(reduction="none", kd_weighting="occupancy", backend="torch")

    def loss(x):
        teacher_logits, *arguments = moved((case.teacher_logits, *case.arguments), x.device)
        return rnnt_loss_pruned(x, *arguments, teacher_logits=teacher_logits, **options).cpu()

    (value, grads), (gpu_value, gpu_grads) = gradients(loss, case.logits), gradients(loss, case.logits.cuda())
    torch.testing.assert_close([gpu_value, gpu_grads[0].cpu()], [value, grads[0]], rtol=1e-9, atol=1e-9)

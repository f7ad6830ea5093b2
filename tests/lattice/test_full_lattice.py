"""With every node kept, the pruned loss is the ordinary RNN-T loss, as torchaudio computes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lattice_cases import backend_on, every_backend, gradients, make_case, moved

from rnnt_kd.losses import rnnt_loss_pruned

torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is not in this environment")


@every_backend
@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 5), st.integers(2, 8), st.booleans())
def test_equals_torchaudio(backend, seed, S, more_frames, C, last_is_blank):
    _, device = backend_on(backend)
    blank = C - 1 if last_is_blank else 0
    case = make_case(seed, B=2, T=S + more_frames, S=S, C=C, blank=blank, scale=3.0, full=True)
    assert case.ranges.shape[2] == S + 1

    def ours(logits):
        return rnnt_loss_pruned(
            logits.to(device), *moved(case.arguments, device), reduction="none", backend=backend
        ).cpu()

    def theirs(logits):
        return torchaudio.functional.rnnt_loss(
            logits,
            case.symbols.int(),
            case.boundary[:, 3].int(),
            case.boundary[:, 2].int(),
            blank=case.blank,
            clamp=-1,
            reduction="none",
        )

    logits = case.logits.float()  # torchaudio knows float32 and float16
    (value, (grad,)), (true_value, (true_grad,)) = gradients(ours, logits), gradients(theirs, logits)
    torch.testing.assert_close(value, true_value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, true_grad, rtol=1e-4, atol=2e-5)

"""zipformer's AsrModel on our lattice, held against k2 on the same weights."""

import random
import sys

import pytest
import torch

from rnnt_kd.errors import UserError
from rnnt_kd.losses.as_k2 import as_k2
from rnnt_kd.zipformer import without_k2


def from_encoder_out(model, x, x_lens, y):
    """Losses, and gradients of everything behind the encoder: end to end, its balancers enlarge rounding."""
    with torch.no_grad():
        encoder_out, lens = model.eval().forward_encoder(x, x_lens)
    model.train().zero_grad()
    encoder_out.requires_grad_()
    torch.manual_seed(3)
    random.seed(3)
    simple, pruned = model.forward_transducer(encoder_out, lens, y, lm_scale=0.25)
    (0.5 * simple + pruned).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return simple.item(), pruned.item(), {**found, "encoder_out": encoder_out.grad}


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_values_are_those_of_k2_and_gradients_to_rounding(zipformer_model, asr_model, batch, backend):
    k2 = pytest.importorskip("k2")
    model = asr_model(7)
    zipformer_model.k2 = k2
    theirs = from_encoder_out(model, *batch)
    without_k2(backend)
    assert zipformer_model.k2 is not k2
    ours = from_encoder_out(model, *batch)
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-6)
    assert {"joiner.output_linear.weight", "simple_am_proj.weight", "decoder.embedding.weight"} < set(ours[2])
    for name, gradient in theirs[2].items():
        difference = torch.linalg.vector_norm(ours[2][name] - gradient)
        assert difference <= 1e-5 * torch.linalg.vector_norm(gradient), name


def test_a_step_of_the_whole_model_trains(asr_model, batch):
    without_k2("torch")
    model, (x, x_lens, y) = asr_model(7), batch
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(6):
        simple, pruned, *_ = model(x, x_lens, y)
        optimizer.zero_grad()
        (0.5 * simple + pruned).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(pruned.item())
    assert losses[-1] < losses[0]


def test_an_unknown_backend_is_named():
    with pytest.raises(UserError, match="lattice backend.*tensorflow"):
        as_k2("tensorflow")


def test_without_the_package_one_line_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "zipformer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zipformer", None)
    with pytest.raises(UserError, match="zipformer.*pip install"):
        without_k2("torch")

"""zipformer's AsrModel on our lattice, held against k2 on the same weights.  Skips without the package."""

import importlib
import importlib.util
import random
import sys
import types

import pytest
import torch

from rnnt_kd.errors import UserError
from rnnt_kd.zipformer import without_k2

SIZES = {
    "encoder_dim": "16,24",
    "num_encoder_layers": "1,1",
    "encoder_unmasked_dim": "16,16",
    "downsampling_factor": "1,2",
}
SIZES |= {
    "query_head_dim": "4",
    "pos_head_dim": "4",
    "value_head_dim": "4",
    "num_heads": "2",
    "feedforward_dim": "24,24",
}
SIZES |= {"cnn_module_kernel": "15,15", "pos_dim": 8, "chunk_size": "-1", "left_context_frames": "-1"}
SIZES |= {"vocab_size": 30, "decoder_dim": 16, "joiner_dim": 24}
LABELS = [[3, 4, 5, 6, 7, 5, 9], [8, 9], []]


@pytest.fixture
def zipformer_model(monkeypatch):
    """The real ``zipformer.modules.model``; of a package without its dependencies, that file and what it needs."""
    found = importlib.util.find_spec("zipformer")
    if found is None:
        pytest.skip("the pip package zipformer is not installed: tests/run.sh --env zipformer")
    for name in [name for name in sys.modules if name.split(".")[0] == "zipformer"]:
        monkeypatch.delitem(sys.modules, name)
    if hasattr(torch, "_dynamo"):
        monkeypatch.setattr(torch._dynamo.config, "disable", True)  # it compiles activations, for minutes
    if importlib.util.find_spec("atdataset") is None:
        package, data = types.ModuleType("zipformer"), types.ModuleType("atdataset")
        package.__path__ = found.submodule_search_locations
        data.SpecAugment = data.time_warp = data.fix_random_seed = None
        monkeypatch.setitem(sys.modules, "zipformer", package)
        monkeypatch.setitem(sys.modules, "atdataset", data)
    before = set(sys.modules)
    yield importlib.import_module("zipformer.modules.model")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "zipformer":
            del sys.modules[name]


def seeded(module):
    torch.manual_seed(7)
    random.seed(7)  # its balancers and whiteners draw from here
    model = module.AsrModel(**SIZES)
    return model, torch.randn(3, 110, 80), torch.tensor([110, 100, 77])


def from_encoder_out(model, x, x_lens):
    """Losses, and gradients of everything behind the encoder: end to end, its balancers enlarge rounding."""
    with torch.no_grad():
        encoder_out, lens = model.eval().forward_encoder(x, x_lens)
    model.train().zero_grad()
    encoder_out.requires_grad_()
    torch.manual_seed(3)
    random.seed(3)
    simple, pruned = model.forward_transducer(encoder_out, lens, LABELS, lm_scale=0.25)
    (0.5 * simple + pruned).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return simple.item(), pruned.item(), {**found, "encoder_out": encoder_out.grad}


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_values_are_those_of_k2_and_gradients_to_rounding(zipformer_model, backend):
    k2 = pytest.importorskip("k2")
    model, x, x_lens = seeded(zipformer_model)
    zipformer_model.k2 = k2
    theirs = from_encoder_out(model, x, x_lens)
    without_k2(backend)
    assert zipformer_model.k2 is not k2
    ours = from_encoder_out(model, x, x_lens)
    assert ours[:2] == pytest.approx(theirs[:2], rel=1e-7)
    assert {"joiner.output_linear.weight", "simple_am_proj.weight", "decoder.embedding.weight"} < set(ours[2])
    for name, gradient in theirs[2].items():
        difference = torch.linalg.vector_norm(ours[2][name] - gradient)
        assert difference <= 1e-5 * torch.linalg.vector_norm(gradient), name


def test_a_step_of_the_whole_model_trains(zipformer_model):
    without_k2("torch")
    model, x, x_lens = seeded(zipformer_model)
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(6):
        simple, pruned, *_ = model(x, x_lens, [list(labels) for labels in LABELS])
        optimizer.zero_grad()
        (0.5 * simple + pruned).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(pruned.item())
    assert losses[-1] < losses[0]


def test_an_unknown_backend_is_named():
    with pytest.raises(UserError, match="lattice backend.*tensorflow"):
        without_k2("tensorflow")


def test_without_the_package_one_line_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "zipformer"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zipformer", None)
    with pytest.raises(UserError, match="zipformer.*pip install"):
        without_k2("torch")

"""The real package zipformer at toy size.  Skips without it."""

import importlib
import importlib.util
import random
import sys
import types

import pytest
import torch

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


@pytest.fixture
def zipformer_model(monkeypatch):
    """The real ``zipformer.modules.model``; of a package without its dependencies, that file and what it needs."""
    found = importlib.util.find_spec("zipformer")
    if found is None:
        pytest.skip("the pip package zipformer is not installed: tests/run.sh --env zipformer")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # it compiles activations, for minutes
    if importlib.util.find_spec("atdataset") is not None:
        module = importlib.import_module("zipformer.modules.model")
        monkeypatch.setattr(module, "k2", module.k2)
        yield module
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "zipformer"]:
        monkeypatch.delitem(sys.modules, name)
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


@pytest.fixture
def asr_model(zipformer_model):
    """make(seed, **other sizes) -> AsrModel."""

    def make(seed, **sizes):
        torch.manual_seed(seed)
        random.seed(seed)  # its balancers and whiteners draw from here
        return zipformer_model.AsrModel(**{**SIZES, **sizes})

    return make


@pytest.fixture
def batch():
    """x (3, 110, 80), x_lens, y."""
    x = torch.randn(3, 110, 80, generator=torch.Generator().manual_seed(5))
    return x, torch.tensor([110, 100, 77]), [[3, 4, 5, 6, 7, 5, 9], [8, 9], []]

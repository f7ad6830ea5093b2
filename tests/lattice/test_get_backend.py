"""Choosing a backend, with and without k2."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend


def test_a_backend_is_itself_and_an_unknown_name_lists_the_right_ones():
    assert get_backend(get_backend("torch")) is get_backend("torch")
    with pytest.raises(UserError, match="auto, k2, torch, triton"):
        get_backend("k3")


def test_a_backend_that_cannot_compute_there_is_an_error(monkeypatch):
    """A k2 without CUDA, asked for by name; Triton on a CPU where nothing interprets its kernels."""
    for name in ("k2", "triton"):
        monkeypatch.setitem(sys.modules, f"rnnt_kd.lattice.{name}_backend", None)  # importing it fails
        with pytest.raises(UserError, match=f"'{name}' cannot be imported.*use the torch backend"):
            get_backend(name)
    monkeypatch.undo()
    for name, where, device in (("k2", "k2.with_cuda", "cuda"), ("triton", "IS_INTERPRETED", "cpu")):
        if importlib.util.find_spec(name) is None:
            continue
        backend = get_backend(name)
        assert not backend.supports(torch.device("meta"))
        monkeypatch.setattr(f"{backend.__name__}.{where}", False)
        with pytest.raises(UserError, match=f"cannot compute on {device}"):
            get_backend(name, torch.device(device))


def test_auto_on_a_gpu_is_k2_then_triton_then_torch(monkeypatch):
    """With stand-ins, so that it is held wherever the tests run."""

    everywhere = SimpleNamespace(supports=lambda device: True)
    on_cpu = SimpleNamespace(supports=lambda device: device.type == "cpu")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    k2, triton = "rnnt_kd.lattice.k2_backend", "rnnt_kd.lattice.triton_backend"
    monkeypatch.setitem(sys.modules, triton, everywhere)
    monkeypatch.setitem(sys.modules, k2, everywhere)
    assert get_backend("auto", gpu) is sys.modules[k2]
    monkeypatch.setitem(sys.modules, k2, on_cpu)
    assert get_backend("auto", gpu) is sys.modules[triton]
    assert get_backend("auto", cpu) is get_backend("auto") is sys.modules[k2]
    monkeypatch.setitem(sys.modules, k2, None)
    assert get_backend("auto", gpu) is sys.modules[triton]
    assert get_backend("auto", cpu) is get_backend("auto") is get_backend("torch")  # interpreted kernels are slow
    monkeypatch.setitem(sys.modules, triton, None)
    assert get_backend("auto", gpu) is get_backend("torch")

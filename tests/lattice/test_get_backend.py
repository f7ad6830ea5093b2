"""Choosing a backend, with and without k2."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["auto", "torch", "k2", "triton"])
def test_every_backend_has_every_function(name):
    if name in ("k2", "triton"):
        pytest.importorskip(name, reason=f"{name} is not in this environment")
    module = get_backend(name)
    assert all(callable(getattr(module, name)) for name in ("recursion", "pruned_recursion", "supports"))
    assert get_backend(module) is module


def test_unknown_name_lists_the_right_ones():
    with pytest.raises(UserError, match="auto, k2, torch, triton"):
        get_backend("k3")


def test_a_backend_that_cannot_compute_there_is_an_error(monkeypatch):
    """A k2 without CUDA, asked for by name; Triton on a CPU where nothing interprets its kernels."""
    monkeypatch.setitem(sys.modules, "rnnt_kd.lattice.triton_backend", None)  # importing it fails
    with pytest.raises(UserError, match="'triton' cannot be imported"):
        get_backend("triton")
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


WITHOUT_K2 = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("k2", "_k2", "torchaudio"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())

import torch
from lattice_cases import make_case
from rnnt_kd import rnnt_loss_pruned
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend

backend = get_backend("auto")
print(backend.__name__)
try:
    get_backend("k2")
except UserError as error:
    print(error)
case = make_case(1)
logits = case.logits.requires_grad_()
loss = rnnt_loss_pruned(
    logits, *case.arguments, teacher_logits=case.teacher_logits, kd_variant="collapsed", kd_weighting="occupancy"
)
loss.backward()
assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
print(f"{loss.item():.12f}")
"""


def test_everything_works_with_k2_hidden():
    """In a fresh process, as on a machine without k2; the value is that of this process."""
    from lattice_cases import make_case

    from rnnt_kd import rnnt_loss_pruned

    path = os.pathsep.join([str(ROOT / "plugin"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_K2], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name, error, value = done.stdout.splitlines()
    assert name == "rnnt_kd.lattice.torch_backend"
    assert "k2" in error and "use the torch backend" in error
    case = make_case(1)
    here = rnnt_loss_pruned(case.logits, *case.arguments, teacher_logits=case.teacher_logits, kd_weighting="occupancy")
    assert float(value) == pytest.approx(here.item(), rel=1e-9)

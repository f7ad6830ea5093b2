"""The transducer lattice: one set of functions, several backends.

A backend is a module ``<name>_backend.py`` of this package.  Its functions have
k2's names, argument order and meaning:

    rnnt_loss_smoothed           loss of the additive joiner, and the arc occupancies
    get_rnnt_prune_ranges        arc occupancies -> ranges
    do_rnnt_pruning              encoder and predictor outputs -> the kept nodes
    get_rnnt_logprobs_pruned     joiner logits on the kept nodes -> px, py
    mutual_information_recursion px, py -> log-probability of all paths (and arc occupancies)
    rnnt_loss_pruned             joiner logits on the kept nodes -> loss
    pruned_recursion             posteriors on the kept nodes -> log-probability of all paths (and their use)
    supports(device)             can this installation compute on that device?

A new backend brings its recursion and ``supports``; it takes the rest from
``arc_log_probs``, ``prune_ranges``, ``pruned_recursion`` and ``rnnt_losses``, as ``k2_backend`` does.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import List, Optional

import torch

from rnnt_kd.errors import UserError


def available_backends() -> List[str]:
    """Names of the backends of this package, installed or not: ["k2", "torch", "triton"]."""
    return sorted(path.name[: -len("_backend.py")] for path in Path(__file__).parent.glob("*_backend.py"))


def get_backend(name: str = "auto", device: Optional[torch.device] = None) -> ModuleType:
    """The backend called ``name``; ``auto`` is k2 where it works, else triton on a GPU, else torch.

    Args:
      name:    "auto" or one of ``available_backends()``.
      device:  where the tensors live.  ``auto`` passes over a k2 that was built
               without CUDA when they live on a GPU; a backend asked for by name
               that cannot compute there is an error.  None: the CPU.

    Raises:
      UserError: no such backend, or it is not installed, or not for ``device``.
    """
    if name == "auto":
        is_gpu = device is not None and device.type == "cuda"  # elsewhere Triton only interprets its kernels
        for candidate in ("k2", "triton") if is_gpu else ("k2",):
            try:
                module = importlib.import_module(f"rnnt_kd.lattice.{candidate}_backend")
            except (ImportError, OSError):  # OSError: a k2 built for another torch or CUDA
                continue
            if device is None or module.supports(device):
                return module
        return importlib.import_module("rnnt_kd.lattice.torch_backend")

    if name not in available_backends():
        right_ones = ", ".join(["auto"] + available_backends())
        raise UserError("lattice backend", f"there is no backend {name!r}", f"one of: {right_ones}")
    try:
        module = importlib.import_module(f"rnnt_kd.lattice.{name}_backend")
    except (ImportError, OSError) as error:
        raise UserError(
            "lattice backend",
            f"{name!r} cannot be imported ({error})",
            "a working installation",
            "use the torch backend, which needs nothing but PyTorch",
        ) from error
    if device is not None and not module.supports(device):
        raise UserError(
            "lattice backend",
            f"the installed {name!r} cannot compute on {device}",
            "a build for that device",
            "use the torch backend, which runs on any device",
        )
    return module

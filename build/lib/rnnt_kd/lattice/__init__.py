"""The transducer lattice: one contract, several backends.

A backend is a module ``<name>_backend.py`` of this package with three functions:

    recursion(px, py, boundary, return_grad)   log-probability of all paths (and how often each arc is used),
                                               as ``k2.mutual_information_recursion``
    pruned_recursion(log_blank, log_label, ranges, boundary, rnnt_type, delay_penalty, return_grad)
                                               the same on the kept nodes alone, see ``pruned_recursion.py``
    supports(device)                           can this installation compute on that device?

``pruned_recursion_with(recursion)`` makes the second from the first, as ``k2_backend`` does.  What is the same
for all backends are plain functions: ``rnnt_loss_smoothed``, ``get_rnnt_prune_ranges``, ``do_rnnt_pruning``.
"""

import importlib
from types import ModuleType
from typing import Optional, Union

import torch

from rnnt_kd import choices
from rnnt_kd.errors import UserError


def get_backend(name: Union[str, ModuleType] = "auto", device: Optional[torch.device] = None) -> ModuleType:
    """The backend called ``name``; ``auto`` is k2 where it works, else triton on a GPU, else torch.

    Args:
      name:    "auto", a backend's name, or a backend, which comes back as it is.
      device:  where the tensors live.  ``auto`` passes over a k2 that was built
               without CUDA when they live on a GPU; a backend asked for by name
               that cannot compute there is an error.  None: the CPU.

    Raises:
      UserError: no such backend, or it is not installed, or not for ``device``.
    """
    if isinstance(name, ModuleType):
        return name
    if name == "auto":
        is_gpu = device is not None and device.type == "cuda"  # elsewhere Triton only interprets its kernels
        for candidate in ("k2", "triton") if is_gpu else ("k2",):
            try:
                module = _import(candidate)
            except (ImportError, OSError):  # OSError: a k2 built for another torch or CUDA
                continue
            if device is None or module.supports(device):
                return module
        return _import("torch")

    choices.check(name, ["auto", *choices.names(__name__, "_backend")], "lattice backend")
    try:
        module = _import(name)
    except (ImportError, OSError) as error:
        problem, expected = f"{name!r} cannot be imported ({error})", "a working installation"
        step = "use the torch backend, which needs nothing but PyTorch"
        raise UserError("lattice backend", problem, expected, step) from error
    if device is not None and not module.supports(device):
        problem, expected = f"the installed {name!r} cannot compute on {device}", "a build for that device"
        raise UserError("lattice backend", problem, expected, "use the torch backend, which runs on any device")
    return module


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}_backend")

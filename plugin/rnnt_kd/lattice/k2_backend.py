"""The lattice by k2: the only file that knows it.

Made for k2 1.23.4, whose names, arguments and results every backend follows.  k2
refuses batches without symbols or with fewer frames than symbols (S = 0, T < S) in
all but the recursion itself; such a batch goes to the torch backend, so that both
backends accept the same input and give the same result.
"""

from typing import Callable

import k2
import torch
from k2 import do_rnnt_pruning, mutual_information_recursion  # noqa: F401

from rnnt_kd.lattice import torch_backend


def supports(device: torch.device) -> bool:
    """CPU, and CUDA where k2 was built with it."""
    return device.type == "cpu" or (device.type == "cuda" and bool(k2.with_cuda))


def rnnt_loss_smoothed(lm, am, symbols, *args, **kwargs):
    """See ``torch_backend.rnnt_loss_smoothed``: same arguments, same result."""
    return _choose("rnnt_loss_smoothed", am.shape[1], symbols.shape[1])(lm, am, symbols, *args, **kwargs)


def get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range):
    """See ``torch_backend.get_rnnt_prune_ranges``: same arguments, same result."""
    choice = _choose("get_rnnt_prune_ranges", py_grad.shape[2], px_grad.shape[1])
    return choice(px_grad, py_grad, boundary, s_range)


def get_rnnt_logprobs_pruned(logits, symbols, *args, **kwargs):
    """See ``torch_backend.get_rnnt_logprobs_pruned``: same arguments, same result."""
    return _choose("get_rnnt_logprobs_pruned", logits.shape[1], symbols.shape[1])(logits, symbols, *args, **kwargs)


def rnnt_loss_pruned(logits, symbols, *args, **kwargs):
    """See ``torch_backend.rnnt_loss_pruned``: same arguments, same result."""
    return _choose("rnnt_loss_pruned", logits.shape[1], symbols.shape[1])(logits, symbols, *args, **kwargs)


def _choose(name: str, T: int, S: int) -> Callable:
    return getattr(k2 if T >= S >= 1 else torch_backend, name)

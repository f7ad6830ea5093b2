"""The losses run in float32 at least, whatever the model runs in."""

import contextlib

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; others stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor):
    """A context in which autocast leaves operations on the device of ``x`` alone."""
    if x.device.type not in ("cpu", "cuda"):
        return contextlib.nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)

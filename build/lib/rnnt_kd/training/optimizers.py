"""Optimizers.  A function here is a value of ``training.optimizer``; it is called as ``adamw`` is.

The loop sets the learning rate of every group before each step, and saves whatever tensors the optimizer keeps
for a parameter, by the parameter's name.
"""

import inspect
from typing import Any, Dict, List

import torch

from rnnt_kd.config import TrainingConfig


def adamw(groups: List[Dict], config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over ``groups`` of parameters on ``device``, each with its own ``weight_decay``.

    The fused kernel is used where this torch has one for the device, else the
    multi-tensor one.  Mixed float16 keeps the multi-tensor one: Fabric's gradient
    scaler must see the gradients before they are clipped.
    """
    arguments: Dict[str, Any] = dict(lr=config.learning_rate, betas=(config.betas[0], config.betas[1]), eps=1e-8)
    if config.precision != "16-mixed" and _has_fused(device.type):
        return torch.optim.AdamW(groups, fused=True, **arguments)
    return torch.optim.AdamW(groups, foreach=True, **arguments)


def _has_fused(device: str) -> bool:
    if "fused" not in inspect.signature(torch.optim.AdamW.__init__).parameters:
        return False
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return device == "cuda" and release >= (2, 0) or device == "cpu" and release >= (2, 4)

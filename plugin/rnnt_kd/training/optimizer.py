"""AdamW and its learning rate: linear warm-up to the peak, then cosine decay.

The learning rate is a pure function of the step, so there is no scheduler state to
save: a resumed run asks for the same step and gets the same number.
"""

import inspect
import math
import re
from typing import Dict, List

import torch
from torch import nn

from rnnt_kd.config import TrainingConfig
from rnnt_kd.errors import UserError

NO_DECAY = re.compile(r"norm|bias|embedding")


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """Learning rate of update number ``step`` (from 0).

    Rises linearly and reaches ``peak`` at step ``warmup_steps - 1``, then falls as half
    a cosine to ``final_fraction * peak`` at ``total_steps - 1``; it stays there afterwards.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_fraction + (1.0 - final_fraction) * cosine)


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained; norms, biases and embeddings do not decay.

    The fused kernel is used where this torch has one for the device, else the
    multi-tensor one.  Mixed float16 keeps the multi-tensor one: Fabric's gradient
    scaler must see the gradients before they are clipped.
    """
    groups = parameter_groups(model, config.weight_decay)
    arguments = dict(lr=config.learning_rate, betas=(config.betas[0], config.betas[1]), eps=1e-8)
    device = next(model.parameters()).device.type
    if config.precision != "16-mixed" and _has_fused(device):
        return torch.optim.AdamW(groups, fused=True, **arguments)
    return torch.optim.AdamW(groups, foreach=True, **arguments)


def parameter_groups(model: nn.Module, weight_decay: float) -> List[Dict]:
    """Two groups: matrices and kernels with ``weight_decay``, everything else without."""
    decay, keep = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (keep if parameter.ndim < 2 or NO_DECAY.search(name) else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Dict[str, torch.Tensor]:
    """AdamW's state as ``{"<parameter name>/<exp_avg|exp_avg_sq|step>": tensor}``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Dict[str, torch.Tensor], where: object, next_step: str
) -> None:
    """Put back what ``optimizer_tensors`` gave.

    Raises:
      UserError: naming ``where``; a tensor for a parameter that this model does not have.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    position = {name: index for index, name in enumerate(order)}
    state: Dict[int, Dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        if name not in position:
            raise UserError(
                where, f"tensor '{key}' is not of this model", "the state of this model's optimizer", next_step
            )
        state.setdefault(position[name], {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _has_fused(device: str) -> bool:
    if "fused" not in inspect.signature(torch.optim.AdamW.__init__).parameters:
        return False
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return device == "cuda" and release >= (2, 0) or device == "cpu" and release >= (2, 4)

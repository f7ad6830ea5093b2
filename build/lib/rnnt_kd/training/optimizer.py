"""What is optimized, and how, and an optimizer's state on its way to a file and back."""

import re
from typing import Dict, List

import torch
from torch import nn

from rnnt_kd import choices
from rnnt_kd.config import TrainingConfig
from rnnt_kd.errors import UserError
from rnnt_kd.training import optimizers

_DTYPES = {float: torch.float64}  # torch would make float32 of a number
NO_DECAY = re.compile(r"norm|bias|embedding")


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """``config.optimizer`` over the parameters that are trained; norms, biases and embeddings do not decay.

    Raises:
      UserError: an unknown name; it lists the right ones.
    """
    make = choices.function(optimizers, config.optimizer, "training.optimizer")
    return make(parameter_groups(model, config.weight_decay), config, next(model.parameters()).device)


def parameter_groups(model: nn.Module, weight_decay: float) -> List[Dict]:
    """Two groups: matrices and kernels with ``weight_decay``, everything else without."""
    decay: List[nn.Parameter] = []
    keep: List[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (keep if parameter.ndim < 2 or NO_DECAY.search(name) else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Dict[str, torch.Tensor]:
    """The optimizer's state as ``{"<parameter name>/<key>": tensor}``; of AdamW: exp_avg, exp_avg_sq, step.

    A number becomes a 0-dim tensor, float64 or int64; what is None is not there.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value, dtype=getattr(value, "dtype", _DTYPES.get(type(value))))
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
        if value is not None
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

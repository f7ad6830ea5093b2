"""Exponential moving average of a model's weights while it trains (Polyak & Juditsky 1992; icefall and NeMo have it).

    average <- average + (1 - d) (weights - average),   d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...

so that the first weights do not weigh for ever.  While the masks of a sparse student still move, the average is the
weights: it begins anew with the last change, and what the masks drop stays exactly 0.
"""

from typing import Dict

import torch
from torch import Tensor, nn

PREFIX = "moving_average."
UPDATES = f"{PREFIX}/updates"  # no parameter has such a name


class MovingAverage:
    """Of ``model``'s trained parameters, in their own types; ``decay`` in [0, 1)."""

    def __init__(self, model: nn.Module, decay: float):
        self._weights = dict(model.named_parameters())
        self._decay = decay
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """From the present weights."""
        self.updates = 0
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, average in self._average.items():
            average.lerp_(self._weights[name].detach(), 1.0 - decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for name, average in self._average.items():
            self._weights[name].copy_(average)

    def tensors(self) -> Dict[str, Tensor]:
        """For a checkpoint."""
        named = {PREFIX + name: average for name, average in self._average.items()}
        return {**named, UPDATES: torch.tensor(self.updates)}

    def load(self, tensors: Dict[str, Tensor]) -> None:
        """What ``tensors`` gave."""
        self.updates = int(tensors[UPDATES])
        for name, average in self._average.items():
            average.copy_(tensors[PREFIX + name])

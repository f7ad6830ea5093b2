"""The joiner: encoder and predictor outputs, each projected once, added, squashed, mapped to labels.

The projections are applied per frame and per label *before* lattice pruning, so the costly
part on the (N, T, s_range) nodes is one addition, one tanh and ``output_linear``.
"""

import torch
from torch import Tensor, nn

from rnnt_kd.models.interfaces import UnitPlaces


class TanhJoiner(nn.Module):
    """``output_linear(tanh(am + lm))`` on projected inputs.

    Args:
      encoder_dim, predictor_dim: inputs of ``encoder_proj`` and ``predictor_proj``.
      joiner_dim:                 J, output of both.
      vocab_size:                 C.
    """

    activation = staticmethod(torch.tanh)

    def __init__(self, encoder_dim: int, predictor_dim: int, joiner_dim: int, vocab_size: int):
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.predictor_proj = nn.Linear(predictor_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)
        nn.init.normal_(self.output_linear.weight, std=1.5 * joiner_dim**-0.5)  # wide at once: see transducer._head
        nn.init.zeros_(self.output_linear.bias)

    def forward(self, am: Tensor, lm: Tensor) -> Tensor:
        """Raw logits (..., C) of two projected tensors (..., J) that broadcast against each other."""
        return self.output_linear(self.activation(am + lm))

    def units(self) -> UnitPlaces:
        each = torch.arange(self.output_linear.in_features).unsqueeze(1)
        maps = ("encoder_proj", "predictor_proj")
        into = [(f"{name}.{kind}", 0, each) for name in maps for kind in ("weight", "bias")]
        return {"joiner": [*into, ("output_linear.weight", 1, each)]}

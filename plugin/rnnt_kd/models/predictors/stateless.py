"""The label network: stateless, it sees the last ``context_size`` labels only (Ghodsi et al., ICASSP 2020).

Embeddings of the context are concatenated, mapped by one matrix and rectified; that is the
one-dimensional convolution over labels of icefall's stateless decoder.  A label below zero has
a zero embedding: -1 fills the context before the start, in training, decoding and export alike.
"""

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnnt_kd.models.interfaces import UnitPlaces


class StatelessPredictor(nn.Module):
    """Args:
      vocab_size:   C, labels with blank.
      dim:          of embedding and output.
      context_size: labels seen, at least 1.
      blank_id:     last label of the start context ``[-1, ..., -1, blank_id]``.
      dropout:      share of the labels that are "no label" in training: it knows the training texts by heart, else.

    Attributes: ``output_dim``, ``context_size``, ``blank_id``.
    """

    def __init__(self, vocab_size: int, dim: int, context_size: int = 2, blank_id: int = 0, dropout: float = 0.0):
        super().__init__()
        assert context_size >= 1, context_size
        self.vocab_size, self.context_size, self.blank_id = vocab_size, context_size, blank_id
        self.output_dim, self.dropout = dim, dropout
        self.embedding = nn.Embedding(vocab_size, dim)
        self.context_proj = nn.Linear(context_size * dim, dim)
        nn.init.normal_(self.context_proj.weight, std=(2.0 / (context_size * dim)) ** 0.5)
        nn.init.zeros_(self.context_proj.bias)

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Predictor output for every position of ``y``.

        Args:
          y:        (N, U) int64, labels < C; below zero means "no label".
          need_pad: True: the output at u sees y[u - context_size + 1 .. u], nothing before y[0].
                    False: y carries its left context, U >= context_size.
        Returns:
          (N, U, dim), or (N, U - context_size + 1, dim) without padding.
        """
        if self.training and self.dropout > 0:
            y = y.masked_fill(torch.rand(y.shape, device=y.device) < self.dropout, -1)
        embedded = self.embedding(y.clamp(min=0)) * (y >= 0).to(self.embedding.weight.dtype).unsqueeze(2)
        if need_pad:
            embedded = F.pad(embedded, (0, 0, self.context_size - 1, 0))
        length = embedded.size(1) - self.context_size + 1
        context = torch.cat([embedded[:, i : i + length] for i in range(self.context_size)], dim=2)
        return F.relu(self.context_proj(context))

    def tabulated(self) -> Callable[[Tensor], Tensor]:
        """The same function for searches, which ask for one context after the other: (n, context_size) int64 labels
        -> (n, dim).  What the matrix makes of each label at each place is worked out once, here; the outputs
        differ from those of ``forward`` by rounding.
        """
        L, C, weight = self.context_size, self.vocab_size, self.context_proj.weight
        tables = torch.einsum("cd,old->lco", self.embedding.weight, weight.view(self.output_dim, L, -1))
        tables = F.pad(tables, (0, 0, 0, 1))  # of "no label", the last row of each: zero
        tables[-1] += self.context_proj.bias
        rows, places = tables.flatten(0, 1), torch.arange(L, device=weight.device) * (C + 1)

        def predict(contexts: Tensor) -> Tensor:
            return F.relu(F.embedding(torch.where(contexts < 0, C, contexts) + places, rows).sum(1))

        return predict

    def units(self) -> UnitPlaces:
        """Dimensions, of the embedding and of the output alike; the transducer adds who sees the output."""
        each = torch.arange(self.output_dim).unsqueeze(1)
        context = torch.cat([each + place * self.output_dim for place in range(self.context_size)], dim=1)
        into = [("context_proj.weight", 1, context), ("context_proj.weight", 0, each), ("context_proj.bias", 0, each)]
        return {"predictor": [("embedding.weight", 1, each), *into]}

    def start_context(self) -> list:
        """Labels before the first one: ``[-1, blank_id]`` for a context of 2, what sherpa-onnx feeds."""
        return [-1] * (self.context_size - 1) + [self.blank_id]

"""The transducer: encoder, predictor, joiner and the heads that only training uses.  No loss inside.

Letters: N utterances, T frames of features, T' encoder frames, S labels, D encoder dimension,
P predictor dimension, C labels with blank.
"""

from typing import Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.models.interfaces import Encoder, Joiner, Predictor


class Transducer(nn.Module):
    """Args:
      encoder, predictor, joiner:  modules with what ``interfaces.py`` names.
      vocab_size: C.
      blank_id:   the label that emits nothing.
      ctc_head:   whether to have ``ctc_output``.

    Heads (all raw logits): ``simple_am_proj`` D -> C and ``simple_lm_proj`` P -> C, the additive
    joiner that finds the pruning ranges (arXiv 2206.13236); ``ctc_output`` D -> C, or None.
    """

    encoder: Encoder
    predictor: Predictor
    joiner: Joiner

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        joiner: Joiner,
        vocab_size: int,
        blank_id: int = 0,
        ctc_head: bool = True,
    ):
        super().__init__()
        assert 0 <= blank_id < vocab_size, (blank_id, vocab_size)
        self.vocab_size, self.blank_id = vocab_size, blank_id
        self.encoder, self.predictor, self.joiner = encoder, predictor, joiner
        self.simple_am_proj = _head(encoder.output_dim, vocab_size)
        self.simple_lm_proj = _head(predictor.output_dim, vocab_size)
        self.ctc_output = _head(encoder.output_dim, vocab_size) if ctc_head else None

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """x (N, T, F) float32, x_lens (N,) int64 -> encoder_out (N, T', D), encoder_out_lens (N,) int64."""
        return self.encoder(x, x_lens)

    def predict(self, y: Tensor) -> Tensor:
        """Predictor outputs before each label and after the last.

        Args:
          y: (N, S) int64 labels without start symbol, padded with any label or a negative number; S may be 0.
        Returns:
          (N, S + 1, P); row s has seen y[:, :s] only.
        """
        start = torch.tensor(self.predictor.start_context(), dtype=torch.int64, device=y.device)
        return self.predictor(torch.cat((start.expand(y.size(0), -1), y), dim=1), need_pad=False)


def _head(in_features: int, out_features: int) -> nn.Linear:
    """A linear map to labels that starts with logits as wide as its input.

    Heads that start near the uniform distribution stay on the all-blank plateau several times longer:
    labels then begin alike, and nothing tells them apart.
    """
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, std=1.5 * in_features**-0.5)
    nn.init.zeros_(linear.bias)
    return linear

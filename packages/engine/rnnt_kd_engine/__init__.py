"""Encoders made ready to run on one utterance at a time.

    encode = compile_encoder(model.encoder, engine="numba")
    encoder_out = encode(features)              # (T, 80) float32 -> (ceil(T / 4), D) float32
    model.encoder = Batches(model.encoder)      # for whoever calls it with batches, as ``bin.decode --engine`` does

An engine named ``fast`` is the file ``fast_engine.py`` with a function ``compile_encoder(encoder)``.
"""

from typing import Any, Callable, List, Protocol, Tuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rnnt_kd import choices


class CompiledEncoder(Protocol):
    """An encoder that an engine made ready.  It keeps the weights of the moment it was made."""

    num_bytes: int  # of the weights and what finds them, in memory

    def __call__(self, features: Tensor) -> Tensor:
        """(T, 80) float32 log-mel energies, T >= 1 -> (ceil(T / 4), D) float32."""


def available_engines() -> List[str]:
    """Names of the engines in this folder."""
    return choices.names(__name__, "_engine")


def compile_encoder(encoder: nn.Module, engine: str = "numba") -> CompiledEncoder:
    """Args:
      encoder: of a ``Transducer``, in eval mode, on the CPU.
      engine:  a name of ``available_engines()``.
    Raises:
      UserError: an unknown engine, or one that cannot run this encoder; it says why.
      ModuleNotFoundError: the engine's optional package is not installed.
    """
    return choices.load(__name__, engine, "_engine", "engine").compile_encoder(encoder.eval())


class Batches(nn.Module):
    """An ``Encoder`` that runs each utterance of a batch alone, in ``engine``.  Raises: as ``compile_encoder``."""

    output_dim: int
    subsampling_factor: int
    output_lengths: Callable[[Tensor], Tensor]

    def __init__(self, encoder: Any, engine: str = "numba"):
        super().__init__()
        self._encode: Any = compile_encoder(encoder, engine)
        self._encode(torch.zeros(1, 80))  # compiled now, not in the time of the first utterance
        self.output_lengths = encoder.output_lengths
        self.output_dim, self.subsampling_factor = encoder.output_dim, encoder.subsampling_factor

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        none = x.new_zeros(0, self.output_dim)
        found = [self._encode(features[:length]) if length else none for features, length in zip(x, x_lens.tolist())]
        return pad_sequence(found, batch_first=True), self.output_lengths(x_lens)

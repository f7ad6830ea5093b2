"""Encoders made ready to run on one utterance at a time.

    encode = compile_encoder(model.encoder, engine="numba")
    encoder_out = encode(features)              # (T, 80) float32 -> (ceil(T / 4), D) float32

An engine named ``fast`` is the file ``fast_engine.py`` with a function ``compile_encoder(encoder)``.
"""

from typing import List, Protocol

from torch import Tensor, nn

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

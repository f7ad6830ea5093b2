"""Engines that run an encoder, to be compared: those of ``rnnt_kd_engine``, and here those that are no part of it.

An engine named ``x`` is the file ``x_engine.py`` here or there, with ``compile_encoder(encoder)``; see
``rnnt_kd_engine.CompiledEncoder`` for what that returns.
"""

from typing import List

from torch import nn

import rnnt_kd_engine
from rnnt_kd import choices


def available_engines() -> List[str]:
    """Names, installed or not."""
    return sorted([*rnnt_kd_engine.available_engines(), *choices.names(__name__, "_engine")])


def compile_encoder(encoder: nn.Module, engine: str) -> rnnt_kd_engine.CompiledEncoder:
    """Raises:
    UserError: an unknown engine, or one that cannot run this encoder.
    ModuleNotFoundError: its package is not installed.
    """
    choices.check(engine, available_engines(), "--engines")
    if engine in rnnt_kd_engine.available_engines():
        return rnnt_kd_engine.compile_encoder(encoder, engine)
    return choices.load(__name__, engine, "_engine").compile_encoder(encoder.eval())

"""Engines that run an encoder, to be compared: those of ``inference``, and here those that are no part of it.

An engine named ``x`` is the file ``x_engine.py`` here or there, with ``compile_encoder(encoder)``; see
``inference.CompiledEncoder`` for what that returns.
"""

import importlib
from pathlib import Path
from typing import List

from torch import nn

from rnnt_kd import inference
from rnnt_kd.errors import UserError


def available_engines() -> List[str]:
    """Names, installed or not."""
    return sorted([*inference.available_engines(), *_own()])


def compile_encoder(encoder: nn.Module, engine: str) -> inference.CompiledEncoder:
    """Raises:
    UserError: an unknown engine, or one that cannot run this encoder.
    ModuleNotFoundError: its package is not installed.
    """
    if engine not in available_engines():
        raise UserError("--engines", f"there is no {engine!r}", "some of: " + ", ".join(available_engines()))
    if engine in _own():
        return importlib.import_module(f"{__name__}.{engine}_engine").compile_encoder(encoder.eval())
    return inference.compile_encoder(encoder, engine)


def _own() -> List[str]:
    return [path.name[: -len("_engine.py")] for path in Path(__file__).parent.glob("*_engine.py")]

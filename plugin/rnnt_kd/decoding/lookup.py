"""Searches by name: ``modified_beam_search`` is ``modified_beam_search.py`` beside this file."""

import importlib
from pathlib import Path
from typing import Callable, List

from rnnt_kd.errors import UserError


def available_searches() -> List[str]:
    """Every ``<name>_search.py`` of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*_search.py"))


def get_search(name: str) -> Callable:
    """The ``search`` function of that file.

    Raises:
      UserError: there is no such search, or the library that it needs is missing; names those that exist.
    """
    if name not in available_searches():
        raise UserError("search", f"'{name}'", f"one of: {', '.join(available_searches())}")
    try:
        return importlib.import_module(f"rnnt_kd.decoding.{name}").search
    except (ImportError, OSError) as error:  # OSError: a k2 built for another torch or CUDA
        next_step = "take modified_beam_search, or run.sh with --env k2"
        raise UserError("search", f"'{name}' cannot be used here ({error})", "the package k2", next_step) from error

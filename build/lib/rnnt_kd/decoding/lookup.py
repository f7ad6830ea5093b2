"""Searches by name: ``modified_beam_search`` is ``modified_beam_search.py`` beside this file."""

from typing import List

from rnnt_kd import choices
from rnnt_kd.decoding.options import Search
from rnnt_kd.errors import UserError


def available_searches() -> List[str]:
    """Every ``<name>_search.py`` of this folder."""
    return [f"{name}_search" for name in choices.names("rnnt_kd.decoding", "_search")]


def get_search(name: str) -> Search:
    """The ``search`` function of that file; see ``options.py`` for how it is called.

    Raises:
      UserError: there is no such search, or the library that it needs is missing; names those that exist.
    """
    choices.check(name, available_searches(), "search")
    try:
        return choices.load("rnnt_kd.decoding", name).search
    except (ImportError, OSError) as error:  # OSError: a k2 built for another torch or CUDA
        next_step = "take modified_beam_search, or run.sh with --env k2"
        raise UserError("search", f"'{name}' cannot be used here ({error})", "the package k2", next_step) from error

"""Option values of ``--kd-variant`` and ``--kd-weighting``: the public functions of two modules.

Writing a function there is all it takes to add one.
"""

import inspect
from types import ModuleType
from typing import Callable, Dict, List

from rnnt_kd.errors import UserError
from rnnt_kd.losses import kd_variants, kd_weightings


def available_variants() -> List[str]:
    """Option values, in the order of ``kd_variants.py``."""
    return list(_functions(kd_variants))


def available_weightings() -> List[str]:
    """Option values, in the order of ``kd_weightings.py``; "-" for the functions' "_"."""
    return list(_functions(kd_weightings))


def get_variant(name: str) -> Callable:
    """The function behind an option value; UserError, with the right values, for others."""
    return _choose("kd variant", name, _functions(kd_variants))


def get_weighting(name: str) -> Callable:
    """The function behind an option value; UserError, with the right values, for others."""
    return _choose("kd weighting", name, _functions(kd_weightings))


def needs_logits(variant: Callable) -> bool:
    """Does a variant compare whole logits, by the name of its first argument, or node scores?"""
    return next(iter(inspect.signature(variant).parameters)) == "logits"


def _functions(module: ModuleType) -> Dict[str, Callable]:
    return {
        name.replace("_", "-"): value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def _choose(what: str, name: str, functions: Dict[str, Callable]) -> Callable:
    if name not in functions:
        raise UserError(what, f"there is no {name!r}", "one of: " + ", ".join(functions))
    return functions[name]

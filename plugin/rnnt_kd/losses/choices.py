"""Option values of ``--kd-variant`` and ``--kd-weighting``: the public functions of two modules.

Writing a function there is all it takes to add one.
"""

import inspect
from typing import Callable, List

from rnnt_kd import choices
from rnnt_kd.losses import kd_variants, kd_weightings

WEIGHTING = "student-occupancy"  # of recipes and plug-ins, where nobody says another: egs/an4/RESULTS.md


def available_variants() -> List[str]:
    """Option values, in the order of ``kd_variants.py``."""
    return list(choices.functions(kd_variants))


def available_weightings() -> List[str]:
    """Option values, in the order of ``kd_weightings.py``; "-" for the functions' "_"."""
    return list(choices.functions(kd_weightings))


def get_variant(name: str) -> Callable:
    """The function behind an option value; UserError, with the right values, for others."""
    return choices.function(kd_variants, name, "kd variant")


def get_weighting(name: str) -> Callable:
    """The function behind an option value; UserError, with the right values, for others."""
    return choices.function(kd_weightings, name, "kd weighting")


def needs_logits(variant: Callable) -> bool:
    """Does a variant compare whole logits, by the name of its first argument, or node scores?"""
    return next(iter(inspect.signature(variant).parameters)) == "logits"

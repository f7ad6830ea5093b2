"""Which parameters are sparsified, and how sparse weights are: always counted, never taken from a target.

A target sparsity counts the matched weights only; ``sparsity_report(model)`` without names counts the
whole model, so both figures can be printed.
"""

import re
from typing import Dict, Iterable, Optional, Tuple

import torch
from torch import nn

from rnnt_kd.errors import UserError


def select_parameters(model: nn.Module, include: Iterable[str], exclude: Iterable[str] = ()) -> Dict[str, nn.Parameter]:
    """Parameters whose whole name matches a pattern of ``include`` and none of ``exclude``, in the model's order.

    Raises:
      UserError: a pattern that is no regular expression, an ``include`` pattern that matches no parameter,
        or nothing left after ``exclude``.
    """
    parameters = dict(model.named_parameters())
    wanted, unwanted = set(), set()
    for pattern in include:
        matches = _matching(pattern, parameters, "sparsity.include")
        if not matches:
            raise UserError(
                "sparsity.include",
                f"pattern {pattern!r} matches no parameter",
                f"a regular expression for whole names such as {next(iter(parameters), 'none: the model is empty')}",
                "list the names with model.named_parameters()",
            )
        wanted |= matches
    for pattern in exclude:
        unwanted |= _matching(pattern, parameters, "sparsity.exclude")
    if not wanted - unwanted:
        raise UserError("sparsity", "include minus exclude leaves no parameter", "at least one", "change the patterns")
    return {name: p for name, p in parameters.items() if name in wanted - unwanted}


def sparsity_report(model: nn.Module, names: Optional[Iterable[str]] = None) -> Dict[str, Tuple[int, int]]:
    """Name -> (non-zero weights, weights), for the parameters ``names``, or all of the model."""
    parameters = dict(model.named_parameters())
    return {
        n: (int(torch.count_nonzero(parameters[n])), parameters[n].numel())
        for n in (parameters if names is None else names)
    }


def measured_sparsity(report: Dict[str, Tuple[int, int]]) -> float:
    """Fraction of zeros in all entries of a report together."""
    total = sum(n for _, n in report.values())
    return 1.0 - sum(nonzero for nonzero, _ in report.values()) / max(total, 1)


def _matching(pattern: str, parameters: Iterable[str], where: str) -> set:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(where, f"{pattern!r} is not a regular expression ({error})") from error
    return {name for name in parameters if expression.fullmatch(name)}

"""What teacher and student must share, said in one line where they do not: the checks of every plug-in.

check_same("exp/large", {"classes": 500, "blank": 0}, {"classes": 5000, "blank": 0})
"""

from typing import Mapping, Optional

import torch
from torch import nn

from rnnt_kd.errors import UserError


def check_same(where: object, teacher: Mapping[str, object], student: Mapping[str, object]) -> None:
    """Raises UserError, which names both, for the first thing that both say and that differs.

    Args:
      where:             the teacher, for the message.
      teacher, student:  what it is -> its value (None: unknown), such as "classes", "blank", "context size",
                         "subsampling"; a list, such as "pieces", is compared one by one.
    """
    for what, theirs in teacher.items():
        ours = student.get(what)
        if theirs is None or ours is None or theirs == ours:
            continue
        if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
            n = next((n for n, pair in enumerate(zip(theirs, ours)) if pair[0] != pair[1]), None)
            problem, expected = f"{len(theirs)} {what}", f"{len(ours)}"
            if n is not None:
                problem, expected = f"number {n} of its {what} is {theirs[n]!r}", f"{ours[n]!r}"
        else:
            problem, expected = f"its {what} is {theirs}", f"{ours}"
        raise UserError(where, problem, f"{expected}, as the student has", "a teacher of the same kind and tokens")


def check_teacher(where: object, module: nn.Module, student: Optional[nn.Module] = None) -> None:
    """Raises UserError: the teacher is the student or a part of it, or its weights are in half precision."""
    if student is not None and any(part is module for part in student.modules()):
        raise UserError(where, "is the student, or a part of it", "another model", "load it a second time")
    dtypes = {str(x.dtype) for x in module.parameters() if x.is_floating_point()}
    if bad := sorted(dtypes - {str(torch.float32), str(torch.float64)}):
        raise UserError(where, f"has weights in {bad[0]}", "torch.float32", "call its float(); autocast still applies")

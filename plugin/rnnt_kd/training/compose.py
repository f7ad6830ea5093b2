"""One system's configuration, out of a preset and what tells this system from the others."""

import dataclasses
from typing import Optional

from rnnt_kd.config import KdConfig, RecipeConfig, SystemConfig
from rnnt_kd.errors import UserError

ROLES = ("teacher", "sparse_student", "small_student", "streaming_student")  # parts of a preset


def compose(
    recipe: RecipeConfig,
    *,
    role: str,
    name: str,
    seed: int,
    sparsity: float,
    with_kd: bool,
    kd_options: dict,
    structure: Optional[str] = None,
) -> SystemConfig:
    """The part of ``recipe`` that ``role`` needs, as one system's configuration.

    Raises:
      UserError: options that do not go together or are out of range.
    """
    if role == "sparse_student" and not 0.0 < sparsity < 1.0:
        raise UserError(
            "--sparsity", f"{sparsity} for a sparse student", "a fraction between 0 and 1", "for example 0.9"
        )
    if role == "streaming_student" and not 0.0 <= sparsity < 1.0:
        raise UserError("--sparsity", f"{sparsity} for a streaming student", "a fraction in [0, 1)", "for example 0.9")
    if role not in ("sparse_student", "streaming_student") and sparsity:
        raise UserError(
            "--sparsity", f"{sparsity} for a {role}, which is dense", "no --sparsity", "or --role sparse_student"
        )
    if structure is not None and not sparsity:
        raise UserError("--structure", f"{structure} for a dense {role}", "no --structure", "or give --sparsity")
    given = {key: value for key, value in kd_options.items() if value is not None}
    if given and not with_kd:
        raise UserError("--kd-" + sorted(given)[0], "given without --kd", "--kd as well", "add --kd, or omit it")
    if with_kd and role == "teacher":
        raise UserError("--kd", "asked for a teacher", "a student's role", "leave --kd away")
    if given.get("scale", 0.0) < 0.0:
        raise UserError("--kd-scale", str(given["scale"]), "a number >= 0")
    if given.get("shift", 0) < 0:
        raise UserError("--kd-shift", str(given["shift"]), "a number of encoder frames >= 0")
    part = getattr(recipe, role)
    zeros = recipe.sparse_student.sparsity
    if structure is not None:
        zeros = dataclasses.replace(zeros, structure=structure)
    if part is None:
        found = f"the preset has no part {role}"
        raise UserError("--role", found, "a preset with it", f"write {role}: with model: and training: into the preset")
    return SystemConfig(
        name=name,
        role=role,
        seed=seed,
        model=recipe.teacher.model if role == "sparse_student" else part.model,
        training=part.training,
        sparsity=zeros if role == "sparse_student" or sparsity else None,
        target_sparsity=sparsity,
        kd=KdConfig(**{**vars(recipe.kd), **given}) if with_kd else None,
    )

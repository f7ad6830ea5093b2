"""One system's configuration, out of a preset and what tells this system from the others."""

import dataclasses
from typing import Any, Mapping

import torch

from rnnt_kd import choices
from rnnt_kd.config import ROLES, RecipeConfig, SystemConfig
from rnnt_kd.config_io import checked, mapping, merged
from rnnt_kd.errors import UserError

SECTIONS = ("model", "training", "sparsity", "kd")  # what a system may have values of its own for


def compose(
    recipe: RecipeConfig, *, name: str, role: str, seed: int = 1, values: Mapping[str, Any] = {}
) -> SystemConfig:
    """The part of ``recipe`` that ``role`` needs, ``values`` over it, as one system's configuration.

    Args:
      role:   one of ``config.ROLES``; a sparse student has the teacher's model, unless ``values`` say otherwise.
      values: any of model, training, sparsity and kd, key by key; kd: {} takes all options of the preset, None or
              no kd is no distillation; ``sparsity: 0.9`` is its target.
    Raises:
      UserError: an unknown key, a value out of range, or values that this role cannot have.
    """
    part = getattr(recipe, choices.check(role, ROLES, "role"))
    for key in values:
        choices.check(key, SECTIONS, "values")
    if part is None:
        problem = f"the preset has no part {role}"
        raise UserError(role, problem, "a preset with it", f"write {role}: with model: and training: into the preset")
    base = {"model": dataclasses.asdict(recipe.teacher.model), **dataclasses.asdict(part)}
    base.setdefault("sparsity", dataclasses.asdict(recipe.sparse_student.sparsity))
    given = merged({}, {key: value for key, value in values.items() if key != "kd"})
    options = merged({key: base[key] for key in ("model", "training", "sparsity")}, given)
    if values.get("kd") is not None:
        options["kd"] = merged(dataclasses.asdict(recipe.kd), mapping(values["kd"], "kd"))
        if role == "teacher":
            raise UserError("kd", "given for a teacher", "a student's role", "omit it")
    target = mapping(options["sparsity"], "sparsity").get("target", 0.0)
    if role not in ("sparse_student", "streaming_student"):
        if "sparsity" in given:
            raise UserError("sparsity", f"given for a {role}, which is dense", "a sparse or streaming student")
        del options["sparsity"]
    elif not target:
        if role == "sparse_student" and mapping(options["training"], "training").get("weight_bits") is None:
            expected = "between 0 and 1, or training.weight_bits: rounded, with no zeros"
            raise UserError("sparsity.target", f"{target} for a sparse student", expected, "for example 0.9")
        if set(given.get("sparsity", {})) - {"target"}:
            problem = "options of sparsity without a target"
            raise UserError("sparsity", problem, f"a target as well, or no sparsity: this {role} is dense")
        del options["sparsity"]
    config = checked(SystemConfig, {"name": name, "role": role, "seed": seed, **options}, "")
    if role == "streaming_student" and not config.model.encoder.startswith("streaming_"):
        problem = f"{config.model.encoder} for a streaming student"
        raise UserError("model.encoder", problem, "one that streams", "for example streaming_conformer")
    if config.kd is not None and config.kd.in_place and not (config.sparsity and config.sparsity.nested):
        raise UserError("kd.in_place", "without sparsity.nested", "a family: lower sparsities in sparsity.nested")
    return config


def check_device(config: SystemConfig, device: str) -> None:
    """UserError: ``device``, "cpu" or "cuda", does not have the precision of ``config``."""
    # torch 1 has no LayerNorm of mixed precision on a CPU
    on_cpu = ("32-true",) if torch.__version__.startswith("1.") else ("32-true", "bf16-mixed")
    if device == "cpu" and config.training.precision not in on_cpu:
        problem = f"{config.training.precision} on a CPU"
        raise UserError("training.precision", problem, " or ".join(on_cpu), "or --device cuda")

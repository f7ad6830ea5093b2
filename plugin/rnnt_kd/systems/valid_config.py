"""Values that a configuration may not have; types and names are checked where it is read."""

from typing import Any, Callable, List, Tuple

import torch

from rnnt_kd.config import SystemConfig
from rnnt_kd.errors import UserError
from rnnt_kd.losses import available_variants, available_weightings
from rnnt_kd.losses.choices import get_variant, needs_logits
from rnnt_kd.sparsity.structures import check_structure

RNNT_TYPES = ("regular", "modified", "constrained")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_config(config: SystemConfig, device: str) -> None:
    """Raises UserError for the first value out of its range, naming the key, the value and the range."""
    for section, rules in (("training", _TRAINING), ("kd", _kd_rules()), ("sparsity", _SPARSITY)):
        values = getattr(config, section)
        for key, is_right, expected in rules if values is not None else []:
            value = getattr(values, key)
            if not is_right(value):
                raise UserError(f"{section}.{key}", str(value), expected, "correct it in the preset or with --set")
    if config.role == "streaming_student" and not config.model.encoder.startswith("streaming_"):
        found = f"{config.model.encoder} for a streaming student"
        raise UserError("streaming_student.model.encoder", found, "one that streams", "streaming_conformer")
    on_cpu = (
        ("32-true",) if torch.__version__.startswith("1.") else ("32-true", "bf16-mixed")
    )  # torch 1: no mixed LayerNorm
    if device == "cpu" and config.training.precision not in on_cpu:
        raise UserError(
            "training.precision", f"{config.training.precision} on a CPU", " or ".join(on_cpu), "or --device cuda"
        )
    if config.training.min_seconds > config.training.max_seconds:
        values = f"{config.training.min_seconds} > {config.training.max_seconds}"
        raise UserError("training.min_seconds", f"{values} (max_seconds)", "min_seconds <= max_seconds")
    if config.kd is not None and config.kd.ranges == "teacher" and needs_logits(get_variant(config.kd.variant)):
        found = f"{config.kd.variant} compares whole logits, and with kd.ranges teacher there are cached posteriors"
        raise UserError("kd.variant", found, "collapsed, or kd.ranges student", "give --kd-ranges student")
    if config.sparsity is not None:
        given = config.sparsity
        check_structure(given.structure, final_sparsity=config.target_sparsity, scope=given.scope)
    if config.sparsity is not None and config.sparsity.begin_fraction > config.sparsity.end_fraction:
        values = f"{config.sparsity.begin_fraction} > {config.sparsity.end_fraction}"
        raise UserError("sparsity.begin_fraction", f"{values} (end_fraction)", "begin_fraction <= end_fraction")


Rule = Tuple[str, Callable[[Any], bool], str]


def _one_of(key: str, values) -> Rule:
    return key, lambda value: value in values, f"one of: {', '.join(values)}"


def _at_least(smallest: float, *keys: str) -> List[Rule]:
    return [(key, lambda value: value >= smallest, f"a number >= {smallest}") for key in keys]


def _positive(*keys: str) -> List[Rule]:
    return [(key, lambda value: value > 0.0, "a number > 0") for key in keys]


def _fraction(*keys: str) -> List[Rule]:
    return [(key, lambda value: 0.0 <= value <= 1.0, "a number between 0 and 1") for key in keys]


_TRAINING: List[Rule] = [
    *_at_least(1, "epochs", "num_buckets", "validate_every_epochs", "average_best"),
    *_at_least(1, "checkpoint_every_steps", "log_every_steps", "max_nonfinite_batches"),
    *_at_least(2, "prune_range"),
    *_at_least(0, "warmup_steps", "pruned_loss_warmup_steps", "weight_decay", "simple_loss_scale", "ctc_loss_scale"),
    *_positive("batch_seconds", "learning_rate", "gradient_clip"),
    *_fraction("final_learning_rate_fraction", "lm_only_scale", "am_only_scale"),
    _one_of("rnnt_type", RNNT_TYPES),
    _one_of("precision", PRECISIONS),
    ("betas", lambda value: len(value) == 2 and all(0.0 <= beta < 1.0 for beta in value), "two numbers in [0, 1)"),
]

_SPARSITY: List[Rule] = [*_fraction("begin_fraction", "end_fraction"), *_at_least(1, "update_every_steps")]


def _kd_rules() -> List[Rule]:
    return [
        _one_of("variant", available_variants()),
        _one_of("weighting", available_weightings()),
        _one_of("ranges", ("teacher", "student")),
        *_at_least(0, "scale", "ramp_steps", "shift"),
        *_positive("temperature"),
    ]

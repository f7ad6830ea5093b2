"""What is told of a finished system: its size and the sparsity measured from its weights."""

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.config import SystemConfig


def describe(
    config: SystemConfig,
    weights: Mapping[str, Tensor],
    report: Mapping[str, Tuple[int, int]],
    teacher_dir: Optional[Path],
    say: Callable[[str], None],
) -> Dict[str, Any]:
    """The model's part of ``system.json``; says the sparsity of each matrix and of all.

    Args:
      weights: of the system as it is written.
      report:  of the sparsified matrices, name -> (not zero, all); before units were cut out.
    Returns: ``sparsity`` counts the weights of the report, ``sparsity_total`` every parameter that is left.
    """
    params = sum(weight.numel() for weight in weights.values())
    nonzero = sum(int(torch.count_nonzero(weight)) for weight in weights.values())
    sparsity = 0.0
    if report:
        width = max(len(name) for name in report)
        for name, (kept, total) in report.items():
            say(f"  {name:{width}}  {kept:8d} of {total:8d}  sparsity {1.0 - kept / total:.4f}")
        target = config.zeros
        kept, total = (sum(pair[index] for pair in report.values()) for index in (0, 1))
        sparsity = 1.0 - kept / total
        say(f"{config.name}: sparsity {sparsity:.4f} of {total} weights asked for {target}")
    total_sparsity = 1.0 - nonzero / params
    say(f"{config.name}: {params} parameters, {nonzero} not zero, sparsity {total_sparsity:.4f} in all")
    return {
        "system": config.name,
        "role": config.role,
        "params": params,
        "nonzero_params": nonzero,
        "sparsity": sparsity,
        "sparsity_total": total_sparsity,
        "kd": config.kd is not None,
        "kd_ranges": config.kd.ranges if config.kd is not None else None,
        "kd_shift": config.kd.shift if config.kd is not None else None,
        "teacher": str(teacher_dir) if config.teacher_checksum and teacher_dir is not None else None,
        "bpe_checksum": config.bpe_checksum,
        "seed": config.seed,
    }

"""The folder of one system: who may write there, what is in it, whether to go on with it.

config.yaml  inputs.json  left_out.json  metrics.jsonl  tensorboard/  checkpoints/
model.safetensors  system.json          (the last two only when training has ended)
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

from filelock import FileLock, Timeout

from rnnt_kd import atomic
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import as_plain_dict, read_system_config, write_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.systems.store import CONFIG, INPUTS, SYSTEM
from rnnt_kd.training.progress import Say


@contextmanager
def locked(system_dir: Path) -> Iterator[None]:
    """Hold the folder for this process.

    The lock file lies beside the folder, because the folder itself may be moved aside;
    the system releases it whatever kills the process.

    Raises:
      UserError: another process trains here.
    """
    system_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(system_dir.parent / f".{system_dir.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            system_dir, "another run is training in this folder", "", "wait for it to end, or choose another --exp-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def open_system_dir(system_dir: Path, config: SystemConfig, inputs: Dict[str, str], say: Say) -> bool:
    """Make the folder ready for ``config``; False if the same system is finished already.

    An older run of another configuration, or on other data, is moved to ``<dir>.old-N``.
    """
    changed = difference(system_dir, config, inputs)
    if changed:
        aside = _free_name(system_dir)
        os.replace(system_dir, aside)
        say(f"{config.name}: {changed} since the run in {system_dir}; moved it to {aside}, training anew")
    elif (system_dir / SYSTEM).exists():
        say(f"{config.name}: finished already, skipped ({system_dir})")
        return False
    (system_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    atomic.write_text(system_dir / INPUTS, json.dumps(inputs, indent=1) + "\n")
    write_system_config(system_dir / CONFIG, config)
    return True


def is_finished(system_dir: Path, config: SystemConfig, inputs: Dict[str, str]) -> bool:
    """Would ``open_system_dir`` skip the training?"""
    return (system_dir / SYSTEM).exists() and not difference(system_dir, config, inputs)


def difference(system_dir: Path, config: SystemConfig, inputs: Dict[str, str]) -> str:
    """What differs from the run in ``system_dir``; empty when nothing does or nothing is there.

    The name does not count: it is what people call the system, and changes no weight.
    """
    if not system_dir.exists() or not any(system_dir.iterdir()):
        return ""
    if not (system_dir / CONFIG).exists():
        if {path.name for path in system_dir.iterdir()} <= {"checkpoints", INPUTS}:  # killed before it wrote more
            return ""
        raise UserError(system_dir, "holds files of something else", "a new folder, or one of an earlier training run")
    old, new = _flat(as_plain_dict(read_system_config(system_dir / CONFIG))), _flat(as_plain_dict(config))
    changed = sorted(key for key in {*old, *new} - {"name"} if old.get(key) != new.get(key))
    if changed:
        named = ", ".join(f"{key} {old.get(key)} -> {new.get(key)}" for key in changed[:3])
        return f"changed {named}" + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    try:
        before = json.loads((system_dir / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = sorted(key for key in inputs if before.get(key) != inputs[key])
    return f"changed {', '.join(changed)}" if changed else ""


def _flat(values: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _free_name(system_dir: Path) -> Path:
    number = 1
    while (aside := system_dir.with_name(f"{system_dir.name}.old-{number}")).exists():
        number += 1
    return aside

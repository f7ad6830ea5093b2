"""The folder of one system: who may write there, what is in it, whether to go on with it.

config.yaml  .training.record.json  left_out.json  metrics.jsonl  tensorboard/  checkpoints/
model.safetensors  system.json          (the last two only when training has ended)
"""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping

from filelock import FileLock, Timeout

from rnnt_kd.config import KdConfig, SparsityConfig, SystemConfig
from rnnt_kd.config_io import as_plain_dict, write_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.record import Record, in_words, read_record, record_path
from rnnt_kd.systems.store import (
    CONFIG,
    FINAL,
    SYSTEM,
    TRAINING,
    as_cut,
    member_dirs,
    read_weights,
    weights_digest,
    weights_file,
)
from rnnt_kd.training.progress import Say

RECORD = record_path(Path(), TRAINING).name
NO_MATTER = ("num_workers", "loss_memory_mb", "checkpoint_every_steps", "log_every_steps", "max_nonfinite_batches")


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


class SystemRecord(Record):
    """Weights may be packed."""

    ignored = [f"training.{name}" for name in NO_MATTER]

    def place(self, name: str) -> Path:
        path = super().place(name)
        return weights_file(path.parent) if path.name == FINAL else path

    def digest(self, name: str) -> str:
        path = super().place(name)
        return weights_digest(path.parent) if path.name == FINAL else super().digest(name)


def system_record(system_dir: Path, config: SystemConfig, inputs: Mapping[str, str], backend: str = "") -> SystemRecord:
    """What a system is made of: its configuration, but what no result depends on, and its inputs by digest.

    Its files are those of all its members, if it is a family.
    """
    before = SparsityConfig(scope="per-layer", initial=0.0)
    usual = SystemConfig(kd=KdConfig(), sparsity=before)  # what a record from before an option says of it
    settings, defaults = ({**as_plain_dict(values), "name": ""} for values in (config, usual))
    for values in (settings, defaults):
        for name in NO_MATTER:
            del values["training"][name]
    notes = {"lattice backend": backend}
    outputs = [(folder / name).as_posix() for folder in member_dirs(config) for name in (FINAL, SYSTEM, CONFIG)]
    return SystemRecord(system_dir, TRAINING, settings, inputs, outputs, defaults=defaults, notes=notes)


def open_system_dir(record: Record, config: SystemConfig, say: Say) -> bool:
    """Make the folder ready for ``config``; False if the same system is finished already.

    An older run of another configuration, or on other data, is moved to ``<dir>.old-N``.
    Raises:
      UserError: the folder holds something else.
    """
    system_dir = record.folder
    inside = {path.name for path in system_dir.iterdir()} if system_dir.exists() else set()
    inside -= {
        name for name in inside if name[0] == "." and name.endswith(".tmp")
    }  # killed while it wrote one (atomic)
    before = read_record(record.path)
    was_finished = "outputs" in before  # then its checkpoints are gone, and nothing can go on
    for member, folder in enumerate(member_dirs(config)):
        path, weights = (folder / CONFIG).as_posix(), (folder / FINAL).as_posix()
        is_damaged = was_finished and (system_dir / path).exists() and not record.is_whole(path, before)
        if is_damaged and record.place(weights).exists() and record.is_whole(weights, before) and not record.changes():
            write_system_config(system_dir / path, as_cut(config, read_weights(system_dir / folder), member))
            say(f"{config.name}: {path} was not what was written, and is written again")
    changed = record.why_not() if was_finished else in_words(record.changes())
    if not before and inside - {"checkpoints", CONFIG}:  # else killed before it wrote more
        if record.path.name in inside:
            raise UserError(record.path, "damaged", "what the run here was made of", f"move {system_dir} away")
        if "inputs.json" in inside:
            problem = "holds a system of an earlier version; nothing in it was changed"
            raise UserError(
                system_dir, problem, "a new folder", "move it away (it still decodes), or choose another --exp-dir"
            )
        raise UserError(system_dir, "holds files of something else", "a new folder, or one of an earlier training run")
    if changed:
        aside = _free_name(system_dir)
        os.replace(system_dir, aside)
        say(f"{config.name}: {changed}; moved the run in {system_dir} to {aside}, training anew")
    elif not record.why_not():
        say(f"{config.name}: finished already, skipped ({system_dir})")
        return False
    (system_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_system_config(system_dir / CONFIG, config)
    record.start(keep=True)
    return True


def _free_name(system_dir: Path) -> Path:
    number = 1
    while (aside := system_dir.with_name(f"{system_dir.name}.old-{number}")).exists():
        number += 1
    return aside

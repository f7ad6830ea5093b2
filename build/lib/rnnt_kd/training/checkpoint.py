"""Checkpoints of a training run.

A checkpoint is a folder that is whole or absent (it is written under another name and
renamed):

    checkpoints/step-00000400/               in the middle of an epoch
    checkpoints/step-00000420-epoch-0003/    at the end of epoch 3
        model.safetensors  optimizer.safetensors  sparsifier.safetensors  state.json

``state.json`` holds the scalars, of which run it is, and the SHA-256 of the other files and of itself.
Weights are safetensors, never pickled code.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.record import json_digest
from rnnt_kd.systems.store import Tensors, read_bytes, serialize

MODEL, OPTIMIZER, SPARSIFIER = "model.safetensors", "optimizer.safetensors", "sparsifier.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)(-epoch-\d+)?")
ENDS_EPOCH = re.compile(r"-epoch-\d+$")


@dataclass
class Checkpoint:
    """What one folder holds."""

    path: Path
    model: Tensors
    optimizer: Tensors
    sparsifier: Tensors
    state: Dict[str, Any]


def checkpoint_name(step: int, finished_epoch: Optional[int] = None) -> str:
    """Folder name after ``step`` batches; ``finished_epoch`` counts from 1."""
    return f"step-{step:08d}" if finished_epoch is None else f"step-{step:08d}-epoch-{finished_epoch:04d}"


def save_checkpoint(
    folder: Path, model: Tensors, optimizer: Tensors, sparsifier: Tensors, state: Dict[str, Any], run: str = ""
) -> None:
    """Write one checkpoint of a ``run``; after a crash at any moment ``folder`` is whole or absent."""
    making = folder.with_name(f".making-{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    state, digests = json.loads(json.dumps({**state, "run": run})), {}
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer), (SPARSIFIER, sparsifier)):
        content = serialize(tensors)
        digests[name] = hashlib.sha256(content).hexdigest()
        atomic.write_bytes(making / name, content)
    digests[STATE] = json_digest([state, digests])
    atomic.write_text(making / STATE, json.dumps({**state, "sha256": digests}, indent=1))
    atomic.replace_dir(making, folder)
    _sync_folder(folder.parent)


def load_checkpoint(folder: Path, run: str = "") -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
      UserError: naming the file that is missing, damaged, not ours or of another ``run``, and the next step.
    """
    state, digests = _read_state(folder, run)
    if not (folder / OPTIMIZER).exists():
        problem = "missing (removed from older checkpoints)"
        raise UserError(folder / OPTIMIZER, problem, "a whole checkpoint", _way_out(folder))
    model, optimizer, sparsifier = (_read_tensors(folder, name, digests) for name in (MODEL, OPTIMIZER, SPARSIFIER))
    return Checkpoint(folder, model, optimizer, sparsifier, state)


def _read_state(folder: Path, run: str) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """The scalars, and the digests of the other files."""
    path = folder / STATE
    try:
        state = parse_json(path.read_text(encoding="utf-8"))
        digests = dict(state.pop("sha256"))
        own = digests.pop(STATE, None)  # none in those of earlier versions
        if own not in (None, json_digest([state, digests])) or set(digests) != {MODEL, OPTIMIZER, SPARSIFIER}:
            raise ValueError
    except FileNotFoundError:
        raise UserError(path, "missing", "a whole checkpoint", _way_out(folder)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(path, "damaged or not of this program", "a checkpoint's state", _way_out(folder)) from None
    if state.pop("run", run) != run:
        raise UserError(folder, "a checkpoint of another run", "those of this training", _way_out(folder))
    return state, digests


def _read_tensors(folder: Path, name: str, digests: Mapping[str, str]) -> Tensors:
    content = read_bytes(folder / name, _way_out(folder))
    if hashlib.sha256(content).hexdigest() != digests[name]:
        expected = f"SHA-256 {digests[name][:12]}..."
        raise UserError(folder / name, "damaged: it is not what was written", expected, _way_out(folder))
    return safetensors.torch.load(content)


def list_checkpoints(directory: Path) -> List[Path]:
    """Whole checkpoints, oldest first (at one step, the epoch's end comes last)."""
    found = [path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.name.split("-epoch-")[0], path.name))


def load_newest(directory: Path, run: str, processes: int, say: Callable[[str], None]) -> List[Checkpoint]:
    """The checkpoint to go on from; none where there is none.

    In the middle of an epoch another number of processes has nothing to go on with: that is the last end of an epoch,
    and what came after it is deleted.
    Raises:
      UserError: as ``load_checkpoint``.
    """
    found = list_checkpoints(directory)
    later: List[Path] = []
    while found:
        before = _read_state(found[-1], run)[0].get("processes", 1)
        if before == processes or ENDS_EPOCH.search(found[-1].name):
            break
        later.append(found.pop())
    if later:
        where = f"{found[-1].name}, the last end of an epoch" if found else "the start"
        who = f"by {before} process(es), and now there are {processes}"
        say(f"{later[0]}: in the middle of an epoch, {who}; from {where}")
    saved = [load_checkpoint(found[-1], run)] if found else []
    for path in later:
        _delete(path)
    return saved


def tidy(directory: Path, keep_last: int, best: Iterable[str]) -> None:
    """Keep the last ``keep_last`` checkpoints and the last end of an epoch whole and of the ``best`` ones the weights;
    delete the rest.  With ``keep_last`` 0 nothing stays whole."""
    best, found = set(best), list_checkpoints(directory)
    whole = found[-keep_last:] + [path for path in found if ENDS_EPOCH.search(path.name)][-1:] if keep_last else []
    for path in found:
        if path not in whole and path.name in best:
            (path / OPTIMIZER).unlink(missing_ok=True)
        elif path not in whole:
            _delete(path)


def _delete(path: Path) -> None:
    retired = path.with_name(f".retired-{path.name}")
    os.replace(path, retired)
    shutil.rmtree(retired, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for path in [*directory.glob(".making-*"), *directory.glob(".retired-*"), *directory.glob(".step-*")]:
        shutil.rmtree(path, ignore_errors=True)


def average(folders: Sequence[Path], run: str = "") -> Tensors:
    """The mean of several checkpoints' weights, summed in float64; zeros in all stay exact zeros.

    Raises:
      UserError: as ``load_checkpoint``.
    """
    assert folders
    total: Dict[str, Tensor] = {}
    dtypes: Dict[str, torch.dtype] = {}
    for folder in folders:
        for name, tensor in _read_tensors(folder, MODEL, _read_state(folder, run)[1]).items():
            dtypes[name] = tensor.dtype
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(folders)).to(dtypes[name]) for name, tensor in total.items()}


def _way_out(folder: Path) -> str:
    return f"delete {folder} to go on without it, from the checkpoint before it (or from the start, if there is none)"


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

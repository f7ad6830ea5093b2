"""Checkpoints of a training run.

A checkpoint is a folder that is whole or absent (it is written under another name and
renamed):

    checkpoints/step-00000400/               in the middle of an epoch
    checkpoints/step-00000420-epoch-0003/    at the end of epoch 3
        model.safetensors  optimizer.safetensors  sparsifier.safetensors  state.json

``state.json`` holds the scalars and the SHA-256 of the other files.  Weights are
safetensors, never pickled code.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.systems.store import Tensors, read_bytes, read_tensors, serialize

MODEL, OPTIMIZER, SPARSIFIER = "model.safetensors", "optimizer.safetensors", "sparsifier.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d+)(-epoch-\d+)?")


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
    folder: Path, model: Tensors, optimizer: Tensors, sparsifier: Tensors, state: Dict[str, Any]
) -> None:
    """Write one checkpoint; after a crash at any moment ``folder`` is whole or absent."""
    making = folder.with_name(f".making-{folder.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    digests = {}
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer), (SPARSIFIER, sparsifier)):
        content = serialize(tensors)
        digests[name] = hashlib.sha256(content).hexdigest()
        atomic.write_bytes(making / name, content)
    atomic.write_text(making / STATE, json.dumps({**state, "sha256": digests}, indent=1))
    atomic.replace_dir(making, folder)
    _sync_folder(folder.parent)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
      UserError: naming the file that is missing, damaged or not ours, and the next step.
    """
    state_path = folder / STATE
    try:
        state = parse_json(state_path.read_text(encoding="utf-8"))
        digests = state.pop("sha256")
        expected = {name: digests[name] for name in (MODEL, OPTIMIZER, SPARSIFIER)}
    except FileNotFoundError:
        raise UserError(state_path, "missing", "a whole checkpoint", _way_out(folder)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            state_path, "damaged or not of this program", "a checkpoint's state", _way_out(folder)
        ) from None
    tensors = {}
    for name, digest in expected.items():
        path = folder / name
        if name == OPTIMIZER and not path.exists():
            raise UserError(path, "missing (removed from older checkpoints)", "a whole checkpoint", _way_out(folder))
        content = read_bytes(path, _way_out(folder))
        if hashlib.sha256(content).hexdigest() != digest:
            raise UserError(path, "damaged: it is not what was written", f"SHA-256 {digest[:12]}...", _way_out(folder))
        tensors[name] = safetensors.torch.load(content)
    return Checkpoint(folder, tensors[MODEL], tensors[OPTIMIZER], tensors[SPARSIFIER], state)


def list_checkpoints(directory: Path) -> List[Path]:
    """Whole checkpoints, oldest first (at one step, the epoch's end comes last)."""
    found = [path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (path.name.split("-epoch-")[0], path.name))


def tidy(directory: Path, keep_last: int, best: Iterable[str]) -> None:
    """Keep the last ``keep_last`` checkpoints whole and of the ``best`` ones the weights; delete the rest."""
    best = set(best)
    for path in list_checkpoints(directory)[: -keep_last or None]:
        if path.name in best:
            (path / OPTIMIZER).unlink(missing_ok=True)
        else:
            retired = path.with_name(f".retired-{path.name}")
            os.replace(path, retired)
            shutil.rmtree(retired, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for path in [*directory.glob(".making-*"), *directory.glob(".retired-*"), *directory.glob(".step-*")]:
        shutil.rmtree(path, ignore_errors=True)


def average(paths: Sequence[Path]) -> Tensors:
    """The mean of several ``model.safetensors``, summed in float64; zeros in all stay exact zeros."""
    assert paths
    total: Dict[str, Tensor] = {}
    dtypes: Dict[str, torch.dtype] = {}
    for path in paths:
        for name, tensor in read_tensors(path, "start the training again in another folder").items():
            dtypes[name] = tensor.dtype
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    return {name: (tensor / len(paths)).to(dtypes[name]) for name, tensor in total.items()}


def _way_out(folder: Path) -> str:
    return f"delete {folder} to go on from the checkpoint before it (or from the start, if there is none)"


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

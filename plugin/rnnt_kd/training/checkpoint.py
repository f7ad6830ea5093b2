"""Checkpoints of a run, and finished systems.

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
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rnnt_kd import atomic
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import read_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.models import build_transducer
from rnnt_kd.training.packed_system import PACKED, read_packed

MODEL, OPTIMIZER, SPARSIFIER, STATE = (
    "model.safetensors",
    "optimizer.safetensors",
    "sparsifier.safetensors",
    "state.json",
)
CONFIG, FINAL = "config.yaml", "model.safetensors"  # in the system's folder
_NAME = re.compile(r"step-(\d+)(-epoch-\d+)?")

Tensors = Dict[str, Tensor]


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
        content = _serialize(tensors)
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
        state = json.loads(state_path.read_text(encoding="utf-8"))
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
        content = _read(path, _way_out(folder))
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


def read_tensors(path: Path, next_step: str = "") -> Tensors:
    """A safetensors file.  Raises UserError when it is missing or damaged."""
    content = _read(path, next_step)
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError):
        raise UserError(path, "damaged or not a safetensors file", "weights written by rnnt_kd", next_step) from None


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file atomically."""
    atomic.write_bytes(path, _serialize(tensors))


def load_weights(model: nn.Module, tensors: Tensors, where: object, next_step: str) -> None:
    """Strict ``load_state_dict``; names and shapes must be the model's.

    Raises:
      UserError: naming the first tensor that differs.
    """
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors:
            raise UserError(where, f"has no tensor '{name}'", "the weights of this model", next_step)
        if name not in own:
            raise UserError(where, f"tensor '{name}' is not of this model", "the weights of this model", next_step)
        if own[name].shape != tensors[name].shape:
            shapes = tuple(tensors[name].shape), tuple(own[name].shape)
            raise UserError(where, f"tensor '{name}' is {shapes[0]}", f"{shapes[1]}", next_step)
    model.load_state_dict(tensors)


def build_model(config: SystemConfig) -> nn.Module:
    """The transducer that ``config`` describes, freshly initialised."""
    model = config.model
    return build_transducer(
        encoder=model.encoder,
        size=model.size,
        encoder_options=dict(model.encoder_options),
        predictor_dim=model.predictor_dim,
        joiner_dim=model.joiner_dim,
        dropout=model.dropout,
        ctc_head=model.ctc_head,
        vocab_size=config.vocab_size,
        blank_id=config.blank_id,
    )


def read_system(system_dir: Path) -> SystemConfig:
    """The configuration of a finished system.  Raises UserError if there is none in the folder."""
    system_dir = Path(system_dir)
    if not (system_dir / CONFIG).exists():
        raise UserError(system_dir, "no trained system here", f"{CONFIG} and {FINAL}", "train it first")
    if not weights_file(system_dir).exists():
        raise UserError(
            system_dir / FINAL, "missing: this system is not trained to the end", "", "run its training again"
        )
    return read_system_config(system_dir / CONFIG)


def weights_file(system_dir: Path) -> Path:
    """``model.safetensors``, or where there is none the packed file (see ``packed_system``)."""
    final, packed = Path(system_dir) / FINAL, Path(system_dir) / PACKED
    return packed if packed.exists() and not final.exists() else final


def load_system(system_dir: Path, device: str = "cpu") -> Tuple[nn.Module, SystemConfig]:
    """A finished system: the transducer in eval mode on ``device``, and its configuration.

    Raises:
      UserError: the folder holds no finished system, or its files do not belong together.
    """
    config = read_system(system_dir)
    path, next_step = weights_file(system_dir), f"move {system_dir} away and train it again"
    tensors = read_packed(path) if path.name == PACKED else read_tensors(path, next_step)
    model = build_model(config)
    load_weights(model, tensors, path, next_step)
    return model.to(device).eval(), config


def _serialize(tensors: Tensors) -> bytes:
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def _read(path: Path, next_step: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(path, "missing", "", next_step) from None


def _way_out(folder: Path) -> str:
    return f"delete {folder} to go on from the checkpoint before it (or from the start, if there is none)"


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

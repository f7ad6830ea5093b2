"""What a trained system is on disk: its folder's files, how they are read, checked and written.

config.yaml         every setting, resolved (config.SystemConfig)
model.safetensors   weights, or model.packed.safetensors (systems.packed)
system.json         size and sparsity; the mark of a finished training, written last
.training.record.json   what it was made of, and the digests of the three, which whoever reads them compares
                        (rnnt_kd.record); a folder from elsewhere has none
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rnnt_kd import atomic
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import read_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.models import build_transducer
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.record import file_digest, verify
from rnnt_kd.sparsity.structures import unit_kinds
from rnnt_kd.systems.packed import PACKED, packed_digest, read_packed

CONFIG, FINAL, SYSTEM = "config.yaml", "model.safetensors", "system.json"
LEFT_OUT = ".left_out.json"  # beside cuts
TRAINING = "training"  # the record of a system
MEMBERS = "members"  # in the folder of a family, its sparser members
DECODING_ONLY = "decoding_only"  # key of system.json: imported from an export, which lacks the heads of training

Tensors = Dict[str, Tensor]


def load_system(system_dir: Path, device: str = "cpu") -> Tuple[Transducer, SystemConfig]:
    """A finished system: the transducer in eval mode on ``device``, and its configuration.

    Raises:
      UserError: the folder holds no finished system, or its files do not belong together.
    """
    config = read_system(system_dir)
    tensors = read_weights(system_dir)
    _check_sizes(config, tensors, Path(system_dir) / CONFIG)
    model = build_model(config)
    load_weights(model, tensors, weights_file(system_dir), _again(system_dir))
    return model.to(device).eval(), config


def read_weights(system_dir: Path) -> Tensors:
    """The weights of a finished system.  Raises UserError: missing, damaged, or not those that its record holds."""
    path = weights_file(system_dir)
    is_packed = path.name == PACKED
    tensors = read_packed(path) if is_packed else read_tensors(path, _again(system_dir))
    _verify(path, FINAL, weights_digest(system_dir))
    return tensors


def read_system(system_dir: Path) -> SystemConfig:
    """The configuration of a finished system.

    Raises:
      UserError: there is none in the folder, or its files are not those that were written.
    """
    system_dir = Path(system_dir)
    if not (system_dir / CONFIG).exists():
        raise UserError(system_dir, "no trained system here", f"{CONFIG} and {FINAL}", "train it first")
    if not weights_file(system_dir).exists():
        raise UserError(
            system_dir / FINAL, "missing: this system is not trained to the end", "", "run its training again"
        )
    for name in (CONFIG, SYSTEM):
        _verify(system_dir / name, name)
    return read_system_config(system_dir / CONFIG)


def _verify(path: Path, name: str, digest: str = "") -> None:
    """``path``: of the file that a record calls ``name``; a member's stands in the record of its family."""
    system_dir = path.parent
    family = system_dir.parent.parent if system_dir.parent.name == MEMBERS else system_dir
    output = (system_dir / name).relative_to(family).as_posix()
    verify(path, TRAINING, _again(family), output, digest, family)


def check_bpe(config: SystemConfig, tokenizer, system_dir: Path, bpe_dir: Path) -> None:
    """Raises UserError where the system was trained with another BPE model or blank id than ``tokenizer`` has."""
    if config.bpe_checksum != tokenizer.checksum:
        expected = f"that of {system_dir} (checksum {config.bpe_checksum[:12]})"
        raise UserError(bpe_dir, f"another BPE model (checksum {tokenizer.checksum[:12]})", expected)
    if config.blank_id != tokenizer.blank_id:
        problem, expected = f"blank_id is {config.blank_id}", f"{tokenizer.blank_id}, as in {bpe_dir}"
        raise UserError(Path(system_dir) / CONFIG, problem, expected)


def weights_file(system_dir: Path) -> Path:
    """``model.safetensors``, or where there is none the packed file (see ``packed_system``)."""
    final, packed = Path(system_dir) / FINAL, Path(system_dir) / PACKED
    return packed if packed.exists() and not final.exists() else final


def weights_digest(system_dir: Path) -> str:
    """SHA-256 of ``model.safetensors``, packed or not.  Raises UserError: damaged packed weights."""
    path = weights_file(system_dir)
    return packed_digest(path) if path.name == PACKED else file_digest(path)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all names, types, shapes and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def decoding_inputs(
    system_dir: Path, bpe_dir: Path, cuts: Path, digest: Callable[[Path], str] = file_digest
) -> Dict[str, str]:
    """What the decoding of a test set is made of, for its record; the weights may have been packed since."""
    left_out = cuts.with_name(cuts.name.replace(".jsonl.gz", "") + LEFT_OUT)
    weights = weights_file(system_dir)
    paths = {"configuration": system_dir / CONFIG, "BPE model": bpe_dir / "bpe.model", "cuts": cuts}
    paths["what stage 1 left out"] = left_out
    digests = {name: digest(path) for name, path in paths.items()}
    return {**digests, "weights": packed_digest(weights) if weights.name == PACKED else digest(weights)}


def build_model(config: SystemConfig) -> Transducer:
    """The transducer that ``config`` describes, freshly initialised."""
    return build_transducer(**vars(config.model), vocab_size=config.vocab_size, blank_id=config.blank_id)


def members(config: SystemConfig) -> List[SystemConfig]:
    """Each member of a family as a system of its own, the densest first; of any other system, itself alone."""
    if config.sparsity is None or not config.sparsity.nested:
        return [config]  # of a member, too
    targets = sorted([*config.sparsity.nested, config.sparsity.target])
    names = [config.name, *(f"{config.name}-{target:g}" for target in targets[1:])]
    zeros = [replace(config.sparsity, target=target, nested=[]) for target in targets]
    return [replace(config, name=name, sparsity=sparsity) for name, sparsity in zip(names, zeros)]


def member_dirs(config: SystemConfig) -> List[Path]:
    """Where ``members(config)`` are, in the folder of the system: the first in itself."""
    sparsities = [one.sparsity.target for one in members(config)[1:] if one.sparsity is not None]
    return [Path(), *(Path(MEMBERS) / f"{sparsity:g}" for sparsity in sparsities)]


def as_cut(config: SystemConfig, tensors: Mapping[str, Tensor], member: int = 0) -> SystemConfig:
    """``members(config)[member]`` with the widths that ``tensors``, its weights, have once units are cut out."""
    config = members(config)[member]
    kinds, model = unit_kinds(config.sparsity.structure) if config.sparsity is not None else (), config.model
    if set(kinds) - {"joiner", "predictor"}:
        encoder: Any = build_model(config).encoder
        of_encoder = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("encoder.")}
        model = replace(model, encoder_options={**model.encoder_options, **encoder.options_of(of_encoder)})
    if "joiner" in kinds:
        model = replace(model, joiner_dim=tensors["joiner.output_linear.weight"].size(1))
    if "predictor" in kinds:
        model = replace(model, predictor_dim=tensors["predictor.embedding.weight"].size(1))
    return replace(config, model=model)


def _check_sizes(config: SystemConfig, tensors: Tensors, where: Path) -> None:
    """Raises UserError where the configuration asks for a size that no weight has, before such a model is built."""
    most = max(1000, *(size for tensor in tensors.values() for size in tensor.shape))
    options = {} if config.model.encoder == "external" else config.model.encoder_options
    values = {**vars(config.model), **options, "vocab_size": config.vocab_size}
    gone = ("feedforward_dim",) if "layer_widths" in values else ()
    for key in ("chunk_frames", "left_frames", *gone):  # sizes of no weight
        values.pop(key, None)
    for key, value in values.items():
        rows = value if isinstance(value, list) else [value]
        for number in (number for row in rows for number in (row if isinstance(row, list) else [row])):
            if isinstance(number, int) and number > most:
                expected = f"at most {most}, the largest size of its weights"
                raise UserError(where, f"{key}: {value}", expected, "restore it")
    layers = values.get("num_layers")
    if isinstance(layers, int) and layers > len(tensors):  # each has some
        raise UserError(where, f"num_layers: {layers}", f"as {len(tensors)} tensors have", "restore it")


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


def read_tensors(path: Path, next_step: str = "") -> Tensors:
    """A safetensors file.  Raises UserError when it is missing or damaged."""
    content = read_bytes(path, next_step)
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise UserError(path, "damaged or not a safetensors file", "weights written by rnnt_kd", next_step) from None


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file atomically."""
    atomic.write_bytes(path, serialize(tensors))


def write_system(system_dir: Path, values: Dict[str, Any]) -> None:
    """``system.json``, the mark of a finished system: written last."""
    atomic.write_json(system_dir / SYSTEM, values)


def refuse_decoding_only(teacher_dir: Path) -> None:
    """Raises UserError where no training should learn from the folder.

    It was made from an export (its training heads are zeros), or its weights are packed (caches and students
    know a teacher by the checksum of its model.safetensors).
    """
    if (Path(teacher_dir) / PACKED).exists() and not (Path(teacher_dir) / "model.safetensors").exists():
        next_step = f"python -m rnnt_kd.bin.pack_weights {teacher_dir} --unpack"
        raise UserError(teacher_dir, "its weights are packed", "model.safetensors of a teacher", next_step)
    try:
        imported = parse_json((Path(teacher_dir) / SYSTEM).read_text(encoding="utf-8")).get(DECODING_ONLY)
    except (OSError, ValueError, AttributeError):
        return
    if imported:
        problem = "was imported from an export, which lacks the heads that only training uses"
        raise UserError(teacher_dir, problem, "a trained system as teacher", "give the folder of its training")


def _again(system_dir: Path) -> str:
    return f"move {system_dir} away and train it again"


def serialize(tensors: Tensors) -> bytes:
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )


def read_bytes(path: Path, next_step: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(path, "missing", "", next_step) from None

"""``model.json``: what an export is, where it comes from, and the checksums that hold it together.

    format, format_version      system, role, streaming, weights, sparse
    static                      feature_frames, encoder_frames: every size is a number, the batch 1; null: any sizes
    vocab_size, context_size, blank_id, unk_id, joiner_dim, subsampling_factor, features
    params, nonzero_params      of the exported parameters; ``sparsity`` of those that training sparsified,
                                ``sparsity_total`` of all: counted, never a target
    blank_penalty               value: what was taken off the joiner's bias of blank; bias: that before; errors: of each
                                penalty that was tried on the development set
    wer                         the scores of the system, as scoring wrote them (an empty list: not scored)
    training_config, training_config_sha256, bpe_sha256
    files                       name -> bytes, sha256
    parameters                  name in the transducer -> file, shape, sha256 of its float32 values
    check                       what the verification measured
    sha256                      of all that stands above

Everything is written once, at the end of an export.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Literal, Mapping, Optional, Sequence

import torch
from pydantic import ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import as_plain_dict
from rnnt_kd.data.audio_format import FEATURE_DIM, SAMPLING_RATE
from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import TRAINING_ONLY, stored
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.record import file_digest, json_digest
from rnnt_kd.scoring.results import read_json
from rnnt_kd.sparsity.report import measured_sparsity, select_parameters, sparsity_report
from rnnt_kd.sparsity.structures import unit_kinds
from rnnt_kd.systems.store import check_bpe

FORMAT, FORMAT_VERSION = "rnnt_kd export", 1
NAME = "model.json"
ONNX_FILES = ("encoder.onnx", "decoder.onnx", "joiner.onnx")
FILES = (*ONNX_FILES, "tokens.txt", "bpe.model", "bpe.vocab", "README.md")  # beside model.json
FEATURES = {  # what sherpa-onnx computes by itself for this kind of model
    "type": "log-mel filter bank",
    "num_bins": FEATURE_DIM,
    "sampling_rate": SAMPLING_RATE,
    "frame_length_ms": 25,
    "frame_shift_ms": 10,
    "window": "povey",
    "preemphasis": 0.97,
    "dither": 0,
    "snip_edges": False,
    "low_freq": 20,
    "high_freq": -400,
    "samples": "in [-1, 1]",
}


_STRICT = ConfigDict(strict=True)
_File = create_model("_File", __config__=_STRICT, sha256=(str, ...))
_FLOAT32: Any = (float, Field(ge=torch.finfo(torch.float32).min, le=torch.finfo(torch.float32).max))  # nor NaN
_Lowered = create_model("_Lowered", __config__=_STRICT, value=_FLOAT32, bias=_FLOAT32)
_Static = create_model("_Static", __config__=_STRICT, feature_frames=(int, ...), encoder_frames=(int, ...))
_SHAPE: Dict[str, Any] = {"file": (Literal[ONNX_FILES], ...), "shape": (List[int], ...), "sha256": (str, ...)}
_Parameter = create_model("_Parameter", __config__=_STRICT, **_SHAPE)
_FIELDS: Dict[str, Any] = {  # what its readers take from model.json
    **dict.fromkeys(("system", "role", "weights", "training_config_sha256", "bpe_sha256"), (str, ...)),
    **dict.fromkeys(("vocab_size", "blank_id", "joiner_dim", "params", "nonzero_params"), (int, ...)),
    **dict.fromkeys(("sparsity", "sparsity_total"), (float, ...)),
    "streaming": (bool, ...),
    "static": (Optional[_Static], None),  # not in older ones
    "training_config": (Dict[str, Any], ...),
    "blank_penalty": (_Lowered, None),  # not in older ones
    "parameters": (Dict[str, _Parameter], ...),  # type: ignore[valid-type]
    "files": (Dict[Literal[FILES], _File], ...),  # type: ignore[valid-type]
}
_Manifest = create_model("_Manifest", __config__=_STRICT, **_FIELDS)
_WER_KEYS = ("test_set", "search", "beam", "wer", "errors", "words", "ins", "del", "sub", "utterances", "ci95")
_AGAIN = "export the system again"


def describe_system(model: Transducer, config: SystemConfig) -> Dict[str, Any]:
    """The part that the trained system decides."""
    exported = {name: value for name, value in model.named_parameters() if not name.startswith(TRAINING_ONLY)}
    counts = sparsity_report(model, exported)
    sparsity = 0.0
    if config.sparsity is not None and config.sparsity.target > 0 and not unit_kinds(config.sparsity.structure):
        chosen = select_parameters(model, config.sparsity.include, config.sparsity.exclude)
        sparsity = measured_sparsity(sparsity_report(model, chosen))
    return {
        "system": config.name,
        "role": config.role,
        "vocab_size": config.vocab_size,
        "context_size": model.predictor.context_size,
        "blank_id": config.blank_id,
        "joiner_dim": model.joiner.output_linear.in_features,
        "subsampling_factor": model.encoder.subsampling_factor,
        "features": FEATURES,
        "params": sum(total for _, total in counts.values()),
        "nonzero_params": sum(nonzero for nonzero, _ in counts.values()),
        "sparsity": sparsity,
        "sparsity_total": measured_sparsity(counts),
        "training_config": as_plain_dict(config),
        "training_config_sha256": json_digest(as_plain_dict(config)),
        "bpe_sha256": config.bpe_checksum,
    }


def describe_parameters(model: Transducer, files: Mapping[str, Sequence[str]]) -> Dict[str, Any]:
    """Name -> file, shape, checksum.  ``files``: ONNX file -> the parameters it holds."""
    where = {name: file for file, names in files.items() for name in names}
    state = model.state_dict()
    exported = [name for name in stored(state) if not name.startswith(TRAINING_ONLY)]
    assert set(exported) == set(where), sorted(set(exported) ^ set(where))
    return {
        name: {"file": where[name], "shape": list(state[name].shape), "sha256": tensor_digest(state[name])}
        for name in exported
    }


def scores_of(decode_dirs: Sequence[Path]) -> List[Dict[str, Any]]:
    """The ``wer-*.json`` of some decode folders, without speakers."""
    found = [path for folder in decode_dirs for path in sorted(Path(folder).glob("wer-*.json"))]
    return [{key: values.get(key) for key in _WER_KEYS} for values in map(read_json, found)]


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of the values, row by row, in their own precision."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``model.json``: ``values``, the checksums of the files beside it, and its own."""
    paths = {name: Path(folder) / name for name in FILES}
    files = {name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for name, path in paths.items()}
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **values, "files": files}
    manifest.pop("sha256", None)  # of an older one
    manifest["sha256"] = json_digest(json.loads(json.dumps(manifest)))
    atomic.write_json(Path(folder) / NAME, manifest)


def read_manifest(folder: Path, check_files: bool = True) -> Dict[str, Any]:
    """Read ``model.json`` and hold every file against it.

    Raises:
      UserError: no such folder or file, another format or version, a file that is missing or was changed.
    """
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        problem = "no export here" if folder.is_dir() else "no such folder"
        raise UserError(folder, problem, f"a folder with {NAME}", "write one with python -m rnnt_kd.bin.export")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(path, f"format {manifest.get('format')!r}", repr(FORMAT), _AGAIN)
    if manifest.get("format_version") != FORMAT_VERSION:
        problem = f"format version {manifest.get('format_version')!r}"
        raise UserError(path, problem, str(FORMAT_VERSION), "use the rnnt_kd that wrote it, or export again")
    own = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != json_digest(own):
        raise UserError(path, "was changed since it was written", "the checksum it holds", _AGAIN)
    try:
        _Manifest.model_validate(manifest)
        missing = {*FILES} - {*manifest["files"], "bpe.vocab"}  # which older exports have not
    except ValidationError as failed:
        error = failed.errors(include_url=False)[0]
        place = ".".join(map(str, error["loc"]))
        raise UserError(path, f"{place}: {error['msg']}", "what an export has there", _AGAIN) from None
    if missing:
        raise UserError(path, f"has no checksum of {min(missing)}", "those of all files", _AGAIN)
    for name in manifest["files"] if check_files else ():
        digest, written = file_digest(folder / name), manifest["files"][name]["sha256"]
        if digest == "absent":
            raise UserError(folder / name, "missing", "a whole export", _AGAIN)
        if digest != written:
            problem = f"was changed (SHA-256 {digest[:12]}...)"
            raise UserError(folder / name, problem, f"SHA-256 {written[:12]}... of {NAME}", _AGAIN)
    return manifest


def check_exportable(config: SystemConfig, tokenizer, model: Transducer, system_dir: Path, bpe_dir: Path) -> None:
    """Raises UserError where sherpa-onnx could not run the system, or system and BPE model do not belong together."""
    check_bpe(config, tokenizer, system_dir, bpe_dir)  # whose blank is 0: sherpa-onnx knows no other
    where = system_dir / "config.yaml"
    if config.vocab_size != tokenizer.vocab_size:
        raise UserError(where, f"vocab_size is {config.vocab_size}", f"{tokenizer.vocab_size}, the pieces of {bpe_dir}")
    if model.predictor.context_size != 2:
        problem = f"the predictor sees {model.predictor.context_size} labels"
        raise UserError(where, problem, "2: the start context of sherpa-onnx is [-1, 0]")
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(system_dir / "model.safetensors", f"'{name}' holds NaN or infinity", "finite weights")

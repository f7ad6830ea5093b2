"""An export -> a system's folder again, to decode with or to look at.

Every weight that decoding uses comes back bit for bit, or nothing does.  The heads that only training
uses are in no export: they come back as zeros, and ``system.json`` says ``decoding_only``, so that no
training takes the folder for a teacher.
"""

import json
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping

import numpy as np
import onnx
import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.export.blank_penalty import BIAS
from rnnt_kd.export.check_files import verify_static
from rnnt_kd.export.graphs import TRAINING_ONLY, stored
from rnnt_kd.export.model_json import NAME, ONNX_FILES, tensor_digest
from rnnt_kd.export.onnx_file import AGAIN, load_onnx, run, transposed_in
from rnnt_kd.record import Record, json_digest
from rnnt_kd.systems.store import (
    CONFIG,
    DECODING_ONLY,
    FINAL,
    SYSTEM,
    TRAINING,
    build_model,
    load_weights,
    write_system,
    write_tensors,
)


def import_export(folder: Path, system_dir: Path) -> Dict[str, Any]:
    """Make ``system_dir`` from the export in ``folder``; returns the export's ``model.json``.

    Raises:
      UserError: ``verify_static`` finds a fault; the weights are rounded, which cannot be undone;
        the configuration, the BPE model or any weight is not what ``model.json`` holds; ``system_dir`` is not empty.
    """
    folder, system_dir = Path(folder), Path(system_dir)
    if system_dir.exists() and (not system_dir.is_dir() or any(system_dir.iterdir())):
        raise UserError(system_dir, "is there already", "a new folder", "choose another --system-dir")
    manifest = verify_static(folder)
    if manifest["weights"] != "float32":
        problem = f"its weights are {manifest['weights']}: what was rounded cannot be undone"
        raise UserError(folder, problem, "an export with float32 weights", "export the system in float32, or sparse")
    if manifest["files"]["bpe.model"]["sha256"] != manifest["bpe_sha256"]:
        raise UserError(folder / "bpe.model", "is not the one the system was trained with", manifest["bpe_sha256"])
    with atomic.new_dir(system_dir) as making:
        config = _config(manifest, folder, making)
        model = build_model(config)
        tensors = _weights(folder, manifest)
        state = model.state_dict()
        heads = [name for name in state if name.startswith(TRAINING_ONLY)]
        absent = [*heads, *({*state} - {*stored(state)})]
        tensors.update({name: torch.zeros_like(state[name]) for name in absent})
        load_weights(model, tensors, folder, AGAIN)
        if "blank_penalty" in manifest:
            tensors[BIAS][manifest["blank_id"]] = manifest["blank_penalty"]["bias"]
        write_system_config(making / CONFIG, config)
        write_tensors(making / FINAL, tensors)
        write_system(making, _facts(manifest, folder, sorted(heads)))
        Record(making, TRAINING, {"imported": manifest["sha256"]}, {}, [CONFIG, FINAL, SYSTEM]).finish()
    return manifest


def read_parameters(folder: Path, names: Mapping[str, Iterable[str]]) -> Dict[str, np.ndarray]:
    """The values of parameters by name, as the transducer shapes them; sparse or packed ones as the graph unpacks them.

    Args:
      names: ONNX file -> the parameters to read from it.
    Raises: UserError: the file has no such value.
    """
    found: Dict[str, np.ndarray] = {}
    for file, wanted in names.items():
        model, wanted = load_onnx(folder / file), list(wanted)
        transposed, graph = {*transposed_in(folder / file, model)}, model.graph
        there = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        there.update(name for node in graph.node for name in node.output)
        for name in sorted({*wanted} - there):
            raise UserError(folder / file, f"has no weight '{name}'", f"what {NAME} lists", AGAIN)
        del graph.output[:]
        for index, name in enumerate(wanted):
            graph.node.append(onnx.helper.make_node("Identity", [name], [f"out:{index}"]))
            graph.output.append(onnx.helper.make_tensor_value_info(f"out:{index}", onnx.TensorProto.FLOAT, None))
        feeds = {}  # anything: the weights do not depend on it
        for value in graph.input:
            shape = [size.dim_value if size.HasField("dim_value") else 9 for size in value.type.tensor_type.shape.dim]
            element = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feeds[value.name] = np.ones(shape, dtype=element)
        values = zip(wanted, run(folder / file, feeds, model.SerializeToString()), strict=True)
        found.update({name: value.T if name in transposed else value for name, value in values})
    return found


def _config(manifest: Dict[str, Any], folder: Path, making: Path) -> SystemConfig:
    values = manifest["training_config"]
    if json_digest(values) != manifest["training_config_sha256"]:
        raise UserError(folder / NAME, "training_config is not what its checksum says", "", AGAIN)
    atomic.write_text(making / CONFIG, json.dumps(values))  # JSON is YAML
    config = read_system_config(making / CONFIG)
    for key in ("vocab_size", "blank_id"):
        if getattr(config, key) != manifest[key]:
            raise UserError(folder / NAME, f"training_config.{key} is {getattr(config, key)}", f"{manifest[key]}")
    return config


def _weights(folder: Path, manifest: Dict[str, Any]) -> Dict[str, Tensor]:
    names: Dict[str, List[str]] = {file: [] for file in ONNX_FILES}
    for name, facts in manifest["parameters"].items():
        names[facts["file"]].append(name)
    tensors = {}
    for name, value in read_parameters(folder, names).items():
        facts = manifest["parameters"][name]
        tensor = torch.from_numpy(np.array(value, order="C"))
        if list(tensor.shape) != facts["shape"]:
            problem = f"'{name}' is {tuple(tensor.shape)}"
            raise UserError(folder / facts["file"], problem, f"{tuple(facts['shape'])}, as {NAME} says", AGAIN)
        if tensor_digest(tensor) != facts["sha256"]:
            raise UserError(folder / facts["file"], f"'{name}' holds other values than {NAME} says", "", AGAIN)
        tensors[name] = tensor
    return tensors


def _facts(manifest: Dict[str, Any], folder: Path, heads: List[str]) -> Dict[str, Any]:
    kept = ("system", "role", "params", "nonzero_params", "sparsity", "sparsity_total")
    return {
        **{key: manifest[key] for key in kept},
        "kd": manifest["training_config"].get("kd") is not None,
        "bpe_checksum": manifest["bpe_sha256"],
        "train_seconds": None,
        "imported_from": str(folder),
        DECODING_ONLY: True,
        "zeros": heads,
    }

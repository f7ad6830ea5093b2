"""Small systems with random weights that say something on noise, and what tests do with their exports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from onnx import numpy_helper

from rnnt_kd.config import ModelConfig, SparsityConfig, SystemConfig
from rnnt_kd.config_io import write_system_config
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.export.export_system import export_system
from rnnt_kd.export.model_json import read_manifest, write_manifest
from rnnt_kd.export.onnx_file import multiplies_integers
from rnnt_kd.export.size_table import sparsify
from rnnt_kd.systems.store import build_model, write_tensors
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

TEXTS = {"a-1": "one two", "a-2": "two", "b-1": "three ONE", "b-2": "one", "b-3": "", "b-4": "two two three"}
OPTIONS = {"num_layers": 2, "dim": 32, "feedforward_dim": 48}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """bpe/, data/ (six utterances of noise, 0.3 to 2 s), systems/dense, systems/sparse."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    generator = np.random.default_rng(0)
    audio = {key: folder / f"{key}.wav" for key in TEXTS}
    for index, path in enumerate(audio.values()):
        loud = 0.02 * 4.0 ** (index % 3) * (1 + np.sin(np.arange(4800 + 5500 * index) / 2500.0))
        soundfile.write(path, loud * generator.normal(size=len(loud)), 16000)
    write_data_dir(folder / "data", wav_scp=audio, text=TEXTS, utt2spk={key: key[0] for key in TEXTS})
    train_bpe([text for text in TEXTS.values() if text], 16, folder / "bpe")
    make_system(folder / "systems" / "dense", folder / "bpe")
    make_system(folder / "systems" / "sparse", folder / "bpe", sparsity=0.9, seed=2)
    return folder


def make_system(
    folder: Path, bpe_dir: Path, *, encoder: str = "conformer", sparsity: float = 0.0, seed: int = 1, **options
) -> Path:
    """Random weights; the labels are made likely enough to be recognised now and then."""
    tokenizer = Tokenizer.load(bpe_dir)
    model_config = ModelConfig(encoder=encoder, encoder_options={**OPTIONS, **options}, predictor_dim=24, joiner_dim=24)
    config = SystemConfig(
        name=folder.name,
        role="sparse_student" if sparsity else "teacher",
        model=model_config,
        sparsity=SparsityConfig(target=sparsity) if sparsity else None,
        vocab_size=tokenizer.vocab_size,
        bpe_checksum=tokenizer.checksum,
    )
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases as no fresh model has them
                parameter.add_(0.2 * torch.randn(parameter.shape))
        model.joiner.output_linear.weight.mul_(4)
        model.joiner.output_linear.bias[:2] -= 1.0
    if sparsity:
        sparsify(model, sparsity, "unstructured")
    folder.mkdir(parents=True)
    write_system_config(folder / "config.yaml", config)
    write_tensors(folder / "model.safetensors", model.state_dict())
    (folder / "system.json").write_text(json.dumps({"system": folder.name, "sparsity": sparsity}))
    return folder


def export(workplace: Path, system: str, out: str = "", **options) -> Path:
    """``systems/<system>`` (or a folder), exported into ``out/<system>`` (or ``out``)."""
    out = workplace / "out" / (out or system)
    export_system(workplace / "systems" / system, workplace / "bpe", out, say=lambda line: None, **options)
    return out


def recognised(model, workplace: Path, search):
    """(id, text) of each of data/, by our decoder, one utterance at a time; features are those of stage 1, not Lhotse's."""
    tokenizer = Tokenizer.load(workplace / "bpe")
    for item in read_speech(workplace / "data"):
        x = filter_banks(item.samples)[None]
        with torch.no_grad():
            encoder_out, lens = model.encode(x, torch.tensor([x.shape[1]]))
        yield item.id, tokenizer.decode(search.search(model, encoder_out, lens, beam=4)[0][0].tokens)


def rewrite(folder: Path, **changed) -> None:
    """A new ``model.json`` with the checksums of what is there now: the checks behind them are reached."""
    write_manifest(folder, {**read_manifest(folder, check_files=False), **changed})


def change_model(path: Path, change) -> None:
    """``change`` an ONNX file; a new ``model.json`` beside it must be written apart."""
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)


def change_weights(path: Path, change, name: str = "") -> None:
    """Weights of an ONNX file -> what ``change`` makes of (a copy of) them: all, or the one of that name."""

    def changed(model):
        for tensor in model.graph.initializer:
            if name in ("", tensor.name):
                values = change(tensor.name, numpy_helper.to_array(tensor).copy())
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    change_model(path, changed)


right_integers = pytest.mark.skipif(
    not multiplies_integers(), reason="this onnxruntime multiplies 8-bit integers wrongly on this CPU"
)


def one_node_file(path: Path, operator: str, weight, inputs, output, name: str = "w", **attributes) -> Path:
    """y = operator(x, weight), with the sizes of x and y."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x", name], ["y"], **attributes)],
        "one",
        [value("x", onnx.TensorProto.FLOAT, inputs)],
        [value("y", onnx.TensorProto.FLOAT, output)],
        [numpy_helper.from_array(weight, name)],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7), path)
    return path


def loaded_operators(path: Path) -> list:
    """Operators of the graph that onnxruntime runs: what is left when a file has been loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.optimized_model_filepath = str(path.with_name(f"loaded {path.name}"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def run_readme(folder: Path, samples, hotwords: str = "") -> str:
    """What the Python of an export's README prints of ``samples`` in speech.wav, and with hot words."""
    soundfile.write(folder / "speech.wav", samples, 16000)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    if hotwords:
        (folder / "hotwords.txt").write_text(hotwords)
        assert "# hotwords_file=" in code
        code = code.replace("# hotwords_file=", "hotwords_file=")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

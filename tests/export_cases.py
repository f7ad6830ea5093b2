"""Small systems with random weights that say something on noise, and what tests do with their exports."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from rnnt_kd.config import ModelConfig, SparsityConfig, SystemConfig
from rnnt_kd.config_io import write_system_config
from rnnt_kd.export.export_system import export_system
from rnnt_kd.export.model_json import read_manifest, write_manifest
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.systems.store import build_model, write_tensors
from rnnt_kd.text.tokenizer import Tokenizer

TEXTS = {"a-1": "one two", "a-2": "two", "b-1": "three ONE", "b-2": "one", "b-3": "", "b-4": "two two three"}
OPTIONS = {"num_layers": 2, "dim": 32, "feedforward_dim": 48}


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
        sparsity=SparsityConfig() if sparsity else None,
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
        settings = config.sparsity
        Sparsifier(
            model,
            final_sparsity=sparsity,
            begin_step=0,
            end_step=1,
            update_every_steps=1,
            structure="unstructured",
            scope="per-layer",
            include=settings.include,
            exclude=settings.exclude,
        ).step(1)
    folder.mkdir(parents=True)
    write_system_config(folder / "config.yaml", config)
    write_tensors(folder / "model.safetensors", model.state_dict())
    (folder / "system.json").write_text(json.dumps({"system": folder.name, "sparsity": sparsity}))
    return folder


def export(workplace: Path, system: Path, out: Path, **options) -> Path:
    export_system(system, workplace / "bpe", out, say=lambda line: None, **options)
    return out


def rewrite(folder: Path, **changed) -> None:
    """A new ``model.json`` with the checksums of what is there now: the checks behind them are reached."""
    write_manifest(folder, {**read_manifest(folder, check_files=False), **changed})


def error_line(capsys, command, argv) -> str:
    """The one line of a command that ends with status 1."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command([str(part) for part in argv])
    text = capsys.readouterr().err
    assert ended.value.code == 1 and text.startswith("error: ") and text.count("\n") == 1, text
    return text


def run_readme(folder: Path, samples) -> str:
    """What the Python of an export's README prints of ``samples`` in speech.wav."""
    soundfile.write(folder / "speech.wav", samples, 16000)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

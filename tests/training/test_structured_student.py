"""Promises of --structure: whole blocks are zero in what is trained, and what does not fit is said at once."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rnnt_kd.bin import train as command
from rnnt_kd.config_io import read_system_config


@pytest.mark.parametrize("structure, sparsity, block", [("4x1", 0.75, (4, 1)), ("2:4", 0.5, (1, 4))])
def test_the_averaged_weights_have_whole_blocks(tone_corpus, teacher_dir, tmp_path, structure, sparsity, block):
    folder = tmp_path / "exp" / "trial" / "x" / "seed1"
    zeros = f"{{target: {sparsity}, structure: '{structure}'}}"
    entry = f"{{role: sparse_student, sparsity: {zeros}, training: {{epochs: 2}}}}"
    command.main(tone_corpus.arguments(tmp_path / "exp", entry, teacher_dir))
    assert read_system_config(folder / "config.yaml").sparsity.structure == structure
    assert json.loads((folder / "system.json").read_text())["sparsity"] == pytest.approx(sparsity, abs=0.02)
    weight = load_file(folder / "model.safetensors")["encoder.layers.0.feedforward1.linear_in.weight"]
    rows, columns = block
    cells = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns) != 0
    in_a_block = cells.sum((1, 3))
    allowed = (0, rows * columns) if ":" not in structure else (2,)
    assert torch.isin(in_a_block, torch.tensor(allowed)).all()
    assert float((weight == 0).double().mean()) == pytest.approx(sparsity, abs=4 / weight.numel())


@pytest.mark.parametrize("zeros, message", [
    ("{target: 0.5, structure: block}", "unstructured, 1x16, 16x1, 4x4, 16x16, 2:4"),
    ("{target: 0.9, structure: '2:4'}", "expected 0.5"),
    ("{target: 0.5, structure: 4x4, scope: global}", "scope per-layer"),
    ("{structure: 16x1}", "sparsity.target"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(tone_corpus, teacher_dir, tmp_path, capsys, zeros, message):
    with pytest.raises(SystemExit) as ended:
        command.main(tone_corpus.arguments(tmp_path, f"{{role: sparse_student, sparsity: {zeros}}}", teacher_dir))
    said = capsys.readouterr().err
    assert ended.value.code == 1 and message in said, said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "trial" / "x").exists()

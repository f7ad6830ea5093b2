"""Promise of structures: whole blocks are zero in what is trained.  What does not fit is in test_train.py."""

import pytest
import torch
from safetensors.torch import load_file
from training_cases import system_json

from rnnt_kd.bin import train as command
from rnnt_kd.config_io import read_system_config


@pytest.mark.parametrize("structure, sparsity, block", [("4x1", 0.75, (4, 1)), ("2:4", 0.5, (1, 4))])
def test_the_averaged_weights_have_whole_blocks(tone_corpus, teacher_dir, tmp_path, structure, sparsity, block):
    folder = tmp_path / "exp" / "trial" / "x" / "seed1"
    zeros = f"{{target: {sparsity}, structure: '{structure}'}}"
    entry = f"{{role: sparse_student, sparsity: {zeros}, training: {{epochs: 2}}}}"
    command.main(tone_corpus.arguments(tmp_path / "exp", entry, teacher_dir))
    assert read_system_config(folder / "config.yaml").sparsity.structure == structure
    assert system_json(folder)["sparsity"] == pytest.approx(sparsity, abs=0.02)
    weight = load_file(folder / "model.safetensors")["encoder.layers.0.feedforward1.linear_in.weight"]
    rows, columns = block
    cells = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns) != 0
    in_a_block = cells.sum((1, 3))
    allowed = (0, rows * columns) if ":" not in structure else (2,)
    assert torch.isin(in_a_block, torch.tensor(allowed)).all()
    assert float((weight == 0).double().mean()) == pytest.approx(sparsity, abs=4 / weight.numel())

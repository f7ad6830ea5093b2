"""A student that learns with weights of few bits: they are what is saved, and an int4 export loses nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training_cases import interrupted_after, metrics, system_json

from rnnt_kd.bin import export
from rnnt_kd.bin import train as command
from rnnt_kd.config import RecipeConfig
from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.rounding import rounded
from rnnt_kd.systems.compose import compose

KINDS = [
    {"sparsity": {"target": 0.8}, "training": {"weight_bits": 4}, "kd": {"ranges": "student"}},
    {"training": {"weight_bits": 4, "averaging": "ema"}},
    {"sparsity": {"target": 0.5}, "training": {"weight_bits": 8}},
    {"sparsity": {"target": 0.5, "structure": "heads+ffn+channels+joiner"}, "training": {"weight_bits": 4}},
]


def train(tone_corpus, teacher_dir, exp, values):
    entry = json.dumps({"role": "sparse_student", **values})
    command.main.__wrapped__(tone_corpus.arguments(exp, entry, teacher_dir))
    return exp / "trial" / "x" / "seed1"


@pytest.mark.parametrize("values", KINDS, ids=["sparse", "dense, EMA", "8 bits", "units"])
def test_its_weights_are_rounded_and_move_and_a_resumed_run_ends_with_the_same_bits(
    values, tone_corpus, teacher_dir, tmp_path
):
    folder = train(tone_corpus, teacher_dir, tmp_path / "whole", values)
    weights, teacher = (load_file(place / "model.safetensors") for place in (folder, teacher_dir))
    bits = values["training"]["weight_bits"]
    for name, value in weights.items():
        if value.dim() > 1 and bits == 4:
            assert len(value[0].unique()) <= 15, name
        assert torch.allclose(rounded(value, bits), value, rtol=0 if bits == 4 else 1e-6, atol=0), name
        same_shape = value.shape == teacher[name].shape  # else units are cut out
        assert not same_shape or not torch.equal(value, rounded(teacher[name], bits)) or not value.any(), name
    assert system_json(folder)["sparsity"] >= values.get("sparsity", {}).get("target", 0.0) - 0.01
    losses = [line["pruned_loss"] for line in metrics(folder, "dev")]
    assert all(loss < 10 for loss in losses)
    for saves in (1, 2):
        with interrupted_after(saves):
            train(tone_corpus, teacher_dir, tmp_path / "again", values)
    again = train(tone_corpus, teacher_dir, tmp_path / "again", values)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_four_bits_are_exported_without_a_difference(tone_corpus, teacher_dir, tmp_path):
    """Which is an error there, as in float32; of a system that has not learned with them it is none."""
    folder = train(tone_corpus, teacher_dir, tmp_path / "exp", KINDS[0])
    out = tmp_path / "out"
    more = [
        "--bpe-dir",
        str(tone_corpus.bpe_dir),
        "--out",
        str(out),
        "--format",
        "int4+sparse",
        "--blank-penalty",
        "0.7",
    ]
    export.main([str(folder), *more])
    manifest = json.loads((out / "model.json").read_text())
    assert manifest["weights"] == "int4" and manifest["sparse"] and manifest["check"]["differences"] == 0
    assert max(manifest["check"]["onnxruntime_against_torch"].values()) < 1e-4


def composed(**values):
    return compose(RecipeConfig(), name="x", role="sparse_student", values=values)


def test_a_student_without_zeros_and_without_rounding_is_none():
    assert composed(training={"weight_bits": 4}).sparsity is None
    with pytest.raises(UserError, match="0.0 for a sparse student; expected between 0 and 1, or training.weight_bits"):
        composed()
    with pytest.raises(UserError, match="weight_bits"):
        composed(training={"weight_bits": 3})
    with pytest.raises(UserError, match="options of sparsity without a target"):
        composed(training={"weight_bits": 4}, sparsity={"initial": 0.5})

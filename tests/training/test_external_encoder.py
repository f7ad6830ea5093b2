"""Foreign encoders go through the recipe: trained, distilled from a cache and online, sparsified, decoded."""

import importlib.util
import json
import re
import sys

import pytest
import torch
from command_cases import words
from safetensors.torch import load_file
from training_cases import metrics

from rnnt_kd.bin import decode
from rnnt_kd.errors import UserError
from rnnt_kd.systems import store
from rnnt_kd.training.loop import Training

TOY = {"factory": "toy_encoder:Toy", "dim": 16}
ZIPFORMER = {
    **{"factory": "my_encoders:zipformer", "pos_dim": 8, "query_head_dim": 4, "value_head_dim": 4},
    **{"encoder_dim": [16, 24], "encoder_unmasked_dim": [16, 16], "num_encoder_layers": [1, 1]},
    **{"num_heads": [4, 4], "feedforward_dim": [16, 16], "cnn_module_kernel": [7, 7]},
}


def of(corpus, role, name, options, include=(), sparsity=0.0, epochs=1, **kd):
    """A system's configuration with an external encoder; no ``kd``: not distilled."""
    with_kd = bool(kd)
    config = corpus.config(role, name, sparsity, with_kd, [f"{role}.training.epochs={epochs}"], **kd)
    config.model.encoder, config.model.encoder_options = "external", dict(options)
    if include:
        config.sparsity.include = list(include)
    return config


def recognised(corpus, system_dir, out_dir):
    """Utterances of the dev set with a hypothesis on disk."""
    where = {"system_dir": system_dir, "cuts": corpus.dev_cuts, "bpe_dir": corpus.bpe_dir, "out_dir": out_dir}
    decode.main(words(**where, test_set="dev", device="cpu", beam=2))
    return json.loads((out_dir / "decode.json").read_text())["utterances"]


@pytest.fixture(scope="module")
def toy_teacher(tone_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("external") / "teacher"
    tone_corpus.train(of(tone_corpus, "teacher", "teacher", TOY, epochs=3), folder)
    return folder


def test_a_toy_teacher_learns_and_its_folder_is_all_that_decoding_needs(tone_corpus, toy_teacher, tmp_path):
    losses = [line["pruned_loss"] for line in metrics(toy_teacher, "dev")]
    assert losses[-1] < losses[0]
    assert recognised(tone_corpus, toy_teacher, tmp_path / "decoded") == 6


def test_a_batch_that_is_skipped_leaves_no_trace_in_a_batch_norm(tone_corpus, tmp_path, monkeypatch):
    real = Training._train_step

    def step(self, batch):
        if self.state.step == 1:
            batch.inputs["features"].mul_(torch.nan)
        real(self, batch)

    monkeypatch.setattr(Training, "_train_step", step)
    tone_corpus.train(of(tone_corpus, "teacher", "teacher", {**TOY, "norm": True}), tmp_path / "x")
    assert len(metrics(tmp_path / "x", "nonfinite")) == 1
    weights = load_file(tmp_path / "x" / "model.safetensors")
    assert any(name.endswith("running_var") for name in weights)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("ranges", ["teacher", "student"])
def test_a_toy_student_learns_from_a_toy_teacher(tone_corpus, toy_teacher, tmp_path, ranges):
    given = dict(teacher_dir=toy_teacher)
    if ranges == "teacher":
        given["kd_cache"] = tone_corpus.cache(toy_teacher, tmp_path / "kd_cache")
    config = of(tone_corpus, "small_student", "small_kd", {**TOY, "dim": 8}, ranges=ranges)
    tone_corpus.train(config, tmp_path / "small_kd", **given)
    assert all(line["kd_loss"] > 0 for line in metrics(tmp_path / "small_kd", "train"))
    assert recognised(tone_corpus, tmp_path / "small_kd", tmp_path / "decoded") == 6


def test_the_matrices_of_a_foreign_encoder_are_sparsified_by_their_names(tone_corpus, toy_teacher, tmp_path):
    include = [r"encoder\.module\.(mix|past)\.weight", r"joiner\..*\.weight"]
    config = of(tone_corpus, "sparse_student", "sparse50", TOY, include, sparsity=0.5, epochs=2)
    tone_corpus.train(config, tmp_path / "sparse50", teacher_dir=toy_teacher)
    model, _ = store.load_system(tmp_path / "sparse50")
    own = [model.encoder.module.mix.weight, model.encoder.module.past.weight]
    label_side = [weight for name, weight in model.joiner.named_parameters() if name.endswith("weight")]
    assert all(((matrix == 0).any() and (matrix != 0).any()) for matrix in own)
    zeros, weights = (
        sum(int(count) for count in counts)
        for counts in zip(*(((matrix == 0).sum(), matrix.numel()) for matrix in (*own, *label_side)))
    )
    assert zeros == weights // 2
    assert not (model.encoder.module.mix.bias == 0).any()


def test_the_label_side_of_a_foreign_encoder_is_cut_and_its_own_units_are_not(tone_corpus, toy_teacher, tmp_path):
    config = of(tone_corpus, "sparse_student", "x", TOY, sparsity={"target": 0.5, "structure": "joiner+predictor"})
    tone_corpus.train(config, tmp_path / "x", teacher_dir=toy_teacher)
    model, read = store.load_system(tmp_path / "x")
    assert read.model.joiner_dim < 16 > read.model.predictor_dim and read.model.encoder_options == TOY
    config.sparsity.structure = "heads+joiner"
    with pytest.raises(UserError, match="heads.joiner, and of the encoder external no unit can be cut out"):
        tone_corpus.train(config, tmp_path / "y", teacher_dir=toy_teacher)


@pytest.fixture
def my_encoders(root, tmp_path, monkeypatch):
    """The module that docs/encoders.md shows, importable."""
    if importlib.util.find_spec("zipformer") is None:
        pytest.skip("the pip package zipformer is not installed: pip install --no-deps zipformer==0.1.3")
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "encoders.md").read_text(), re.DOTALL)
    (tmp_path / "my_encoders.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    if hasattr(torch, "_dynamo"):
        monkeypatch.setattr(torch._dynamo.config, "disable", True)  # it compiles activations, for minutes
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_encoders", "zipformer")]:
        del sys.modules[name]


def test_zipformer_trains_as_teacher_and_as_student_and_decodes(tone_corpus, tmp_path, my_encoders):
    """By the very lines of the documentation."""
    teacher = tmp_path / "teacher"
    tone_corpus.train(of(tone_corpus, "teacher", "teacher", ZIPFORMER), teacher)
    smaller = {**ZIPFORMER, "encoder_dim": [16, 16]}
    config = of(tone_corpus, "small_student", "small_kd", smaller, ranges="student")
    tone_corpus.train(config, tmp_path / "small_kd", teacher_dir=teacher)
    assert all(line["kd_loss"] > 0 for line in metrics(tmp_path / "small_kd", "train"))
    assert recognised(tone_corpus, tmp_path / "small_kd", tmp_path / "decoded") == 6

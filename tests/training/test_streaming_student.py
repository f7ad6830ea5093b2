"""Promises of the role streaming_student: where it starts, what it learns from, what it refuses."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_cases import system_json

from rnnt_kd.config_io import load_recipe
from rnnt_kd.errors import UserError
from rnnt_kd.systems import store
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import setup

ONE_EPOCH = ["streaming_student.training.epochs=1"]


def resolved(tone_corpus, teacher_dir, **options):
    config = tone_corpus.config("streaming_student", "stream", **options)
    return setup.resolve(config, Tokenizer.load(tone_corpus.bpe_dir), teacher_dir)


@pytest.fixture(scope="module")
def stream(tone_corpus, teacher_dir, tmp_path_factory):
    """Trained for an epoch."""
    folder = tmp_path_factory.mktemp("streaming") / "stream"
    config = tone_corpus.config("streaming_student", "stream", overrides=ONE_EPOCH)
    tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    return folder


def test_it_starts_from_the_teachers_weights(tone_corpus, teacher_dir):
    config = resolved(tone_corpus, teacher_dir)
    model, online = setup.models(config, teacher_dir, torch.device("cpu"))
    assert online is None and type(model.encoder).__name__ == "StreamingConformer"
    theirs, ours = load_file(teacher_dir / "model.safetensors"), model.state_dict()
    assert ours.keys() == theirs.keys()
    moved = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert moved == ["encoder.layers.0.convolution.depthwise.weight"]
    kernel, before = ours[moved[0]], theirs[moved[0]]
    assert torch.equal(kernel[..., 7:], before[..., :8]) and (kernel[..., :7] == 0).all()  # 15 taps, the 8th: now


def test_another_shape_starts_from_scratch(tone_corpus, teacher_dir):
    wider = ["streaming_student.model.encoder_options.feedforward_dim=48"]
    config = resolved(tone_corpus, teacher_dir, overrides=wider)
    torch.manual_seed(5)
    model, _ = setup.models(config, teacher_dir, torch.device("cpu"))
    torch.manual_seed(5)
    fresh = store.build_model(config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_streaming_teachers_kernels_stay_where_they_are(tone_corpus, stream):
    model, _ = setup.models(resolved(tone_corpus, stream), stream, torch.device("cpu"))
    theirs = load_file(stream / "model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("with_kd, sparsity", [(False, 0.0), (True, 0.0), (False, 0.5)])
def test_it_trains_plain_distilled_and_sparse(tone_corpus, teacher_dir, stream, tmp_path, with_kd, sparsity):
    """And the chunks that it draws are decided by the seed: the plain one has the same bits each time."""
    kd = dict(ranges="student", shift=1) if with_kd else {}
    options = dict(sparsity=sparsity, with_kd=with_kd, overrides=ONE_EPOCH, **kd)
    tone_corpus.train(
        tone_corpus.config("streaming_student", "stream", **options), tmp_path / "stream", teacher_dir=teacher_dir
    )
    model, written = load_system(tmp_path / "stream")
    assert written.role == "streaming_student" and (written.kd is not None) == with_kd
    assert not with_kd or system_json(tmp_path / "stream")["kd_shift"] == 1
    assert model.encoder.eval_chunk_frames == model.encoder.chunk_frames == 16 and not model.training
    weight = model.encoder.layers[0].feedforward1.linear_in.weight
    assert bool((weight == 0).any()) == (sparsity > 0)
    assert not sparsity or system_json(tmp_path / "stream")["sparsity"] == pytest.approx(sparsity, abs=0.01)
    start = load_file(teacher_dir / "model.safetensors")
    assert not torch.equal(weight, start["encoder.layers.0.feedforward1.linear_in.weight"])
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (stream, tmp_path / "stream"))
    assert (first == second) == (not with_kd and not sparsity)


def test_a_missing_teacher_an_offline_encoder_and_a_wrong_sparsity_are_refused(tone_corpus, teacher_dir):
    with pytest.raises(UserError, match="--teacher-dir: missing, and stream needs a teacher"):
        resolved(tone_corpus, None)
    with pytest.raises(UserError, match="model.encoder: conformer for a streaming student"):
        tone_corpus.config("streaming_student", overrides=["streaming_student.model.encoder=conformer"])
    with pytest.raises(UserError, match="sparsity.target: 1.5"):
        tone_corpus.config("streaming_student", sparsity=1.5)
    far = tone_corpus.config(
        "streaming_student", overrides=["streaming_student.model.encoder_options.left_frames=200000"]
    )
    far.vocab_size = 8
    with pytest.raises(UserError, match="left_frames: 200000; expected 1 to 100000 frames"):
        store.build_model(far)


def test_frames_to_its_left_are_no_size_of_a_weight(tone_corpus, teacher_dir, tmp_path):
    options = ["model.encoder_options.left_frames=2000", "training.epochs=1"]
    config = tone_corpus.config("streaming_student", overrides=[f"streaming_student.{one}" for one in options])
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    assert store.load_system(tmp_path / "x")[0].encoder.left_frames == 2000


def test_training_draws_several_chunks_and_evaluation_the_one(tone_corpus, teacher_dir):
    config = resolved(tone_corpus, teacher_dir)
    model, _ = setup.models(dataclasses.replace(config), teacher_dir, torch.device("cpu"))
    drawn = {model.encoder.train()._context() for _ in range(200)}
    assert (0, 0) in drawn and len(drawn) > 20
    chunks, lefts = zip(*(drawn - {(0, 0)}), strict=True)
    assert min(chunks) >= 8 and max(chunks) <= 32 and min(lefts) >= 32 and max(lefts) <= 128
    assert {model.encoder.eval()._context() for _ in range(20)} == {(16, 64)}


def test_in_every_preset_it_can_start_from_the_teacher():
    presets = sorted(Path(__file__).parents[2].glob("egs/*/conf/*.yaml"))
    assert len(presets) > 10
    for preset in presets:
        recipe = load_recipe(preset)
        teacher, student = vars(recipe.teacher.model), vars(recipe.streaming_student.model)
        differ = {name for name in teacher if teacher[name] != student[name]}
        assert differ <= {"encoder", "dropout", "label_dropout"} and student["encoder"] == "streaming_conformer", preset

"""Killed at any moment and started again, a run ends with the bits of one that was not killed."""

import json
import shutil

import pytest
from command_cases import LONG, fails_on_a_full_disk, kill, start, told, writes_interrupted
from safetensors.torch import load_file
from training_cases import assert_same_end, goes_on_the_same, interrupted_after, metrics, system_json

from rnnt_kd.errors import UserError
from rnnt_kd.training import checkpoint


def test_kill_9_changes_no_bit(tone_corpus, teacher_dir, tmp_path, root):
    """A sparse student with distillation, killed on the ramp and after it."""
    whole, killed = tmp_path / "a" / "student", tmp_path / "b" / "trial" / "x" / "seed1"
    entry = "{role: sparse_student, sparsity: 0.5, kd: {ranges: student}}"
    command = tone_corpus.arguments(tmp_path / "b", entry, teacher_dir)
    config = tone_corpus.config("sparse_student", "x", sparsity=0.5, with_kd=True, ranges="student")
    tone_corpus.train(config, whole, teacher_dir=teacher_dir)

    for lines, step in ((2, 4), (5, 10)):  # there is a line for every second step, and one for each of the epochs
        kill(root, "train", command, killed_in="rnnt_kd.training.progress:Metrics.write", after=lines)
        assert metrics(killed)[-1]["step"] == step
    process = start(root, "train", command)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, output
    assert "resumes from step-" in output
    assert_same_end(whole, killed)
    before, after = system_json(whole), system_json(killed)
    for values in (before, after):
        values.pop("train_seconds"), values.pop("teacher")
    assert before == after


@pytest.mark.parametrize("saves", [1, 4])
def test_the_moving_average_goes_on(tone_corpus, teacher_dir, tmp_path, saves):
    """Stopped while the masks move, and after it."""
    overrides = ["sparse_student.training.averaging=ema", "sparse_student.training.ema_decay=0.9"]
    config = tone_corpus.config("sparse_student", sparsity=0.5, overrides=overrides)
    goes_on_the_same(tone_corpus, config, tmp_path, saves, teacher_dir=teacher_dir)


def test_a_student_of_layers_goes_on_and_keeps_nothing_of_its_teacher(tone_corpus, teacher_dir, tmp_path):
    kd = dict(ranges="student", hears="same-view", features=2.0)
    config = tone_corpus.config("sparse_student", sparsity=0.5, with_kd=True, **kd)
    goes_on_the_same(tone_corpus, config, tmp_path, 2, teacher_dir=teacher_dir)
    whole, teacher = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", teacher_dir))
    assert whole.keys() == teacher.keys()
    lines = metrics(tmp_path / "whole", "train")
    assert all(line["features_loss"] > 0 and line["features_scale"] == 2.0 for line in lines)
    assert lines[-1]["loss"] > 2.0 * lines[-1]["features_loss"]
    assert all("features_loss" not in line for line in metrics(tmp_path / "whole", "dev"))
    wrong = tone_corpus.config("sparse_student", sparsity=0.5, with_kd=True, feature_layers=["blocks"], **kd)
    with pytest.raises(UserError, match="kd.feature_layers: blocks is no module of the student"):
        tone_corpus.train(wrong, tmp_path / "wrong", teacher_dir=teacher_dir)
    assert not (tmp_path / "wrong").exists()


def test_a_checkpoint_of_a_release_with_fewer_terms_goes_on(tone_corpus, tmp_path, monkeypatch):
    """The means since the last line begin anew; the weights are the same."""
    config, real = tone_corpus.config("teacher"), checkpoint.save_checkpoint
    tone_corpus.train(config, tmp_path / "whole")

    def older(path, model, optimizer, masks, scalars, identity):
        real(path, model, optimizer, masks, {**scalars, "window": scalars["window"][1:]}, identity)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", older)
        with interrupted_after(1):
            tone_corpus.train(config, tmp_path / "stopped")
    tone_corpus.train(config, tmp_path / "stopped")
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_full_disk_is_one_line_and_changes_no_bit(tone_corpus, tmp_path, root):
    """No checkpoint can be written."""
    command = tone_corpus.arguments(tmp_path, "{role: teacher}")
    fails_on_a_full_disk(root, "train", command, file_bytes=50_000)
    assert not list((tmp_path / "trial" / "x" / "seed1").rglob("*.tmp"))
    process = start(root, "train", command)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, output
    tone_corpus.train(tone_corpus.config("teacher", "x"), tmp_path / "whole")
    assert_same_end(tmp_path / "whole", tmp_path / "trial" / "x" / "seed1")


def test_interrupted_between_any_two_renames(tone_corpus, tmp_path):
    """Stopped in place of each atomic write in turn; every restart goes on; the end is the same."""
    config = tone_corpus.config("teacher", overrides=["teacher.training.epochs=1"])
    tone_corpus.train(config, tmp_path / "whole")
    for limit in range(1, 20):
        try:
            with writes_interrupted(limit):
                tone_corpus.train(config, tmp_path / "stopped")
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "stopped" / "system.json").exists()
    assert limit > 8, "the writes of a start and of one checkpoint were each interrupted"
    names = ("model.safetensors", "config.yaml", "left_out.json")
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    assert not list((tmp_path / "stopped" / "checkpoints").glob(".*"))


@pytest.fixture(scope="module")
def stopped(tone_corpus, tmp_path_factory):
    """A run stopped after its second checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "x"
    with interrupted_after(2):
        tone_corpus.train(tone_corpus.config(), folder)
    return folder


@pytest.fixture
def interrupted(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "interrupted")


def half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("name, damage", [
    *((name, half) for name in ("model.safetensors", "optimizer.safetensors", "state.json")),
    ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    ("state.json", lambda content: b'{"sha256": {}, "format": 99}'),
])  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_way_out_works(tone_corpus, interrupted, name, damage):
    newest = checkpoint.list_checkpoints(interrupted / "checkpoints")[-1]
    (newest / name).write_bytes(damage((newest / name).read_bytes()))
    said = told(tone_corpus.train, tone_corpus.config(), interrupted)
    assert str(newest / name) in said and f"delete {newest}" in said
    shutil.rmtree(newest)
    said = tone_corpus.train(tone_corpus.config(), interrupted)
    assert any("resumes from step-00000003" in line for line in said)


def test_a_lost_best_checkpoint_does_not_stop_the_end(tone_corpus, interrupted):
    """After falling back to an older checkpoint, its list may name folders that are gone."""
    newest = checkpoint.list_checkpoints(interrupted / "checkpoints")[-1]
    state = json.loads((newest / "state.json").read_text())
    gone = {"checkpoint": "step-00000001-epoch-0001", "epoch": 1, "step": 1, "dev_loss": 0.0, "can_average": True}
    state["results"] = [gone, *state["results"]]
    del state["sha256"]["state.json"]  # as an earlier version wrote it
    (newest / "state.json").write_text(json.dumps(state))
    tone_corpus.train(tone_corpus.config(), interrupted)
    assert (interrupted / "system.json").exists()

"""Batches made in worker processes: the same bits, whatever their number, and a clean end where one is killed."""

import multiprocessing
import os
import pickle
import signal

import pytest
from command_cases import told
from training_cases import interrupted_after, metrics

from rnnt_kd import files
from rnnt_kd.errors import UserError
from rnnt_kd.training import checkpoint


def train(tone_corpus, folder, workers, epochs=2, ranges="teacher", **options):
    overrides = [f"small_student.training.{option}" for option in (f"epochs={epochs}", f"num_workers={workers}")]
    return tone_corpus.train(
        tone_corpus.config("small_student", with_kd=True, overrides=overrides, ranges=ranges), folder, **options
    )


def result(folder):
    return metrics(folder), (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tone_corpus, kd_cache, tmp_path_factory):
    """Trained without workers."""
    folder = tmp_path_factory.mktemp("alone") / "x"
    train(tone_corpus, folder, 0, kd_cache=kd_cache)
    return folder


@pytest.mark.parametrize("workers", [1, 4])
def test_results_from_the_cache_are_those_without_workers(tone_corpus, kd_cache, alone, tmp_path, workers):
    train(tone_corpus, tmp_path / "x", workers, kd_cache=kd_cache)
    assert result(tmp_path / "x") == result(alone)


def test_results_with_a_teacher_that_runs_online_are_those_without_workers(tone_corpus, teacher_dir, tmp_path):
    for workers in (0, 2):
        given = dict(epochs=1, ranges="student", teacher_dir=teacher_dir)
        train(tone_corpus, tmp_path / str(workers), workers, **given)
    assert result(tmp_path / "0") == result(tmp_path / "2")


def test_another_number_of_workers_goes_on_with_the_same_bits_and_makes_no_system_stale(
    tone_corpus, kd_cache, alone, tmp_path
):
    with interrupted_after(2):
        train(tone_corpus, tmp_path / "x", 0, kd_cache=kd_cache)
    said = train(tone_corpus, tmp_path / "x", 1, kd_cache=kd_cache)
    assert "resumes from" in " ".join(said) and result(tmp_path / "x") == result(alone)
    assert "finished already" in " ".join(train(tone_corpus, tmp_path / "x", 3, kd_cache=kd_cache))


def test_a_killed_worker_is_one_line_and_the_same_command_goes_on(tone_corpus, kd_cache, alone, tmp_path, monkeypatch):
    real, before = checkpoint.save_checkpoint, set(multiprocessing.active_children())

    def save(*arguments):
        real(*arguments)
        for worker in set(multiprocessing.active_children()) - before:
            os.kill(worker.pid, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", save)
        said = told(train, tone_corpus, tmp_path / "x", 2, kd_cache=kd_cache)
    assert "a worker process of the data loader: was killed" in said
    train(tone_corpus, tmp_path / "x", 2, kd_cache=kd_cache)
    assert result(tmp_path / "x") == result(alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_within_an_epoch_is_one_line_and_the_same_command_goes_on_when_it_is_back(
    tone_corpus, kd_cache, alone, tmp_path, monkeypatch, workers
):
    monkeypatch.setattr(files, "MOST_PAUSES", 0)
    shards = {path: path.read_bytes() for path in kd_cache.glob("*.safetensors")}
    real = checkpoint.save_checkpoint

    def save(*arguments):
        real(*arguments)
        for path in shards:
            path.unlink(missing_ok=True)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_checkpoint", save)
            said = told(train, tone_corpus, tmp_path / "x", workers, kd_cache=kd_cache)
    finally:
        for path, content in shards.items():
            path.write_bytes(content)
    assert said.startswith(str(kd_cache / "shard-0000")) and "damaged: it is gone" in said
    train(tone_corpus, tmp_path / "x", workers, kd_cache=kd_cache)
    assert result(tmp_path / "x") == result(alone)


def test_an_error_of_the_users_passes_from_process_to_process_whole():
    error = UserError("a file", "is wrong", "right", "mend it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and vars(again) == vars(error)

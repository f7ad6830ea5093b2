"""The recipe as users run it: ``run.sh`` from nothing to the table, in the environment of these tests."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_cases import LONG, group_is_alive


def command(root, *arguments):
    return ["bash", str(root / "run.sh"), "--env", "none", *map(str, arguments)]


def environment():
    """The Python of these tests is the one that is active."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def run(root, *arguments, status=0, cwd=None):
    result = subprocess.run(
        command(root, *arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment(), cwd=cwd, timeout=3600
    )  # fmt: skip
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    return result


def beam_rows(folder):
    """Of summary.json, without those of greedy search, which stand beside them."""
    rows = json.loads((folder / "summary.json").read_text())
    assert [row["search"] for row in rows] == ["modified_beam_search", "greedy_search"] * (len(rows) // 2)
    return rows[::2]


def test_a_minute_of_synth_from_nothing_killed_and_on_to_the_page_and_from_a_queue(root, tmp_path):
    own = ["--preset", "smoke", "--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp", "--nj", 2]
    names = ["teacher", "sparse60", "sparse60_kd", "sparse90", "sparse90_kd", "small", "small_kd"]
    folder = tmp_path / "exp" / "default"
    process = subprocess.Popen(
        command(root, *own), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        env=environment(), start_new_session=True,
    )  # fmt: skip
    while not list(folder.glob("s*/seed1/metrics.jsonl")):  # students are in training
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()

    first = run(root, *own)
    rows = beam_rows(folder)
    assert [row["system"] for row in rows] == names
    words = sum(len(line.split()) - 1 for line in (tmp_path / "data" / "test" / "text").read_text().splitlines())
    for row in rows:
        assert row["kd"] == row["system"].endswith("_kd") and row["words"] == words
        assert row["wer"] == pytest.approx(100 * (row["ins"] + row["del"] + row["sub"]) / words, abs=0.01)
        assert row["p_value"] is row["p_value_seeds"] is row["ci95"] is None and row["too_few"].endswith("utterances")
        assert (row["nonzero_params"] < row["params"]) == (row["role"] == "sparse_student")
    assert rows[3]["sparsity_measured"] == pytest.approx(0.9, abs=0.01)
    table = (folder / "summary.md").read_text()
    assert table.partition("Commands that made")[0].strip() in first.stdout
    assert "[sparse90_kd/1] " in first.stderr  # side by side

    for name in names:  # what sherpa-onnx says of them is in these files only if it says what we say
        manifest = json.loads((folder / "export" / name / "model.json").read_text())
        assert manifest["system"] == name and (folder / "export" / name / "encoder.onnx").exists()
    assert list(dict.fromkeys(row["system"] for row in json.loads((folder / "sizes.json").read_text()))) == names
    assert (folder / "report" / "index.html").stat().st_size > 100_000

    trained = {path: path.stat().st_mtime_ns for path in folder.glob("**/*.safetensors")}
    assert len(trained) >= 7
    shutil.rmtree(folder / "sparse90" / "seed1" / "decode_test_modified_beam_search")
    (line,) = run(root, *own, "--print-jobs").stdout.splitlines()
    queued = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert queued.returncode == 0, queued.stderr
    second = run(root, *own)
    assert "epoch " not in second.stdout + second.stderr  # nothing is trained again; one decoding has another speed
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    again = [{**row, "rtf": 0} for row in beam_rows(folder)]  # one was decoded again
    assert again == [{**row, "rtf": 0} for row in rows]

    for name in ("data", "exp"):
        (tmp_path / name).rename(tmp_path / f"moved {name}")
    own[3], own[5] = tmp_path / "moved data", tmp_path / "moved exp"
    moved = run(root, *own, "--stop-stage", 7)
    assert "out_dir was" in moved.stdout and "epoch " not in moved.stdout + moved.stderr  # audio is made again
    folder = tmp_path / "moved exp" / "default"
    assert {path: path.stat().st_mtime_ns for path in folder.glob("**/*.safetensors")} == {
        tmp_path / "moved exp" / path.relative_to(tmp_path / "exp"): time for path, time in trained.items()
    }
    assert [{**row, "rtf": 0} for row in beam_rows(folder)] == again


def test_a_second_run_in_the_same_folder_is_one_clear_error(root, tmp_path):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run(root, "--exp-dir", tmp_path, "--stage", 2, "--stop-stage", 2, status=1)
    assert result.stderr.count("\n") == 1 and "another run is at work there" in result.stderr


def test_an_impossible_folder_is_one_clear_error(root, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(root, "--exp-dir", tmp_path / "file" / "exp", "--stage", 2, status=1)
    assert "error: " in result.stderr and "--exp-dir" in result.stderr.splitlines()[-1]


def test_a_stage_without_the_one_before_says_what_is_missing(root, tmp_path):
    result = run(root, "--exp-dir", tmp_path, "--stage", 3, "--stop-stage", 3, status=1)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ") and str(tmp_path) in result.stderr


def test_it_runs_from_any_folder_with_relative_paths_and_an_empty_data_directory_is_one_clear_error(root, tmp_path):
    (tmp_path / "d").mkdir()
    result = run(
        root, "--train-dir", "d", "--dev-dir", "d", "--test-dirs", "d", "--exp-dir", "exp", status=1, cwd=tmp_path
    )
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: d: has no file wav.scp")
    assert (tmp_path / "exp").is_dir()


def test_ctrl_c_ends_the_run_and_all_its_jobs(root, tmp_path):
    options = ["--data-dir", tmp_path / "data", "--exp-dir", tmp_path / "exp", "--stop-stage", 0]
    process = subprocess.Popen(
        command(root, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )  # fmt: skip
    while not list(tmp_path.glob("data/.wav.*.tmp/train/*/*.wav")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "Traceback" not in errors and "interrupted" in errors
    deadline = time.time() + LONG
    while group_is_alive(process.pid) and time.time() < deadline:
        time.sleep(0.05)
    assert not group_is_alive(process.pid)
    assert not (tmp_path / "data" / "train").exists()
    with open(tmp_path / "exp" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more

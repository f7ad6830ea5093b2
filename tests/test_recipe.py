"""The recipe as users run it: ``run.sh`` from nothing to the table, in the environment of these tests."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEYS = [
    "system", "role", "params", "nonzero_params", "sparsity", "kd", "test_set", "search", "wer", "words", "ins", "del", "sub",
    "ci95", "p_value", "train_seconds", "rtf",
]  # fmt: skip


def command(root, *arguments):
    return ["bash", str(root / "run.sh"), "--env", "none", *map(str, arguments)]


def environment():
    """The Python of these tests is the one that is active."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def run(root, *arguments, status=0, cwd=None):
    result = subprocess.run(
        command(root, *arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment(), cwd=cwd, timeout=900
    )  # fmt: skip
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    return result


def test_a_minute_of_synth_from_nothing_to_the_table(root, tmp_path):
    options = [
        "--preset",
        "smoke",
        "--sparsities",
        "0.9",
        "--data-dir",
        tmp_path / "data",
        "--exp-dir",
        tmp_path / "exp",
    ]
    first = run(root, *options)
    rows = json.loads((tmp_path / "exp" / "summary.json").read_text())
    assert [row["system"] for row in rows] == ["teacher", "sparse90", "sparse90_kd", "small", "small_kd"]
    words = sum(len(line.split()) - 1 for line in (tmp_path / "data" / "test" / "text").read_text().splitlines())
    for row in rows:
        assert list(row) == KEYS
        assert row["role"] == ("teacher" if row["system"] == "teacher" else "student")
        assert row["kd"] == row["system"].endswith("_kd")
        assert row["words"] == words
        assert row["wer"] == pytest.approx(100 * (row["ins"] + row["del"] + row["sub"]) / words, abs=0.01)
        assert (row["p_value"] is not None) == row["kd"]
        assert (row["nonzero_params"] < row["params"]) == row["system"].startswith("sparse")
    sparse = rows[1]
    assert sparse["sparsity"] == pytest.approx(0.9, abs=0.01)
    table = (tmp_path / "exp" / "summary.md").read_text()
    assert all(row["system"] in table for row in rows)
    assert (
        table.partition("Commands that made")[0].strip() in first.stdout
        and str(tmp_path / "exp" / "summary.json") in first.stdout
    )

    names = [row["system"] for row in rows]
    for name in names:  # what sherpa-onnx says of them is in these files only if it says what we say
        manifest = json.loads((tmp_path / "exp" / "export" / name / "model.json").read_text())
        assert manifest["system"] == name and (tmp_path / "exp" / "export" / name / "encoder.onnx").exists()
    sizes = json.loads((tmp_path / "exp" / "sizes.json").read_text())
    assert list(dict.fromkeys(row["system"] for row in sizes)) == names
    assert "| sparse90_kd | sparse int8 |" in (tmp_path / "exp" / "sizes.md").read_text()

    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").glob("**/system.json")}
    assert len(trained) == 5
    second = run(root, *options)
    assert (second.stdout + second.stderr).count(
        "skipped"
    ) >= 1 + 3 + 1 + 5 * 4 + 1  # corpus, cuts, BPE; 5 systems: training, decoding, scores, export; sizes
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert json.loads((tmp_path / "exp" / "summary.json").read_text()) == rows


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


def test_an_empty_data_directory_is_one_clear_error(root, tmp_path):
    (tmp_path / "d").mkdir()
    own = ["--train-dir", tmp_path / "d", "--dev-dir", tmp_path / "d", "--test-dirs", tmp_path / "d"]
    result = run(root, *own, "--exp-dir", tmp_path / "exp", status=1)
    assert result.stderr.count("\n") == 1 and str(tmp_path / "d") in result.stderr


def test_it_runs_from_any_folder_with_relative_paths(root, tmp_path):
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
    time.sleep(8)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in errors and "interrupted" in errors
    assert not (tmp_path / "data" / "train").exists()
    with open(tmp_path / "exp" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more

"""An experiment as users run it: ``run.sh --experiment`` from nothing, killed, on to the table, and from a queue."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def command(root, folder, *arguments):
    own = ["--preset", "smoke", "--experiment", "smoke", "--data-dir", folder / "data", "--exp-dir", folder / "exp"]
    return ["bash", str(root / "run.sh"), "--env", "none", *map(str, [*own, *arguments])]


def environment():
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def run(arguments, **options):
    result = subprocess.run(
        arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment(), timeout=900, **options
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "Traceback" not in result.stdout + result.stderr
    return result


def test_from_nothing_killed_and_on_to_the_table_and_from_a_queue(root, tmp_path):
    systems = tmp_path / "exp" / "experiments" / "smoke"
    process = subprocess.Popen(
        command(root, tmp_path, "--jobs", 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, env=environment(), start_new_session=True,
    )  # fmt: skip
    while not list(systems.glob("*/seed*/metrics.jsonl")):  # two are in training
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (systems / "summary.json").exists()

    first = run(command(root, tmp_path, "--jobs", 2))
    results = json.loads((systems / "results.json").read_text())
    assert [(item["system"], item["seed"]) for item in results] == [
        ("teacher", 1), ("sparse90", 1), ("sparse90", 2), ("sparse90_uniform", 1), ("sparse90_uniform", 2),
    ]  # fmt: skip
    words = sum(len(line.split()) - 1 for line in (tmp_path / "data" / "test" / "text").read_text().splitlines())
    assert {item["words"] for item in results} == {words}
    assert "| sparse90_uniform | test | 1 2 |" in first.stdout and str(systems / "summary.md") in first.stdout
    assert "[sparse90_uniform/2] " in first.stderr  # side by side

    shutil.rmtree(systems / "sparse90" / "seed2" / "decode_test_modified_beam_search")
    (line,) = [line for line in run(command(root, tmp_path, "--print-jobs")).stdout.splitlines() if line]
    run(["bash", "-c", line], cwd=tmp_path)
    trained = {path: path.stat().st_mtime_ns for path in systems.glob("*/seed*/**/*.safetensors")}
    again = run(command(root, tmp_path, "--jobs", 2, "--stage", 5))
    assert "to do" not in again.stderr and "| sparse90_uniform | test | 1 2 |" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert json.loads((systems / "results.json").read_text()) == results

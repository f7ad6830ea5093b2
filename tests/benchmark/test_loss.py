"""``python -m benchmark.loss`` and ``benchmark.train_step``, in tiny sizes: processes, table, files, errors."""

import json
import os
import subprocess
import sys

import pytest
import torch
from command_cases import refused

from benchmark import loss, options, train_step
from benchmark.peers import get_peer

TINY = ["--joiner-dim", "4", "--prune-range", "3", "--batch", "2", "--batches", "2", "--rounds", "1", "--device", "cpu"]
KEYS = {"variant", "impl", "peer", "vocab", "batch", "seconds", "low", "high", "peak_mb", "rounds", "batches"}
HAS_K2 = get_peer("k2").why_not(torch.device("cpu")) is None


@pytest.fixture
def shapes(tmp_path):
    path = tmp_path / "shapes.csv"
    path.write_text("T,S\n" + "".join(f"{T},{2 + T % 3}\n" for T in range(8, 20)))
    return ["--shapes", str(path)]


def test_rows_table_json_and_picture(root, tmp_path, shapes):
    """As users start it: with a folder of their own as the working directory."""
    command = [sys.executable, "-m", "benchmark.loss", *TINY, *shapes, "--vocab", "6", "--variants", "cache"]
    command += ["--peers", "k2", "--json", "out/rows.json", "--plot", "out/rows.png"]
    environment = {**os.environ, "PYTHONPATH": f"{root}/plugin:{root}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr

    written = json.loads((tmp_path / "out" / "rows.json").read_text())
    rows = written["rows"]
    assert all(set(row) == KEYS | {"time_vs_k2", "memory_vs_k2", "time_vs_matmul"} for row in rows)
    by_name = {row["peer"] or row["impl"]: row for row in rows}
    assert set(by_name) == ({"torch", "k2", "matmul"} if HAS_K2 else {"torch", "matmul"})
    ours = by_name["torch"]
    assert (ours["variant"], ours["vocab"], ours["batch"], ours["peer"]) == ("cache", 6, 2, None)
    assert ours["seconds"] > 0 and ours["time_vs_matmul"] == ours["seconds"] / by_name["matmul"]["seconds"]
    if HAS_K2:
        assert ours["time_vs_k2"] == ours["seconds"] / by_name["k2"]["seconds"]
        assert by_name["k2"]["variant"] == "none" and by_name["k2"]["impl"] is None
    else:
        assert ours["time_vs_k2"] is None and "k2: left out, not installed" in done.stderr
    assert (tmp_path / "out" / "rows.png").read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    assert lines[0] == written["where"]
    assert "J = 4, s_range = 3, float32" in lines[0] and "1 thread" in lines[0]
    assert sum("ours (torch)" in line for line in lines) == 2  # times, and growth of memory


def test_training_steps(tmp_path, shapes, capsys):
    path = tmp_path / "steps.json"
    train_step.main([*TINY, *shapes, "--vocab", "6", "--variants", "none,cache", "--json", str(path)])
    none, cache = json.loads(path.read_text())["rows"]
    assert (none["variant"], none["size"], none["time_vs_none"]) == ("none", "tiny", 1.0)
    assert cache["time_vs_none"] == cache["seconds"] / none["seconds"] and cache["peak_mb"] > 0
    assert "| cache " in capsys.readouterr().out


@pytest.mark.parametrize("main, arguments, words", [
    (loss.main, "--vocab five", "--vocab five 500,5000"),
    (loss.main, "--vocab 2", "--vocab 3 classes"),
    (loss.main, "--batch 0", "--batch '0'"),
    (loss.main, "--rounds 0", "--rounds 0"),
    (loss.main, "--prune-range 1", "--prune-range 2"),
    (loss.main, "--seed -1", "--seed -1"),
    (loss.main, "--seconds-per-row 0", "--seconds-per-row 0.0"),
    (loss.main, "--seconds-per-row nan", "--seconds-per-row nan"),
    (loss.main, "--peers nemo", "--peers nemo naive torchaudio"),
    (loss.main, "--impl cuda", "--impl cuda auto torch"),
    (loss.main, "--variants=", "--variants cache"),
    (loss.main, "--shapes nowhere.csv", "nowhere.csv such file"),
    (loss.main, "--plot picture.txt", "--plot .png"),
    (loss.main, "--json .", "is a folder"),
    (train_step.main, "--variants offline", "--variants offline online"),
    (train_step.main, "--size=", "--size tiny"),
    (train_step.main, "--vocab 1", "--vocab 3 classes"),
    (train_step.main, "--size XXL --variants none --batches 1", "XXL tiny"),
])  # fmt: skip
def test_a_wrong_option_is_one_line(main, arguments, words, capsys):
    line = refused(capsys, main, *arguments.split(), lines=None)
    assert all(word in line for word in words.split())


def test_an_interrupt_keeps_the_finished_groups(tmp_path, shapes, monkeypatch, capsys):
    def one_group_then_interrupt(groups, finished, **more):
        for job in groups[0]:
            job.seconds, job.peak_bytes, job.losses = [[1.0], [1.0]], [10, 10], [1.0, 1.0]
            job.facts = {"impl": "torch" if job.specification["subject"] == "ours" else None, "lattice": ""}
        finished(groups[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(loss, "run_groups", one_group_then_interrupt)
    path = tmp_path / "rows.json"
    with pytest.raises(SystemExit) as ended:
        loss.main([*TINY, *shapes, "--vocab", "6,7", "--peers", "naive", "--json", str(path)])
    assert ended.value.code == 130
    assert {row["vocab"] for row in json.loads(path.read_text())["rows"]} == {6}
    assert "ours (torch)" in capsys.readouterr().out


def test_who_would_not_fit_into_memory_is_not_started(shapes, monkeypatch, capsys):
    """A full lattice of 5000 classes takes gigabytes a batch: it would take others' processes with it."""
    monkeypatch.setattr(loss, "free_memory", lambda: 10**6)
    groups = []
    monkeypatch.setattr(loss, "run_groups", lambda all_groups, **more: groups.extend(all_groups))
    loss.main([*TINY, *shapes, "--vocab", "6,5000", "--peers", "naive"])
    taking_part = [[job.name for job in jobs] for jobs in groups]
    assert "naive none" in taking_part[0] and "naive none" not in taking_part[1]
    assert "naive none: left out at C 5000, batch 2: needs about" in capsys.readouterr().err


def test_numbers_and_names():
    assert options.numbers("--vocab", " 5000, 500,500") == [500, 5000]
    assert options.names("--peers", "b, a,,b", ["a", "b"]) == ["b", "a"]

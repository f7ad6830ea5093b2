"""The made-up corpora are read as real ones are, and every figure is measured."""

import json

import pytest

from benchmark import data


@pytest.mark.parametrize("more", [[], ["--shar"]])
def test_a_small_corpus_gives_every_figure(tmp_path, capsys, more, monkeypatch):
    monkeypatch.setattr(data, "_job", in_this_process)
    words = ["--cuts", "3000", "--steps", "2", "--step-seconds", "0.01", "--batch-seconds", "60", "--workers", "0"]
    data.main([*words, *more, "--json", str(tmp_path / "x.json"), "--folder", str(tmp_path)])
    (row,) = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert set(row) == {"first_seconds", "first_mb", "later_seconds", "later_mb", "plan_seconds", "plan_mb", "wait_0"}
    assert all(value >= 0 for value in row.values()) and "3,000 cuts" in capsys.readouterr().out


def in_this_process(arguments, name, *more):
    arguments.workers = "0"
    return data.JOBS[name](arguments)

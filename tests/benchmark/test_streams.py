"""``python -m benchmark.streams`` on a small streaming system with random weights."""

import json

from command_cases import refused
from export_cases import make_system

from benchmark import streams
from benchmark.turns import Measurement


def test_streams_together_say_what_they_say_alone(place, tmp_path, capsys):
    system = make_system(tmp_path / "stream", place / "bpe", encoder="streaming_conformer")
    few = ["--streams", "3", "--seconds", "2", "--chunks", "8", "--rounds", "1", "--json", tmp_path / "rows.json"]
    streams.main(list(map(str, ["--system", system, "--data-dir", place / "data", *few])))
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["search"], row["chunk"], row["by"]) for row in rows] == [
        (search, 8, by) for search in streams.SEARCHES for by in (streams.ALONE, streams.TOGETHER)
    ]
    assert all(row["other"] == 0 and row["rtf"] > 0 for row in rows)
    assert [row["ratio"] for row in rows[::2]] == [1.0, 1.0]
    assert "3 streams of 2 s" in capsys.readouterr().out


def test_streams_with_other_tokens_are_counted():
    jobs = []
    for by, tokens in ((streams.ALONE, [[1], [2], []]), (streams.TOGETHER, [[1], [3], [4]])):
        jobs.append(Measurement(by, {"search": "greedy_search", "chunk_frames": 8, "by": by, "batches": [0]}))
        jobs[-1].facts, jobs[-1].seconds = {"tokens": tokens}, [[1.0]]
    assert [row["other"] for row in streams._rows(jobs, 6)] == [0, 2]


def test_a_system_that_cannot_stream_is_one_line(place, capsys):
    line = refused(capsys, streams.main, "--system", place / "systems/dense", "--data-dir", place / "data", lines=None)
    assert "stream" in line

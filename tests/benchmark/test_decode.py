"""``python -m benchmark.decode`` on small systems with random weights: rows, files, errors."""

import json
import shutil
import sys

import numpy as np
import pytest
from command_cases import refused
from export_cases import TEXTS

from benchmark import decode
from benchmark.decode import make_batches, rows_of_group
from benchmark.recognisers import LOOP, OURS, SHERPA
from benchmark.speech import named_systems
from benchmark.turns import Measurement
from rnnt_kd.data.speech import Speech


def bench(place, *more, systems=("dense",)):
    decode.main(options(place, *more, systems=systems))


def options(place, *more, systems=("dense",)):
    folders = [place / "systems" / name for name in systems]
    fixed = ["--data-dir", place / "data", "--bpe-dir", place / "bpe", "--rounds", "1"]
    return list(map(str, ["--systems", *folders, *fixed, *more]))


def test_systems_in_folders_of_seeds_are_called_by_their_names(place, tmp_path):
    """As the exports beside them are."""
    names = ("dense", "sparse")
    folders = [shutil.copytree(place / "systems" / name, tmp_path / name / "seed1") for name in names]
    assert named_systems(folders) == [("dense", folders[0]), ("sparse", folders[1])]
    again = shutil.copytree(folders[0], tmp_path / "dense" / "seed2")
    assert [name for name, _ in named_systems([folders[0], again])] == [str(folders[0]), str(again)]


def test_rows_table_and_files(place, tmp_path, capsys):
    files = ["--json", tmp_path / "new" / "rows.json", "--md", tmp_path / "rows.md"]
    bench(place, "--batch-sizes", "1,16", "--searches", "greedy_search", "--engine", "numba", *files)
    written = json.loads((tmp_path / "new" / "rows.json").read_text())
    rows = {(row["batch"], row["by"]): row for row in written["rows"]}
    assert set(rows) == {(batch, by) for batch in (1, 16) for by in (OURS, LOOP, "ours, numba")}
    for row in written["rows"]:
        assert 0.0 < row["search_rtf"] < row["encoder_search_rtf"] < row["whole_rtf"]
        assert row["other_words"] == 0 and row["words"] == sum(len(TEXTS[key].split()) for key in TEXTS if key != "a-1")
        assert row["wer"] == rows[1, OURS]["wer"] and (row["system"], row["search"]) == ("dense", "greedy_search")
    assert rows[16, LOOP]["loop_ratio"] == 1.0
    out = capsys.readouterr().out
    assert "5 utterances" in out and written["where"] in out
    assert (tmp_path / "rows.md").read_text().count("\n| ") == len(written["rows"])  # and the head before them


def test_a_graph_of_words_has_a_row(place, tmp_path):
    pytest.importorskip("k2", reason="k2 is not in this environment")
    searches = ["--searches", "fast_beam_search", "--graph-text", place / "data/text", "--batch-sizes", "2"]
    bench(place, *searches, "--utterances", "3", "--json", tmp_path / "rows.json")
    written = json.loads((tmp_path / "rows.json").read_text())
    assert [row["search"] for row in written["rows"]] == ["fast_beam_search", "fast_beam_search, words"]
    assert "; 3 utterances" in written["where"]


def test_sherpa_onnx_takes_part_where_there_is_an_export(place, tmp_path, capsys):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not in this environment")
    from rnnt_kd.export.export_system import export_system

    export_system(place / "systems/dense", place / "bpe", tmp_path / "dense", say=lambda *_: None)
    searches = ["--searches", "greedy_search,modified_beam_search", "--batch-sizes", "2", "--exports", tmp_path]
    bench(place, *searches, "--json", tmp_path / "rows.json")
    rows = {(row["search"], row["by"]): row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    for search in ("greedy_search", "modified_beam_search"):
        sherpa = rows[search, SHERPA]
        assert sherpa["search_rtf"] is None and sherpa["whole_rtf"] > 0.0 and sherpa["sherpa_ratio"] == 1.0
        assert sherpa["other_words"] == 0 and sherpa["wer"] == rows[search, OURS]["wer"]
        assert rows[search, OURS]["sherpa_ratio"] > 0.0
    shutil.move(tmp_path / "dense", tmp_path / "sparse")
    assert "no such folder" in refused(capsys, decode.main, *options(place, *searches), lines=None)
    assert "other weights" in refused(capsys, decode.main, *options(place, *searches, systems=["sparse"]), lines=None)


@pytest.mark.parametrize("arguments, message", [
    (["--rounds", "0"], "--rounds: 0; expected a number from 1 on"),
    (["--utterances", "0"], "--utterances: 0"),
    (["--batch-sizes", "1,x"], "--batch-sizes: '1,x'"),
    (["--searches", "slow_search"], "--searches: there is no 'slow_search'; expected one of: fast_beam_search"),
    (["--exports", "nowhere"], "nowhere: no such folder; expected a folder of exports; run stage 8"),
    (["--bpe-dir", "nowhere"], "nowhere: no such file"),
    (["--data-dir", "nowhere"], "nowhere"),
])  # fmt: skip
def test_bad_options_are_one_line(place, capsys, arguments, message):
    assert message in refused(capsys, decode.main, *options(place, *arguments), lines=None)


def test_without_k2_its_search_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    monkeypatch.delitem(sys.modules, "rnnt_kd.decoding.fast_beam_search", raising=False)
    line = refused(capsys, decode.main, *options(place, "--searches", "fast_beam_search"), lines=None)
    assert "'fast_beam_search' cannot be used here" in line


def test_batches_hold_every_utterance_once_and_those_of_like_length_together():
    speech = [Speech(str(length), "a", "s", np.zeros(length, np.float32)) for length in (5, 1, 4, 2, 3)]
    assert make_batches(speech, 2) == [["1", "2"], ["3", "4"], ["5"]]


def job(by, texts, whole, search="greedy_search", encoder_search=(), search_alone=()):
    parts = {"encoder_search": encoder_search, "search": search_alone} if encoder_search else {}
    specification = dict(system="small", search=search, by=by, batch=16, batches=[[0] * 16] * 2, graph_text=None)
    return Measurement(by, specification, seconds=whole, parts=parts, facts={"texts": dict(zip(("u0", "u1"), texts))})


@pytest.fixture
def rows():
    """Two batches, three rounds."""
    parts = [((3, 4, 8), (1, 1, 1)), "greedy_search", ((2, 3, 7), (1, 1, 1)), ((1, 2, 6), (0.5, 0.5, 0.5))]
    loop = [((9, 9, 9), (2, 2, 2)), "greedy_search", ((8, 8, 8), (2, 2, 2)), ((6, 12, 6), (2, 3, 4))]
    jobs = [job(OURS, ["a b", "c"], *parts), job(LOOP, ["a b", "c"], *loop)]
    jobs += [job(SHERPA, ["a x", ""], ((6, 4, 4), (3, 3, 3))), job(OURS, ["a b", "c"], ((1,), (1,)), "other_search")]
    return rows_of_group(jobs, {"u0": "a b", "u1": "c d"}, seconds=10.0)


def test_real_time_factors_and_ratios(rows):
    ours, loop, sherpa, other = rows
    assert (ours["search_rtf"], ours["search_rtf_low"], ours["search_rtf_high"]) == (0.25, 0.15, 0.65)
    assert (ours["encoder_search_rtf"], ours["whole_rtf"], ours["rounds"]) == (0.4, 0.5, 3)
    assert ours["loop_ratio"] == 6.0  # the median of 6, 6, 1, 4, 6, 8
    assert ours["sherpa_ratio"] == 2.5  # of 2, 1, 0.5, 3, 3, 3
    assert loop["loop_ratio"] == 1.0 and sherpa["sherpa_ratio"] == 1.0
    assert sherpa["search_rtf"] is None and sherpa["loop_ratio"] is None and sherpa["whole_rtf"] == 0.7
    assert other["loop_ratio"] is None and other["sherpa_ratio"] is None


def test_words_are_counted_and_compared_with_ours(rows):
    ours, _, sherpa, _ = rows
    assert (ours["wer"], ours["words"], ours["ins"], ours["del"], ours["sub"]) == (25.0, 4, 0, 1, 0)
    assert (sherpa["wer"], sherpa["del"], sherpa["sub"]) == (75.0, 2, 1)
    assert [row["other_words"] for row in rows] == [0, 0, 2, 0]

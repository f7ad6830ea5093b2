"""``python -m rnnt_kd.bin.bench_decode`` on small systems with random weights: rows, files, errors."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from export_cases import TEXTS, make_system

from rnnt_kd.bin import bench_decode
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.errors import UserError
from rnnt_kd.text.train_bpe import train_bpe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """bpe/, data/ (noise, and an utterance without audio), systems/small, systems/other."""
    folder = tmp_path_factory.mktemp("bench")
    generator = np.random.default_rng(0)
    audio = {key: folder / f"{key}.wav" for key in TEXTS}
    for index, path in enumerate(audio.values()):
        soundfile.write(path, 0.05 * generator.normal(size=4800 + 5500 * index), 16000)
    write_data_dir(folder / "data", wav_scp=audio, text=TEXTS, utt2spk={key: key[0] for key in TEXTS})
    audio["a-1"].write_bytes(b"no audio")
    train_bpe([text for text in TEXTS.values() if text], 16, folder / "bpe")
    make_system(folder / "systems" / "small", folder / "bpe")
    make_system(folder / "systems" / "other", folder / "bpe", seed=2)
    return folder


def bench(place, *more, systems=("small",)):
    folders = [str(place / "systems" / name) for name in systems]
    options = ["--data-dir", str(place / "data"), "--bpe-dir", str(place / "bpe"), "--rounds", "1", *map(str, more)]
    bench_decode.main(["--systems", *folders, *options])


def fails(place, capsys, *more):
    with pytest.raises(SystemExit) as error:
        bench(place, *more)
    assert error.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def searches_here():
    found = ["greedy_search", "modified_beam_search"]
    try:
        get_search("fast_beam_search")
    except UserError:
        return found
    return ["fast_beam_search", *found]


def test_rows_table_and_files(place, tmp_path, capsys):
    files = ["--json", tmp_path / "new" / "rows.json", "--md", tmp_path / "rows.md"]
    bench(place, "--batch-sizes", "1,16", *files, systems=("small", "other"))
    values = json.loads((tmp_path / "new" / "rows.json").read_text())
    rows = {(row["system"], row["batch"], row["search"], row["by"]): row for row in values["rows"]}
    loops = [("greedy_search", "plain loop"), ("modified_beam_search", "plain loop")]
    assert set(rows) == {
        (system, batch, *key)
        for system in ("small", "other")
        for batch in (1, 16)
        for key in [*((search, "ours") for search in searches_here()), *loops]
    }
    for row in values["rows"]:
        assert 0.0 < row["search_rtf"] < row["encoder_search_rtf"] < row["whole_rtf"]
        assert row["other_words"] == 0 and row["words"] == sum(len(TEXTS[key].split()) for key in TEXTS if key != "a-1")
        assert row["wer"] == rows[row["system"], 1, row["search"], "ours"]["wer"]
    assert rows["small", 16, "greedy_search", "plain loop"]["loop_ratio"] == 1.0
    out = capsys.readouterr().out
    assert "5 utterances" in out and "goal: small, batch 16" in out and "goal: other, batch 16" in out
    assert (tmp_path / "rows.md").read_text().count("\n| ") == len(values["rows"]) + 1


def test_a_graph_of_words_has_a_row(place, tmp_path):
    pytest.importorskip("k2", reason="k2 is not in this environment")
    options = ["--searches", "fast_beam_search", "--graph-text", place / "data/text", "--batch-sizes", "2"]
    bench(place, *options, "--utterances", "3", "--json", tmp_path / "rows.json")
    values = json.loads((tmp_path / "rows.json").read_text())
    assert [row["search"] for row in values["rows"]] == ["fast_beam_search", "fast_beam_search, words"]
    assert "; 3 utterances" in values["where"]


def test_sherpa_onnx_takes_part_where_there_is_an_export(place, tmp_path, capsys):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not in this environment")
    from rnnt_kd.export.export_system import export_system

    export_system(place / "systems/small", place / "bpe", tmp_path / "small", say=lambda *_: None)
    options = ["--searches", "greedy_search,modified_beam_search", "--batch-sizes", "2", "--exports", tmp_path]
    bench(place, *options, "--json", tmp_path / "rows.json")
    rows = {(row["search"], row["by"]): row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    for search in ("greedy_search", "modified_beam_search"):
        sherpa = rows[search, "sherpa-onnx"]
        assert sherpa["search_rtf"] is None and sherpa["whole_rtf"] > 0.0 and sherpa["sherpa_ratio"] == 1.0
        assert sherpa["other_words"] == 0 and sherpa["wer"] == rows[search, "ours"]["wer"]
        assert rows[search, "ours"]["sherpa_ratio"] > 0.0
    shutil.move(tmp_path / "small", tmp_path / "other")
    capsys.readouterr()
    assert "no such folder" in fails(place, capsys, *options)
    with pytest.raises(SystemExit):
        bench(place, *options, systems=("other",))
    assert "other weights" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rounds", "0"], "--rounds: 0; expected a number from 1 on"),
        (["--utterances", "0"], "--utterances: 0"),
        (["--batch-sizes", "1,x"], "--batch-sizes: '1,x'"),
        (["--searches", "slow_search"], "--searches: there is no 'slow_search'; expected some of: fast_beam_search"),
        (["--exports", "nowhere"], "nowhere: no such folder; expected a folder of exports"),
        (["--bpe-dir", "nowhere"], "nowhere: no such file"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_one_line(place, capsys, options, message):
    assert message in fails(place, capsys, *options)


def test_without_k2_its_search_is_one_line(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    monkeypatch.delitem(sys.modules, "rnnt_kd.decoding.fast_beam_search", raising=False)
    assert "'fast_beam_search' cannot be used here" in fails(place, capsys, "--searches", "fast_beam_search")

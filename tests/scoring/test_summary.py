"""The final table: every system has its row, finished or not."""

import json

import pytest

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.summary import DELAY_KEYS, KEYS, collect, markdown


def put(folder, name, **values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def add_system(folder, kd=False, test_set="test", p_value=None, decoded=True, scored=True):
    put(
        folder,
        "system.json",
        system=folder.name,
        role="x",
        params=1000,
        nonzero_params=400,
        sparsity=0.75,
        kd=kd,
        train_seconds=61.4,
    )
    decode_dir = folder / f"decode_{test_set}_greedy_search"
    if decoded:
        put(
            decode_dir,
            "decode.json",
            test_set=test_set,
            search="greedy_search",
            rtf=0.01234,
            command=f"decode {folder.name}",
        )
    if scored:
        figures = {"wer": 12.3456, "words": 500, "ins": 1, "del": 2, "sub": 3, "ci95": [10.0, 14.5], "p_value": p_value}
        put(decode_dir, f"wer-{test_set}.json", **figures, command=f"score {folder.name}")


def test_a_finished_experiment(tmp_path):
    add_system(tmp_path / "teacher")
    for name in ("small", "sparse60", "sparse90"):
        add_system(tmp_path / "students" / name)
        add_system(tmp_path / "students" / f"{name}_kd", kd=True, p_value=0.0123)
    add_system(tmp_path / "students" / "sparse60.old-1")
    rows = collect(tmp_path, ["test"])
    names = ["teacher", "sparse60", "sparse60_kd", "sparse90", "sparse90_kd", "small", "small_kd"]
    assert [row.values["system"] for row in rows] == names
    assert all(tuple(row.values) == KEYS and not row.state for row in rows)
    keys = "system role params nonzero_params sparsity kd test_set search"
    assert list(KEYS) == f"{keys} wer words ins del sub ci95 p_value train_seconds rtf".split()
    assert [row.values["role"] for row in rows] == ["teacher"] + ["student"] * 6
    assert [row.values["kd"] for row in rows] == [False, False, True, False, True, False, True]
    table = markdown(rows, "an4", ["summarize"]).splitlines()
    assert table[0].startswith("Corpus an4; test sets: test (500 words)")
    cells = "sparse60_kd | test | greedy_search | 1,000 | 400 | 75.0% | 12.35 [10.00, 14.50] | 1 | 2 | 3"
    assert f"| {cells} | 0.0123 | 61 | 0.0123 |" in table
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert "decode teacher" in table and "score small_kd" in table and "summarize" in table


def test_what_is_not_finished_is_shown(tmp_path):
    put(tmp_path / "teacher", "config.yaml")
    add_system(tmp_path / "students" / "a", decoded=False, scored=False)
    add_system(tmp_path / "students" / "b", scored=False)
    add_system(tmp_path / "students" / "c_kd", kd=True)
    rows = collect(tmp_path, ["test"], expected=["teacher", "d"])
    states = {row.values["system"]: row.state for row in rows}
    assert states == {
        "teacher": "training is not finished",
        "a": "not decoded",
        "b": "decoded, not scored",
        "c": "missing, not trained",
        "c_kd": "not compared with its twin without distillation",
        "d": "missing, not trained",
    }
    assert all(tuple(row.values) == KEYS for row in rows)
    table = markdown(rows, "x")
    assert all(f"| {name} |" in table and f"- {name} on test: {state}" in table for name, state in states.items())
    assert (
        "- c_kd on test: not compared" in table
        and "| c_kd | test | greedy_search | 1,000 | 400 | 75.0% | 12.35" in table
    )
    assert json.loads(json.dumps([row.values for row in rows]))


def test_an_empty_experiment_says_so(tmp_path):
    assert [row.state for row in collect(tmp_path, ["test"])] == ["missing, not trained"]
    assert "nothing scored yet" in markdown(collect(tmp_path, ["test"]), "x")


def test_several_test_sets_whose_names_begin_alike(tmp_path):
    add_system(tmp_path / "teacher", test_set="dev")
    add_system(tmp_path / "teacher", test_set="dev_other")
    (tmp_path / "teacher" / "decode_dev_other_modified_beam_search").mkdir()
    rows = collect(tmp_path, ["dev", "dev_other", "dev_third"])
    found = [(row.values["test_set"], row.values["search"], row.state) for row in rows]
    assert found == [
        ("dev", "greedy_search", ""),
        ("dev_other", "greedy_search", ""),
        ("dev_other", "modified_beam_search", "decoding is not finished"),
        ("dev_third", None, "not decoded"),
    ]


def test_a_delay_has_its_column_where_one_was_measured(tmp_path):
    add_system(tmp_path / "teacher")
    add_system(tmp_path / "students" / "stream")
    add_system(tmp_path / "students" / "stream_kd", kd=True, p_value=0.5)
    assert "delay" not in markdown(collect(tmp_path, ["test"]), "x").lower()
    for name, figures in (("stream", dict(mean_ms=85.4, ci95_ms=[80.2, 91.0])), ("stream_kd", dict(mean_ms=None))):
        folder = tmp_path / "students" / name / "decode_test_greedy_search"
        put(folder, "delay-test.json", words=400, command=f"delay {name}", **{"ci95_ms": None, **figures})
    rows = collect(tmp_path, ["test"])
    assert [row.values.get("delay_ms", "none") for row in rows] == ["none", 85.4, None]
    assert tuple(rows[0].values) == KEYS and tuple(rows[1].values) == (*KEYS, *DELAY_KEYS)
    table = markdown(rows, "x", []).splitlines()
    lines = [line for line in table if line.startswith("|")]
    assert [line.split("|")[-2].strip() for line in lines] == ["delay ms [95 %]", "---:", "-", "85 [80, 91]", "-"]
    assert len({line.count("|") for line in lines}) == 1 and "Delay: " in table[0] and "delay stream" in table


def test_a_damaged_file_is_named(tmp_path):
    add_system(tmp_path / "teacher")
    for content in ("{", "[]"):
        (tmp_path / "teacher" / "system.json").write_text(content)
        with pytest.raises(UserError, match="teacher/system.json: not a JSON object"):
            collect(tmp_path, ["test"])

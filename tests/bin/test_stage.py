"""A finished stage is skipped; a change runs it again and is named."""

import json
import os

import pytest
from command_cases import edit_record

from rnnt_kd.bin.stage import Stage
from rnnt_kd.errors import UserError
from rnnt_kd.record import LARGE, PARTS, verify


def make(tmp_path, settings=None, **more):
    return Stage(tmp_path / "out", "bpe", settings or {"vocab_size": 60}, [tmp_path / "text"], ["bpe.model"], **more)


def finished(tmp_path):
    (tmp_path / "text").write_text("a b c")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bpe.model").write_text("model")
    assert not make(tmp_path).is_finished()
    make(tmp_path).finish()


def linked(audio, target):
    audio.unlink()
    audio.symlink_to(target)


def test_a_folder_that_is_an_input_is_what_is_in_it(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    (tmp_path / "text/cuts.0.jsonl").write_text("a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bpe.model").write_text("model")
    make(tmp_path).finish()
    assert make(tmp_path).is_finished()
    (tmp_path / "text/cuts.0.jsonl").write_text("ab")
    assert not make(tmp_path).is_finished() and "text changed" in capsys.readouterr().out


SOURCES = {
    "newer": lambda audio, twin: os.utime(audio, ns=(0, audio.stat().st_mtime_ns + 1)),
    "older": lambda audio, twin: os.utime(audio, ns=(0, 10**18)),
    "another size, the same time": lambda audio, twin: (audio.write_text("xyz"), os.utime(audio, ns=(0, 10**18 + 1))),
    "a link, where a file was": lambda audio, twin: linked(audio, twin),
    "gone": lambda audio, twin: audio.unlink(),
}


@pytest.mark.parametrize("change", SOURCES.values(), ids=SOURCES)
def test_another_source_runs_again(tmp_path, capsys, change):
    finished(tmp_path)
    audio, twin = tmp_path / "a.wav", tmp_path / "b.wav"
    for path in (audio, twin):
        path.write_text("")
        os.utime(path, ns=(0, 10**18 + 1))
    make(tmp_path, sources=[audio]).finish()
    assert make(tmp_path, sources=[audio]).is_finished()
    change(audio, twin)
    assert not make(tmp_path, sources=[audio]).is_finished()
    assert f"{audio} changed since" in capsys.readouterr().out


def test_a_link_that_leads_to_another_file_of_the_same_size_and_time_runs_again(tmp_path):
    finished(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, ns=(0, 10**18))
    middle, link = tmp_path / "middle", tmp_path / "link"
    middle.symlink_to("one")
    link.symlink_to("middle")
    make(tmp_path, sources={"a": link}).finish()
    assert make(tmp_path, sources={"a": link}).is_finished()
    linked(middle, "two")
    assert not make(tmp_path, sources={"a": link}).is_finished()


def test_a_record_without_sources_compares_their_times_with_its_own(tmp_path):
    finished(tmp_path)
    audio, record = tmp_path / "a.wav", tmp_path / "out" / ".bpe.record.json"
    edit_record(record, lambda values: values.pop("sources"))
    audio.write_text("")
    for after in (-1, 1):
        os.utime(audio, ns=(0, record.stat().st_mtime_ns + after))
        assert make(tmp_path, sources=[audio]).is_finished() == (after < 0)


def test_changed_setting_input_or_lost_output_runs_again(tmp_path, capsys):
    finished(tmp_path)
    assert make(tmp_path).is_finished()
    assert "finished already, skipped" in capsys.readouterr().out
    assert not make(tmp_path, {"vocab_size": 61}).is_finished()
    assert "vocab_size was 60 and is 61" in capsys.readouterr().out

    (tmp_path / "text").write_text("another text")
    assert not make(tmp_path).is_finished()
    assert "text changed" in capsys.readouterr().out

    (tmp_path / "text").write_text("a b c")
    assert make(tmp_path).is_finished()
    (tmp_path / "out" / "bpe.model").unlink()
    assert not make(tmp_path).is_finished()
    assert "bpe.model is missing" in capsys.readouterr().out


RECORDS = {
    **{text[:8]: text for text in ("{ half a", '"x"', "[]", "17", "null", "[" * 100_000, "\ud800")},
    **{f"{key} {value!r}": json.dumps({key: value}) for key in PARTS for value in (None, 1, "x", [], ["outputs"])},
    "digests no text": json.dumps({"inputs": {"a": 1}, "outputs": {"bpe.model": [1]}}),
    "names no names": json.dumps({"outputs": {"a\0b": "x", "": "y"}, "stats": {"": 3}, "sources": {"a": {}}}),
}


@pytest.mark.parametrize("text", [*RECORDS.values(), None], ids=[*RECORDS, "forgotten by start"])
def test_without_a_whole_record_nothing_is_finished(tmp_path, text):
    finished(tmp_path)
    if text is None:
        make(tmp_path).start()
    else:
        (tmp_path / "out" / ".bpe.record.json").write_text(text, errors="surrogatepass")
    (tmp_path / "a").write_text("")
    assert not make(tmp_path, sources={"a": tmp_path / "a"}).is_finished()


def test_a_flipped_bit_of_any_byte_of_a_record_and_of_an_output_is_found(tmp_path):
    finished(tmp_path)
    for name in (".bpe.record.json", "bpe.model"):
        path = tmp_path / "out" / name
        whole = path.read_bytes()
        for bit in (8 * i + i % 8 for i in range(len(whole))):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert make(tmp_path).why_not() or json.loads(damaged) == json.loads(whole), (name, bit)
        path.write_bytes(whole)
    assert not make(tmp_path).why_not()


def test_a_file_in_a_folder_that_is_lost_or_damaged_runs_again(tmp_path):
    features = tmp_path / "feats"
    features.mkdir()
    for name in ("0.lca", "1.lca"):
        (features / name).write_bytes(bytes(LARGE + 1))

    def why_not():
        return Stage(tmp_path, "features", {}, [], ["feats"]).why_not()

    Stage(tmp_path, "features", {}, [], ["feats"]).finish()
    os.utime(features / "0.lca", ns=(0, 0))
    assert why_not() == "", "another time alone: the contents decide"
    with open(features / "0.lca", "r+b") as file:
        file.write(b"x")
    assert why_not() == "feats/0.lca is not what was written"
    (features / "0.lca").unlink()
    assert why_not() == "feats/0.lca is missing"


def test_a_folder_that_moves_with_its_inputs_stays_finished(tmp_path):
    finished(tmp_path)
    (tmp_path / "text").rename(tmp_path / "elsewhere")
    inputs = [tmp_path / "elsewhere"]
    assert Stage(tmp_path / "out", "bpe", {"vocab_size": 60}, inputs, ["bpe.model"]).is_finished()
    inputs[0].write_text("another text")
    assert not Stage(tmp_path / "out", "bpe", {"vocab_size": 60}, inputs, ["bpe.model"]).is_finished()


def test_verify_names_the_file_the_record_and_the_next_step(tmp_path):
    finished(tmp_path)
    model, record = tmp_path / "out" / "bpe.model", tmp_path / "out" / ".bpe.record.json"
    verify(model, "bpe", "run stage 2 again")
    verify(model, "of something else", "run stage 2 again")
    model.write_text("other")
    with pytest.raises(UserError, match=f"{model}: is not what was written; .*run stage 2 again; or remove {record}"):
        verify(model, "bpe", "run stage 2 again")
    record.write_text("{")
    with pytest.raises(UserError, match=f"{record}: damaged; .*run stage 2 again; or remove {record}"):
        verify(model, "bpe", "run stage 2 again")
    record.unlink()
    verify(model, "bpe", "run stage 2 again")


def test_outputs_known_only_at_the_end_count_too(tmp_path, capsys):
    made = tmp_path / "made"
    stage = Stage(tmp_path, "corpus", {"seed": 1}, [], [])
    made.write_text("x")
    stage.finish(["made"])
    assert stage.is_finished()
    made.unlink()
    assert not stage.is_finished()
    assert "made is missing" in capsys.readouterr().out

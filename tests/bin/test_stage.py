"""A finished stage is skipped; a change runs it again and is named."""

import os

import pytest

from rnnt_kd.bin.stage import Stage


def make(tmp_path, settings=None, **more):
    return Stage(tmp_path / "out", "bpe", settings or {"vocab_size": 60}, [tmp_path / "text"], ["bpe.model"], **more)


def finished(tmp_path):
    (tmp_path / "text").write_text("a b c")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bpe.model").write_text("model")
    assert not make(tmp_path).is_finished()
    make(tmp_path).finish()


def test_a_newer_source_runs_again(tmp_path, capsys):
    finished(tmp_path)
    audio = tmp_path / "a.wav"
    audio.write_text("")
    record = tmp_path / "out" / ".bpe.record.json"
    os.utime(audio, ns=(0, record.stat().st_mtime_ns - 1))
    assert make(tmp_path, sources=[audio]).is_finished()
    os.utime(audio, ns=(0, record.stat().st_mtime_ns + 1))
    assert not make(tmp_path, sources=[audio]).is_finished()
    assert f"{audio} changed since" in capsys.readouterr().out


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


@pytest.mark.parametrize("record", ["{ half a", None], ids=["damaged", "forgotten by start"])
def test_without_a_record_nothing_is_finished(tmp_path, record):
    finished(tmp_path)
    if record is None:
        make(tmp_path).start()
    else:
        (tmp_path / "out" / ".bpe.record.json").write_text(record)
    assert not make(tmp_path).is_finished()


def test_outputs_known_only_at_the_end_count_too(tmp_path, capsys):
    made = tmp_path / "made"
    stage = Stage(tmp_path, "corpus", {"seed": 1}, [], [])
    made.write_text("x")
    stage.finish(["made"])
    assert stage.is_finished()
    made.unlink()
    assert not stage.is_finished()
    assert "made is missing" in capsys.readouterr().out

"""Texts of Kaldi data directories, and what is none."""

import pytest

from rnnt_kd.errors import UserError
from rnnt_kd.text.transcripts import read_transcripts


def test_ids_and_empty_transcripts_are_left_out(tmp_path):
    (tmp_path / "one").write_text("\ufeffa-1 ONE  TWO\na-2\n\na-3 \u3000\nb-1\tÜ 日本\n", encoding="utf-8")
    (tmp_path / "two").write_text("c-1 x", encoding="utf-8")
    assert read_transcripts([tmp_path / "one", tmp_path / "two"]) == ["ONE  TWO", "Ü 日本", "x"]


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="text: no such file; expected the text file of a Kaldi data directory"):
        read_transcripts([tmp_path / "text"])
    (tmp_path / "text").write_bytes(b"a-1 \xff\n")
    with pytest.raises(UserError, match="text: is not UTF-8"):
        read_transcripts([tmp_path / "text"])

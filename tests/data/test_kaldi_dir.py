"""Kaldi data directories: what is right is read as it is, each defect is one line that names its place."""

import os
import re

import numpy as np
import pytest
import soundfile
from command_cases import told
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.data.kaldi_dir import read_data_dir, write_data_dir
from rnnt_kd.errors import UserError


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "audio.wav"
    soundfile.write(path, np.full(1600, 0.1), 16000)
    return path


@pytest.fixture
def data_dir(tmp_path, wav):
    """Three utterances of two speakers; the tests break it."""
    path = tmp_path / "data"
    path.mkdir()
    (path / "wav.scp").write_text(f"a-1 {wav}\na-2 {wav}\nb-1 {wav}\n")
    (path / "text").write_text("a-1 ONE\na-2 TWO  WORDS\nb-1\n")
    (path / "utt2spk").write_text("a-1 a\na-2 a\nb-1 b\n")
    (path / "spk2utt").write_text("a a-1 a-2\nb b-1\n")
    return path


def test_a_right_directory_is_read_as_it_is(data_dir, wav):
    data = read_data_dir(data_dir)
    assert [utterance.id for utterance in data.utterances] == ["a-1", "a-2", "b-1"]
    assert [utterance.text for utterance in data.utterances] == ["ONE", "TWO WORDS", ""]
    assert data.speakers == ["a", "b"]
    assert data.recordings["a-1"].source == str(wav)
    assert not data.has_segments


def test_windows_line_ends_tabs_and_byte_order_marks_are_taken(data_dir):
    (data_dir / "text").write_bytes("\ufeffa-1\tÉÉN\r\na-2 二　三\r\nb-1 \r\n".encode())
    assert [utterance.text for utterance in read_data_dir(data_dir).utterances] == ["ÉÉN", "二 三", ""]


def test_transcripts_are_read_in_one_form_and_ids_as_they_are(data_dir):
    (data_dir / "text").write_text("a-1 e\u0301\u00a0x\na-2 \u00e9\nb-1\n", encoding="utf-8")
    assert [utterance.text for utterance in read_data_dir(data_dir).utterances] == ["\u00e9 x", "\u00e9", ""]
    assert read_data_dir(data_dir, normalization="none").utterances[0].text == "e\u0301 x"


def test_ids_are_sorted_as_bytes_not_as_words_and_spk2utt_may_be_missing(data_dir, wav):
    for name, value in (("wav.scp", wav), ("text", "X"), ("utt2spk", "s")):
        (data_dir / name).write_text(f"B {value}\na {value}\né {value}\n𐍈 {value}\n", encoding="utf-8")
    (data_dir / "spk2utt").unlink()
    assert [utterance.id for utterance in read_data_dir(data_dir).utterances] == ["B", "a", "é", "𐍈"]


def test_segments_give_spans_and_minus_one_is_the_end(data_dir, wav):
    (data_dir / "wav.scp").write_text(f"rec {wav}\n")
    (data_dir / "segments").write_text("a-1 rec 0 0.04\na-2 rec 0.04 0.08\nb-1 rec 0.05 -1\n")
    data = read_data_dir(data_dir)
    spans = [(utterance.recording_id, utterance.start, utterance.end) for utterance in data.utterances]
    assert spans == [("rec", 0.0, 0.04), ("rec", 0.04, 0.08), ("rec", 0.05, None)]


def test_relative_paths_are_sought_in_the_current_directory_then_in_the_data_directory(data_dir, tmp_path, monkeypatch):
    """And a path may hold spaces."""
    monkeypatch.chdir(tmp_path)
    soundfile.write(data_dir / "in  side é.wav", np.full(1600, 0.1), 16000)
    (data_dir / "wav.scp").write_text("a-1 audio.wav\na-2 in  side é.wav\nb-1 data/in  side é.wav\n")
    sources = [entry.source for entry in read_data_dir("data").recordings.values()]
    assert sources == [str(tmp_path / "audio.wav"), *[str(data_dir / "in  side é.wav")] * 2]


def test_pipes_are_taken_only_where_allowed_and_never_run_here(data_dir, tmp_path):
    (data_dir / "wav.scp").write_text(f"a-1 touch {tmp_path}/ran |\na-2 false |\nb-1 true |\n")
    with pytest.raises(UserError, match=r"wav.scp:1: is a shell pipe.*--allow-pipes"):
        read_data_dir(data_dir)
    entry = read_data_dir(data_dir, allow_pipes=True).recordings["a-1"]
    assert entry.is_pipe and entry.source == f"touch {tmp_path}/ran"
    assert not (tmp_path / "ran").exists()


DEFECTS = {
    "no wav.scp": ("wav.scp", None, "has no file wav.scp"),
    "no text": ("text", None, "has no file text"),
    "no utt2spk": ("utt2spk", None, "has no file utt2spk"),
    "empty": ("text", "", "text: is empty"),
    "unsorted": ("text", "a-2 X\na-1 X\nb-1 X\n", r"text:2: is not sorted.*LC_ALL=C sort"),
    "two Unicode forms": ("text", "cafe\u0301 X\ncaf\u00e9 X\n", r"text:2: .*'cafe\\u0301' and 'caf\\xe9'"),
    "speakers in two forms": ("utt2spk", "a-1 \u00e9\na-2 e\u0301\nb-1 b\n", r"utt2spk:2: .*'\\xe9' and 'e\\u0301'"),
    "duplicate": ("text", "a-1 X\na-1 X\nb-1 X\n", r"text:2: duplicate id .a-1. \(first at line 1\)"),
    "transcript for nothing": ("text", "a-1 X\na-2 X\nb-1 X\nc-1 X\n", r"text:4: transcript .c-1. has no audio"),
    "audio without transcript": ("text", "a-1 X\nb-1 X\n", r"wav.scp:2: audio .a-2. has no transcript"),
    "no speaker": ("utt2spk", "a-1 a\nb-1 b\n", r"wav.scp:2: utterance .a-2. has no speaker"),
    "speaker of nothing": ("utt2spk", "a-1 a\na-2 a\nb-1 b\nc c\n", r"utt2spk:4: utterance .c. has no audio"),
    "two speakers": ("utt2spk", "a-1 a b\na-2 a\nb-1 b\n", r"utt2spk:1: found .a-1 a b."),
    "spk2utt differs": ("spk2utt", "a a-1\nb b-1\n", r"spk2utt:1: utterances of speaker .a. differ"),
    "spk2utt lacks": ("spk2utt", "a a-1 a-2\n", r"speaker .b. of utt2spk is missing"),
    "spk2utt has more": ("spk2utt", "a a-1 a-2\nb b-1\nc c-1\n", r"spk2utt:3: speaker .c. is not in utt2spk"),
    "missing audio": ("wav.scp", "a-1 /nowhere/x.wav\n", r"wav.scp:1: audio /nowhere/x.wav does not exist"),
    "missing relative audio": ("wav.scp", "a-1 x.wav\n", r"wav.scp:1: audio x.wav does not exist.*relative to"),
    "audio with a name that is too long": ("wav.scp", f"a-1 {9999 * 'x'}\n", r"wav.scp:1: audio x+ does not exist"),
    "a URL": ("wav.scp", "a-1 https://localhost/x.wav\n", r"wav.scp:1: audio https://localhost/x.wav is no path"),
    "Lhotse's pipe": ("wav.scp", "a-1 pipe:touch x\n", r"wav.scp:1: audio pipe:touch x is no path"),
    "a device": ("wav.scp", "a-1 /dev/zero\n", r"wav.scp:1: audio /dev/zero is a device or pipe"),
    "no value": ("wav.scp", "a-1\n", r"wav.scp:1: id .a-1. has no value"),
    "empty line": ("text", "a-1 X\n\na-2 X\nb-1 X\n", r"text:2: is empty"),
    "NUL": ("text", "a-1 X\0\na-2 X\nb-1 X\n", r"text:1: holds a NUL"),
    "ideographic blank": ("text", "a-1 X\na-2\u3000X\nb-1 X\n", r"text:2: id .a-2.X. holds the blank U\+3000"),
    "no-break blank": ("utt2spk", "a-1\u00a0a\n", r"utt2spk:1: id .a-1.a. holds the blank U\+00A0 \(no-break space"),
    "mark within": ("wav.scp", "a-1 x\n\ufeffa-2 x\n", r"wav.scp:1: audio|wav.scp:2: id .*U\+FEFF"),
    "unknown recording": ("segments", "a-1 nope 0 1\n", r"segments:1: recording .nope. is not"),
    "three fields": ("segments", "a-1 a-1 0\n", r"segments:1: has 3 fields"),
    "no number": ("segments", "a-1 a-1 zero 1\n", r"segments:1: times .zero 1. are not numbers"),
    "NaN time": ("segments", "a-1 a-1 0 nan\n", r"segments:1: times .0 nan. are not numbers"),
    "end before start": ("segments", "a-1 a-1 2 1\n", r"segments:1: ends at 1, not after its start 2"),
    "end at start": ("segments", "a-1 a-1 2 2\n", r"segments:1: ends at 2, not after"),
    "negative start": ("segments", "a-1 a-1 -1 2\n", r"segments:1: starts at -1"),
    "unused": ("segments", "a-1 a-1 0 1\na-2 a-1 0 1\nb-1 a-1 0 1\n", r"wav.scp:2: recording .a-2. is in no seg"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_one_line_that_names_its_place(data_dir, defect):
    name, content, message = DEFECTS[defect]
    if content is None:
        (data_dir / name).unlink()
    else:
        (data_dir / name).write_text(content)
    said = told(read_data_dir, data_dir)
    assert re.search(message, said) and str(data_dir) in said, said


def test_a_missing_directory_a_file_and_wrong_encoding_are_named(tmp_path, data_dir, wav):
    assert "nowhere: no such directory" in told(read_data_dir, tmp_path / "nowhere")
    assert "no such directory" in told(read_data_dir, wav)
    (data_dir / "text").write_bytes("a-1 X\na-2 é\n".encode("latin-1"))
    assert "text:2: is not UTF-8" in told(read_data_dir, data_dir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_named(data_dir, wav):
    wav.chmod(0)
    assert "permission denied" in told(read_data_dir, data_dir)


words = st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=4), max_size=4)
ids = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Z"), blacklist_characters="\ufeff"), min_size=1, max_size=5
)


@given(table=st.dictionaries(ids, words, min_size=1, max_size=5))
def test_what_is_written_is_what_is_read(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    soundfile.write(folder / "x.flac", np.full(160, 0.1), 16000)
    text = {key: " ".join(value) for key, value in table.items()}
    write_data_dir(
        folder / "d", wav_scp=dict.fromkeys(text, folder / "x.flac"), text=text, utt2spk=dict.fromkeys(text, "é")
    )
    data = read_data_dir(folder / "d")
    assert {utterance.id: utterance.text for utterance in data.utterances} == text
    assert (folder / "d/spk2utt").read_text(encoding="utf-8") == f"é {' '.join(item.id for item in data.utterances)}\n"
    assert sorted(os.listdir(folder)) == ["d", "x.flac"]


def test_a_wrong_directory_is_not_written_and_the_old_one_stays(data_dir, wav):
    before = {path.name: path.read_bytes() for path in data_dir.iterdir()}
    with pytest.raises(UserError, match=r"data/text:1: transcript .y. has no audio.*not written"):
        write_data_dir(data_dir, wav_scp={"x": wav}, text={"y": "Y"}, utt2spk={"x": "s"})
    assert {path.name: path.read_bytes() for path in data_dir.iterdir()} == before
    assert sorted(path.name for path in data_dir.parent.iterdir()) == ["audio.wav", "data"]

"""What cannot be trained on is counted, named and left out."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.data import source as source_module
from rnnt_kd.data.selection import needed_frames, select, write_left_out
from rnnt_kd.data.source import open_source


@pytest.fixture
def choose(tmp_path):
    """Selects among cuts of (id, text, seconds) that nobody reads."""

    def chosen(utterances, separate_repeats=False):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(cut(*utterance)) + "\n" for utterance in utterances))
        return select(
            open_source(path),
            encode=lambda text: [1 if letter == "?" else ord(letter) for letter in text],
            unk_id=1,
            checksum="letters",
            encoder_frames=lambda frames: torch.div(frames + 3, 4, rounding_mode="floor"),
            min_seconds=0.1,
            max_seconds=10.0,
            separate_repeats=separate_repeats,
        )

    return chosen


def test_what_one_tokenizer_makes_of_the_texts_is_not_taken_for_anothers(tmp_path, monkeypatch):
    """In one process, and out of an index that is kept."""
    monkeypatch.setattr(source_module, "KEPT_BYTES", 0)
    path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps(cut("a", "abcdef", 0.2)) + "\n")
    options = dict(unk_id=1, encoder_frames=lambda frames: frames // 4, min_seconds=0.1, max_seconds=10.0)
    for length, kept in ((1, 0), (6, 1), (1, 0)):
        for _ in range(2):
            source_module._open_source.cache_clear()
            for other in (length, 7 - length):
                chosen = select(
                    open_source(path), encode=lambda text: [*text[::other]], checksum=f"{other}", separate_repeats=True,  # noqa: B023
                    **options,
                )  # fmt: skip
                assert chosen.kept == (kept if other == length else 1 - kept)


def cut(name, text, seconds):
    source = {"type": "file", "channels": [0], "source": "x.wav"}
    samples = round(seconds * 16000)
    recording = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": samples, "duration": seconds}
    about = {"id": name, "start": 0.0, "duration": seconds, "channel": 0, "recording": recording, "type": "MonoCut"}
    return {
        **about,
        "supervisions": [{"id": name, "recording_id": name, "start": 0.0, "duration": seconds, "text": text}],
    }


def test_what_cannot_be_trained_on_is_left_out_by_its_reason_and_written(tmp_path, choose):
    selection = choose([
        ("good", "abc", 1.0), ("empty", "", 1.0), ("unknown", "ab?", 1.0), ("short", "", 0.05),
        ("long", "abc", 11.0), ("dense", "abcdef", 0.2), ("just", "abcde", 0.2),
    ])  # fmt: skip
    assert [name for names in selection.left_out().values() for name in names] == ["unknown", "short", "long", "dense"]
    assert (selection.total, selection.kept, selection.places.tolist()) == (7, 3, [0, 1, 6])
    assert selection.summary("train").startswith("train: 3 of 7 utterances; left out: 1 (14.3 %) ")
    assert 'text that the BPE model cannot write, such as "?" of "ab?" in unknown' in selection.summary("train")
    write_left_out(tmp_path / "left_out.json", {"train": selection, "dev": choose([("good", "a", 1.0)])})
    written = json.loads((tmp_path / "left_out.json").read_text())
    assert written["dev"] == {} and ["dense"] in written["train"].values() and len(written["train"]) == 4


def test_ctc_needs_a_blank_between_repeats(choose):
    utterance = ("dense", "aabb", 0.2)  # 5 encoder frames
    assert not choose([utterance]).left_out()
    assert [*choose([utterance], separate_repeats=True).left_out().values()] == [["dense"]]
    assert needed_frames([], True) == needed_frames([], False) == 0


@given(st.lists(st.integers(2, 3), max_size=5))
def test_needed_frames_is_where_ctc_becomes_finite(symbols):
    need = needed_frames(symbols, True)
    for frames in range(max(1, need - 1), need + 2):
        loss = torch.nn.functional.ctc_loss(
            torch.zeros(frames, 1, 4).log_softmax(-1), torch.tensor([symbols]).long().view(1, -1),
            torch.tensor([frames]), torch.tensor([len(symbols)]), reduction="sum",
        )  # fmt: skip
        assert torch.isfinite(loss) == (frames >= need)

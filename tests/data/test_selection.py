"""What cannot be trained on is counted, named and left out."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.data.dataset import CutInfo
from rnnt_kd.data.selection import needed_frames, select, write_left_out


def choose(utterances, separate_repeats=False):
    return select(
        utterances,
        encode=lambda text: [1 if letter == "?" else ord(letter) for letter in text],
        unk_id=1,
        encoder_frames=lambda frames: torch.div(frames + 3, 4, rounding_mode="floor"),
        min_seconds=0.1,
        max_seconds=10.0,
        separate_repeats=separate_repeats,
    )


def cut(name, text, seconds):
    return CutInfo(name, text, "speaker", seconds, round(seconds * 100))


def test_what_cannot_be_trained_on_is_left_out_by_its_reason_and_written(tmp_path):
    selection = choose([
        cut("good", "abc", 1.0), cut("empty", "", 1.0), cut("unknown", "ab?", 1.0), cut("short", "", 0.05),
        cut("long", "abc", 11.0), cut("dense", "abcdef", 0.2), cut("just", "abcde", 0.2),
    ])  # fmt: skip
    assert selection.reasons.keys() == {"unknown", "short", "long", "dense"}
    assert (selection.total, selection.kept) == (7, 3)
    assert selection.summary("train").startswith("train: 3 of 7 utterances; left out: 1 (14.3 %) ")
    assert 'text that the BPE model cannot write, such as "?" of "ab?" in unknown' in selection.summary("train")
    write_left_out(tmp_path / "left_out.json", {"train": selection, "dev": choose([cut("good", "a", 1.0)])})
    written = json.loads((tmp_path / "left_out.json").read_text())
    assert written["dev"] == {} and ["dense"] in written["train"].values() and len(written["train"]) == 4


def test_ctc_needs_a_blank_between_repeats():
    utterance = cut("dense", "aabb", 0.2)  # 5 encoder frames
    assert not choose([utterance]).reasons
    assert choose([utterance], separate_repeats=True).reasons.keys() == {"dense"}
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

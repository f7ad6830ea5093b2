"""Folds by speaker: who is where, what stands in their data directories and cuts, and what is refused."""

import gzip
import json
import random
import shutil

import numpy as np
import pytest
from tone_corpus import write_tones

from rnnt_kd import files
from rnnt_kd.data import folds
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import read_data_dir, read_table, write_data_dir
from rnnt_kd.data.source import open_source
from rnnt_kd.data.stored_features import read_features
from rnnt_kd.errors import UserError


@pytest.mark.parametrize("number", [3, 5, 7])
def test_every_speaker_is_in_one_fold_and_the_folds_are_balanced_in_words(number):
    generator = random.Random(number)
    words = {f"speaker{n}": generator.randint(20, 150) for n in range(84)}
    parts = folds.divide(words, number)
    assert sorted(speaker for part in parts for speaker in part) == sorted(words)
    totals = [sum(words[speaker] for speaker in part) for part in parts]
    assert max(totals) - min(totals) <= min(words.values())
    shuffled = list(words.items())
    generator.shuffle(shuffled)
    assert folds.divide(dict(shuffled), number) == parts


def test_fold_k_is_tested_the_next_validates_and_the_others_train():
    parts = [["a"], ["b", "c"], ["d"], ["e"]]
    assert folds.sets_of(parts, 1) == {"train": {"d", "e"}, "dev": {"b", "c"}, "test": {"a"}}
    assert folds.sets_of(parts, 4) == {"train": {"b", "c", "d"}, "dev": {"a"}, "test": {"e"}}


@pytest.mark.parametrize("words, found", [
    ({"a": 3, "b": 2}, "2 speakers for 3 folds"),
    ({"a": 3, "b": 2, "c": 0, "d": 0}, "fold 3 has no word: only 2 speakers say any"),
])  # fmt: skip
def test_too_few_speakers_and_folds_without_words_are_refused(words, found):
    with pytest.raises(UserError, match=found):
        folds.divide(words, 3)


def directory(folder, name, ids, speaker=lambda key: key[:1], segments=False):
    audio, generator = folder / "audio", np.random.default_rng(1)
    audio.mkdir(exist_ok=True)
    for key in ids:
        write_tones(audio / f"{key}.wav", "abc de", generator)
    spans = {f"{key}-s": (key, 0.1, 0.6) for key in ids}
    keys = list(spans) if segments else ids
    return write_data_dir(
        folder / name,
        wav_scp={key: audio / f"{key}.wav" for key in ids},
        text=dict.fromkeys(keys, "abc de"),
        utt2spk={key: speaker(key) for key in keys},
        segments=spans if segments else None,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(EXP_DIR, what was said) of three folds over a plain directory and one of segments, speakers a to f."""
    folder = tmp_path_factory.mktemp("folds")
    sources = [
        directory(folder, "train", ["a1", "a2", "b1", "b2", "c1"]),
        directory(folder, "test", ["d1", "e1", "f1"], segments=True),
    ]
    said = []
    folds.make_data(folder / "exp", 3, sources, said.append)
    union = folds.union_dir(folder / "exp", 3)
    compute_features(union / "data", union / "cuts", "train", [0.9, 1.0])
    for fold in (1, 2, 3):
        select(folder / "exp", fold)
    return folder / "exp", said, sources


def select(exp_dir, fold):
    data = folds.fold_dir(exp_dir, fold, 3) / "data"
    folds.select_cuts(exp_dir, fold, 3, {name: ("train", data / name) for name in folds.SETS})


def test_folds_hold_all_speakers_once_and_never_one_in_two_sets(made):
    exp_dir, said, _ = made
    everybody = read_data_dir(folds.union_dir(exp_dir, 3) / "data").speakers
    tested = []
    for fold in (1, 2, 3):
        data = {name: read_data_dir(folds.fold_dir(exp_dir, fold, 3) / "data" / name) for name in folds.SETS}
        assert sorted(speaker for one in data.values() for speaker in one.speakers) == everybody == list("abcdef")
        tested += data["test"].speakers
        following = folds.fold_dir(exp_dir, fold % 3 + 1, 3) / "data" / "test"
        assert data["dev"].speakers == read_data_dir(following).speakers
    assert sorted(tested) == everybody and len(said) == 3 and "tested on 6 words of 2 speakers" in said[0]


def test_a_segment_and_a_whole_recording_stay_what_they_are(made):
    union = read_data_dir(folds.union_dir(made[0], 3) / "data")
    spans = {one.id: (one.recording_id, one.start, one.end) for one in union.utterances}
    assert spans["d1-s"] == ("d1", 0.1, 0.6) and spans["a1"] == ("a1", 0.0, None)


def test_training_cuts_have_every_speed_the_others_the_plain_ones_with_the_features_of_the_union(made):
    exp_dir = made[0]
    united = {cut.id: cut for cut in open_source(folds.union_dir(exp_dir, 3) / "cuts" / "train.jsonl.gz")}
    for fold in (1, 2, 3):
        cuts_dir = folds.fold_dir(exp_dir, fold, 3) / "cuts"
        for name in folds.SETS:
            data = read_data_dir(cuts_dir.parent / "data" / name)
            plain = {utterance.id for utterance in data.utterances}
            cuts = {cut.id: cut for cut in open_source(cuts_dir / f"{name}.jsonl.gz")}
            assert set(cuts) == (plain | {f"{key}_sp0.9" for key in plain} if name == "train" else plain)
            assert all(cuts[key].features == united[key].features for key in cuts)
            assert {cut.supervisions[0].speaker for cut in cuts.values()} == set(data.speakers)


def test_features_are_read_where_the_whole_folder_was_moved_to(made, tmp_path, monkeypatch):
    monkeypatch.setenv("RNNT_KD_DATA_ROOT", "")
    moved = tmp_path / "moved"
    shutil.copytree(made[0], moved, symlinks=True)
    path = folds.fold_dir(moved, 1, 3) / "cuts" / "test.jsonl.gz"
    cut = open_source(path)[0]
    with pytest.raises(UserError, match="not below"):  # it leads out of the fold's folder
        read_features(cut, path)
    files.allow([folds.union_dir(moved, 3) / "cuts"])
    assert read_features(cut, path).shape[1] == 80


def test_nothing_is_written_twice_and_changed_words_are(made):
    exp_dir, _, sources = made
    watched = [path for path in exp_dir.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    said = []
    folds.make_data(exp_dir, 3, sources, said.append)
    select(exp_dir, 1)
    assert said == [] and before == {path: path.stat().st_mtime_ns for path in watched}


def test_own_data_with_relative_paths_may_be_moved(tmp_path):
    (tmp_path / "own").mkdir()
    source = directory(tmp_path / "own", "train", ["a1", "a2", "b1", "c1"])
    audio = (source / "wav.scp").read_text().replace(f"{tmp_path / 'own'}/", "../")
    assert "/own/" not in audio
    (source / "wav.scp").write_text(audio)
    moved = tmp_path / "moved"
    for place in (source.parent, moved):
        if place == moved:
            shutil.move(source.parent, moved)
        folds.make_data(moved.with_name("exp"), 3, [place / "train"], lambda line: None)
        named = (folds.union_dir(moved.with_name("exp"), 3) / "data" / "wav.scp").read_text().split()[1::2]
        assert len(named) == 4 and all(path.startswith(f"{place}/") for path in named)


@pytest.mark.parametrize("second, found", [
    (dict(ids=["a1", "g1"]), "utterance a1 stands in .*wav.scp:1, too"),
    (dict(ids=["g1", "h1", "i1"], speaker=lambda key: key), ""),
])  # fmt: skip
def test_an_utterance_in_two_parts_is_refused(tmp_path, second, found):
    first = directory(tmp_path, "train", ["a1", "a2", "b1", "c1"])
    other = directory(tmp_path, "test", **second)
    if not found:
        copied = shutil.copytree(
            first, tmp_path / "dev"
        )  # a part that is given twice, or tests what validates, counts once
        folds.make_data(tmp_path / "exp", 3, [first, other, first, copied], list)
        united = read_data_dir(folds.union_dir(tmp_path / "exp", 3) / "data")
        assert len(united.utterances) == 7
        return
    with pytest.raises(UserError, match=found):
        folds.make_data(tmp_path / "exp", 3, [first, other], list)


def test_data_without_speakers_are_refused(tmp_path):
    source = directory(tmp_path, "train", ["a1", "b1", "c1", "d1"], speaker=lambda key: key)
    with pytest.raises(UserError, match="utt2spk: has a speaker of its own for each utterance"):
        folds.make_data(tmp_path / "exp", 3, [source], list)
    assert not list((tmp_path / "exp").glob("fold?of3"))
    assert read_table(source / "utt2spk")  # the corpus stays


def test_labels_are_kept_of_whole_speakers_and_of_one_at_the_least(made, tmp_path):
    cuts = tmp_path / "cuts"
    shutil.copytree(folds.fold_dir(made[0], 1, 3) / "cuts", cuts, symlinks=True)
    everybody = {cut.id: cut.supervisions[0].speaker for cut in open_source(cuts / "train.jsonl.gz")}
    assert len(set(everybody.values())) == 2
    for share in (0.001, 0.5, 0.999):
        folds.take_labels_away(cuts, share)
        parts = [open_source(cuts / f"{name(share)}.jsonl.gz") for name in (folds.labelled, folds.unlabelled)]
        speakers = [{cut.supervisions[0].speaker for cut in part} for part in parts]
        assert [len(own) for own in speakers] == [1, 1] and speakers[0] != speakers[1]
        assert {cut.id: bool(cut.supervisions[0].text) for part in parts for cut in part} == {
            key: speaker in speakers[0] for key, speaker in everybody.items()
        }
    path = cuts / "labelled50.jsonl.gz"
    before = path.stat().st_mtime_ns
    folds.take_labels_away(cuts, 0.5)
    assert path.stat().st_mtime_ns == before
    lines = gzip.decompress((cuts / "train.jsonl.gz").read_bytes()).splitlines(keepends=True)
    alone = [line for line in lines if json.loads(line)["supervisions"][0]["speaker"] in speakers[0]]
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b"".join(alone)))
    with pytest.raises(UserError, match="1 speakers, and no words to learn; expected two speakers who say some"):
        folds.take_labels_away(tmp_path, 0.5)

"""AN4: official lists, held-out dev speakers, every kind of audio file; a wrong tree is one line."""

import numpy as np
import pytest
import soundfile
from command_cases import told

from rnnt_kd.data.corpora.an4 import prepare
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError


def samples(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9000, 9000, 1600).astype(np.int16)


@pytest.fixture
def tree(tmp_path):
    """Four training speakers, each with another kind of audio, and one test speaker."""
    root = tmp_path / "an4"
    (root / "etc").mkdir(parents=True)
    lists = {"train": ["faaa", "fbbb", "mccc", "mddd"], "test": ["mzzz"]}
    kinds = {"faaa": "flac", "fbbb": "sph", "mccc": "wav", "mddd": "raw", "mzzz": "raw"}
    for part, speakers in lists.items():
        folder = "an4_clstk" if part == "train" else "an4test_clstk"
        ids, lines = [], []
        for number, speaker in enumerate(speakers):
            name = f"an{number}-{speaker}-b"
            ids.append(f"{folder}/{speaker}/{name}")
            lines.append(f"<s> GO {number} </s> ({name})" if part == "train" else f"GO {number} ({name})")
            path = root / "wav" / folder / speaker / f"{name}.{kinds[speaker]}"
            path.parent.mkdir(parents=True)
            if kinds[speaker] == "raw":
                path.write_bytes(samples(number).astype(">i2").tobytes())
            else:
                options = {"format": "NIST", "subtype": "PCM_16"} if kinds[speaker] == "sph" else {}
                soundfile.write(path, samples(number), 16000, **options)
        (root / "etc" / f"an4_{part}.fileids").write_text("\n".join(ids) + "\n")
        (root / "etc" / f"an4_{part}.transcription").write_text("\n".join(lines) + "\n")
    return root


def test_every_kind_of_audio_is_found_and_raw_is_big_endian(tree, tmp_path):
    paths = prepare(tree, tmp_path / "out", seed=1, options={"dev_speakers": "1"})
    assert [path.name for path in paths] == ["train", "dev", "test"]
    found = {}
    for path in paths:
        data = read_data_dir(path)
        found.update({u.id: (u.text, u.speaker, data.recordings[u.id].source) for u in data.utterances})
    assert set(found) == {"faaa-an0-faaa-b", "fbbb-an1-fbbb-b", "mccc-an2-mccc-b", "mddd-an3-mddd-b", "mzzz-an0-mzzz-b"}
    for number, key in enumerate(sorted(found)[:4]):
        text, speaker, source = found[key]
        assert (text, speaker) == (f"GO {number}", key[:4])
        np.testing.assert_array_equal(soundfile.read(source, dtype="int16")[0], samples(number))
    assert found["mzzz-an0-mzzz-b"][2] == str(tmp_path / "out" / "audio" / "an4test_clstk" / "mzzz" / "an0-mzzz-b.flac")


def test_dev_speakers_are_held_out_whole_and_follow_the_seed(corpora, tmp_path):
    paths = prepare(corpora / "an4", tmp_path / "out", seed=1, options={})
    train, dev, test = (read_data_dir(path) for path in paths)
    assert (len(test.utterances), len(train.utterances) + len(dev.utterances)) == (130, 948)
    assert (len(train.speakers), len(dev.speakers), len(test.speakers)) == (66, 8, 10)
    assert not set(train.speakers) & set(dev.speakers) and not set(test.speakers) & set(train.speakers + dev.speakers)
    before = (tmp_path / "out" / "dev" / "text").read_bytes()
    prepare(corpora / "an4", tmp_path / "out", seed=1, options={})
    assert (tmp_path / "out" / "dev" / "text").read_bytes() == before
    prepare(corpora / "an4", tmp_path / "out", seed=2, options={})
    assert (tmp_path / "out" / "dev" / "text").read_bytes() != before


def test_a_wrong_tree_is_one_line(tree, tmp_path):
    out = tmp_path / "out"
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="no such directory.*CMU AN4.*--corpus-dir"):
            prepare(folder, out, seed=1, options={})
    assert "an4_train.fileids: no such file" in told(prepare, tmp_path, out, seed=1, options={})
    for value in ("0", "4", "many", "-1"):
        assert "a number from 1 to 3" in told(prepare, tree, out, seed=1, options={"dev_speakers": value})
    (tree / "wav/an4_clstk/faaa/an0-faaa-b.flac").unlink()
    with pytest.raises(UserError, match="an0-faaa-b: no audio; expected a file with one of the suffixes .flac"):
        prepare(tree, out, seed=1, options={"dev_speakers": "1"})
    (tree / "etc/an4_train.transcription").write_text("GO (an0-faaa-b)\nno brackets\n")
    assert "transcription:2: cannot be read" in told(prepare, tree, out, seed=1, options={"dev_speakers": "1"})
    (tree / "etc/an4_train.transcription").write_text("GO (an0-faaa-b)\n")
    assert "fileids:2: an1-fbbb-b has no transcript" in told(prepare, tree, out, seed=1, options={"dev_speakers": "1"})
    (tree / "etc/an4_train.fileids").write_text("")
    assert "fileids: is empty" in told(prepare, tree, out, seed=1, options={"dev_speakers": "1"})
    assert not list(out.glob("*/text"))

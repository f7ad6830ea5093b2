"""The synth corpus: same seed, same bytes; disjoint parts; nothing half-made that looks whole."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import wave

import numpy as np
import pytest
from command_cases import group_is_alive

from rnnt_kd.data.corpora import synth
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.data.synthesis.voices import VARIANTS
from rnnt_kd.errors import UserError

SMALL = {"minutes": "0.8", "dev_minutes": "0.2", "test_minutes": "0.4", "num_jobs": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth")
    synth.prepare(None, folder, seed=1, options=SMALL)
    return folder


def digest(folder):
    """Of all audio and texts, with their names."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".wav" or path.name in ("text", "utt2spk", "spk2utt"):
            state.update(str(path.relative_to(folder)).encode())
            state.update(path.read_bytes())
    return state.hexdigest()


def voices(folder):
    return {speaker.split("_")[1] for speaker in read_data_dir(folder).speakers}


def test_makes_valid_data_directories_of_the_size_asked_for(corpus):
    for part, minutes in (("train", 0.8), ("dev", 0.2), ("test", 0.4)):
        data = read_data_dir(corpus / part)
        seconds = sum(len(read(entry.source)) / 16000 for entry in data.recordings.values())
        assert seconds / 60 == pytest.approx(minutes, rel=0.25)
        assert all(utterance.id.startswith(utterance.speaker + "-") for utterance in data.utterances)
        assert voices(corpus / part) <= set(VARIANTS[part])
    assert not list(corpus.glob(".*"))


def test_same_seed_same_bytes_in_other_processes(corpus, tmp_path):
    file = script(tmp_path, dict(SMALL, num_jobs="2"))
    subprocess.run([sys.executable, file, tmp_path / "again"], check=True, env=environment(), capture_output=True)
    assert digest(tmp_path / "again") == digest(corpus)


def test_same_bytes_in_the_other_environment(corpus, root, tmp_path):
    recipe = [root / ".venv" / name / "bin" / "python" for name in ("k2", "torch2")]  # others are for tests of plug-ins
    others = [path for path in recipe if path.exists() and str(path.parents[1]) != sys.prefix]
    if not others:
        pytest.skip("the other environment is not set up here")
    file = script(tmp_path, SMALL)
    for number, python in enumerate(others):
        folder = tmp_path / str(number)
        subprocess.run([python, file, folder], check=True, env=environment(root / "plugin"), capture_output=True)
        assert digest(folder) == digest(corpus), python


def test_another_seed_gives_other_bytes_and_the_same_voices(corpus, tmp_path):
    synth.prepare(None, tmp_path, seed=2, options=SMALL)
    assert digest(tmp_path) != digest(corpus)
    assert all(voices(tmp_path / part) <= set(VARIANTS[part]) for part in ("train", "dev", "test"))


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one():
    small, large = synth._plan("train", 0.5, seed=1), synth._plan("train", 5, seed=1)
    assert large[: len(small)] == small


def test_dev_and_test_sentences_are_new():
    sizes = (("train", 2), ("dev", 1), ("test", 1))
    texts = [{synth.make_utterance(task)[0] for task in synth._plan(*size, seed=1)} for size in sizes]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_audio_is_16_khz_speech_neither_clipped_nor_faint(corpus):
    for path in corpus.rglob("*.wav"):
        samples = read(path)
        assert 1.5 <= len(samples) / 16000 <= 6.0, path
        assert 3000 < np.abs(samples).max() < 32767, path
        frames = (samples[: len(samples) // 400 * 400].reshape(-1, 400).astype(float) ** 2).mean(1)
        assert 10 * np.log10(np.percentile(frames, 85) / np.percentile(frames, 3)) > 10, path


def test_interrupted_it_leaves_an_older_corpus_alone(corpus, monkeypatch):
    before = digest(corpus)

    def fill_the_disk(task):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synth, "make_utterance", fill_the_disk)
    with pytest.raises(OSError):
        synth.prepare(None, corpus, seed=2, options=SMALL)
    assert digest(corpus) == before and read_data_dir(corpus / "train")
    assert not list(corpus.glob(".*"))


def test_killed_it_ends_with_its_workers(tmp_path):
    file = script(tmp_path, {"num_jobs": "2"})
    process = subprocess.Popen(
        [sys.executable, file, tmp_path / "out"], env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.time() + 600
        while not list(tmp_path.glob("out/.wav.*.tmp/train/*/*.wav")) and time.time() < deadline:
            time.sleep(0.05)
        process.kill()
        assert process.wait(timeout=600) != 0
        while group_is_alive(process.pid) and time.time() < deadline:
            time.sleep(0.05)
        assert not group_is_alive(process.pid)
    finally:
        if group_is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert not [name for name in ("train", "dev", "test", "wav") if (tmp_path / "out" / name).exists()]


@pytest.mark.parametrize("options, found", [
    ({"minutes": "many"}, 'found "many"'),
    ({"minutes": "-1"}, 'found "-1"'),
    ({"minutes": "nan"}, 'found "nan"'),
    ({"num_jobs": "inf"}, 'found "inf"'),
    ({"test_minutes": "0"}, "above 0"),
    ({"num_jobs": "1.5"}, "a whole number"),
])  # fmt: skip
def test_wrong_options_are_user_errors(tmp_path, options, found):
    with pytest.raises(UserError, match=found):
        synth.prepare(None, tmp_path / "out", seed=1, options=options)
    with pytest.raises(UserError, match="--corpus-dir"):
        synth.prepare(tmp_path, tmp_path / "out", seed=1, options={})
    assert not (tmp_path / "out").exists()


def read(path):
    with wave.open(str(path)) as stream:
        assert (stream.getframerate(), stream.getnchannels(), stream.getsampwidth()) == (16000, 1, 2)
        return np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.int64)


def script(folder, options):
    """A file that makes the corpus in the folder of its first argument; worker processes must be able to import it."""
    file = folder / "make.py"
    file.write_text(
        "import sys; from pathlib import Path; from rnnt_kd.data.corpora import synth\n"
        "if __name__ == '__main__':\n"
        f"    synth.prepare(None, Path(sys.argv[1]), seed=1, options={options!r})\n"
    )
    return file


def environment(*paths):
    """This process's, with its import path or with ``paths``."""
    paths = [str(path) for path in paths or sys.path if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

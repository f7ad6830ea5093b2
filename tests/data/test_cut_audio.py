"""The audio that people hear is the utterance's, from any recording that stage 1 reads."""

import io
import shutil

import numpy as np
import pytest
import soundfile

from rnnt_kd.data.cut_audio import compressed, cut_samples, loudness
from rnnt_kd.data.dataset import load_cuts_info
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.data.speech import read_speech


def tone(seconds, rate=16000):
    time = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A whole file, two segments of another at 8 kHz, and a pipe."""
    folder = tmp_path_factory.mktemp("audio")
    segments = {"a": ("whole", 0.0, 1.0), "b": ("long", 0.5, 1.25), "c": ("long", 1.25, 2.75), "d": ("pipe", 0.0, 1.0)}
    soundfile.write(folder / "whole.wav", tone(1.0), 16000)
    soundfile.write(folder / "long.flac", tone(3.0, 8000), 8000)
    data = folder / "data"
    write_data_dir(
        data,
        wav_scp={"long": folder / "long.flac", "pipe": folder / "whole.wav", "whole": folder / "whole.wav"},
        text={"a": "x", "b": "x", "c": "x", "d": "x"},
        utt2spk={name: "s" for name in "abcd"},
        segments=segments,
    )
    scp = (data / "wav.scp").read_text().replace(f"pipe {folder}/whole.wav", f"pipe cat {folder}/whole.wav |")
    (data / "wav.scp").write_text(scp)
    return data


@pytest.fixture
def cuts(data_dir, tmp_path):
    return compute_features(data_dir, tmp_path, "test", allow_pipes=True).cuts_path


def by_id(cuts, **options):
    ids = [info.id for info in load_cuts_info(cuts)]
    return dict(zip(ids, cut_samples(cuts, range(len(ids)), **options)))


def test_samples_are_those_that_stage_1_took(data_dir, cuts):
    expected = {speech.id: speech.samples for speech in read_speech(data_dir, allow_pipes=True)}
    found = by_id(cuts, allow_pipes=True)
    assert sorted(found) == sorted(expected) == list("abcd")
    for name, samples in found.items():
        assert abs(len(samples) - len(expected[name])) <= 2
        length = min(len(samples), len(expected[name]))
        np.testing.assert_allclose(samples[:length], expected[name][:length], atol=1e-6)


def test_a_pipe_does_not_run_unless_allowed(cuts):
    found = by_id(cuts)
    assert found["d"] is None and found["a"] is not None


def test_a_recording_that_is_gone_or_damaged_is_none(data_dir, cuts, tmp_path):
    copy = shutil.copytree(data_dir.parent, tmp_path / "copy")
    (copy / "data/wav.scp").write_text((copy / "data/wav.scp").read_text().replace(str(data_dir.parent), str(copy)))
    moved = compute_features(copy / "data", tmp_path / "other", "test", allow_pipes=True).cuts_path
    (copy / "whole.wav").write_bytes((copy / "whole.wav").read_bytes()[:2000])
    (copy / "long.flac").unlink()
    found = by_id(moved)
    assert [found[name] for name in "abcd"] == [None] * 4


def test_compressed_is_a_file_of_its_type_and_small():
    samples = 2.0 * tone(2.0)  # too loud: clipped, not wrapped around
    content, mime = compressed(samples)
    heard, rate = soundfile.read(io.BytesIO(content))
    assert rate == 16000 and len(heard) == pytest.approx(32000, abs=2500) and np.abs(heard).max() < 1.2
    assert soundfile.info(io.BytesIO(content)).format == {"audio/mpeg": "MP3", "audio/flac": "FLAC"}[mime]
    assert len(content) < 64000


def test_flac_where_there_is_no_mp3(monkeypatch):
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "", "FLAC": ""})
    content, mime = compressed(tone(0.5))
    heard, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    assert mime == "audio/flac" and np.abs(heard - tone(0.5)).max() < 1e-4


def test_loudness_is_that_of_each_window():
    samples = np.concatenate((np.full(4, 0.5), np.zeros(4), [0.3, -0.3])).astype(np.float32)
    expected = [0.5, 0.0, np.sqrt(2 * 0.09 / 4), 0.0]
    np.testing.assert_allclose(loudness(samples, 4, 4), expected, rtol=1e-6)
    np.testing.assert_allclose(loudness(samples, 1, 4), [0.5], rtol=1e-6)

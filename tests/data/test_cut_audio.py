"""Audio of utterances, for recognition without cuts and for people's ears, is what stage 1 reads."""

import gzip
import io
import json
import shutil

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest_lazy

from rnnt_kd.data.cut_audio import compressed, cut_samples, loudness
from rnnt_kd.data.dataset import load_cuts_info
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.errors import UserError


def tone(seconds, rate=16000):
    time = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time)).astype(np.float32)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A whole file, two segments of a stereo file at 8 kHz, a pipe, and silence."""
    folder = tmp_path_factory.mktemp("audio")
    segments = {"a": ("whole", 0.0, 1.0), "b": ("long", 0.5, 1.25), "c": ("long", 1.25, 2.75), "d": ("pipe", 0.0, 1.0)}
    segments["e"] = ("silence", 0.0, 0.5)
    soundfile.write(folder / "whole.wav", tone(1.0), 16000)
    soundfile.write(folder / "long.flac", np.stack([tone(3.0, 8000), -tone(3.0, 8000)], axis=1), 8000)
    soundfile.write(folder / "silence.wav", np.zeros(8000), 16000)
    files = {"long": "long.flac", "pipe": "whole.wav", "silence": "silence.wav", "whole": "whole.wav"}
    data = folder / "data"
    write_data_dir(
        data,
        wav_scp={name: folder / file for name, file in files.items()},
        text={name: f"WORD {name}" for name in segments},
        utt2spk={name: f"s{name}" for name in segments},
        segments=segments,
    )
    scp = (data / "wav.scp").read_text().replace(f"pipe {folder}/whole.wav", f"pipe cat {folder}/whole.wav |")
    (data / "wav.scp").write_text(scp)
    return data


@pytest.fixture
def cuts(data_dir, tmp_path):
    return compute_features(data_dir, tmp_path, "test", allow_pipes=True).cuts_path


def by_id(cuts, data_dir, **options):
    ids = [info.id for info in load_cuts_info(cuts)]
    return dict(zip(ids, cut_samples(cuts, range(len(ids)), data_dir, **options)))


def test_filter_banks_are_those_of_stage_1_but_for_lilcom(data_dir, cuts):
    speech = {item.id: item for item in read_speech(data_dir, allow_pipes=True)}
    stored = {cut.id: cut for cut in load_manifest_lazy(cuts)}
    assert sorted(stored) == list("abcd") and sorted(speech) == list("abcde")
    for name, cut in stored.items():
        expected, got = cut.load_features(), filter_banks(speech[name].samples).numpy()
        assert got.shape == expected.shape and got.dtype == np.float32
        assert np.abs(got - expected).max() < 0.05  # lilcom rounds to 1/32
        assert speech[name].seconds == pytest.approx(cut.duration)
        assert speech[name].text == cut.supervisions[0].text and speech[name].speaker == f"s{name}"


def test_what_cannot_be_used_says_why(data_dir, tmp_path):
    silent = [item for item in read_speech(data_dir, allow_pipes=True) if item.samples is None]
    assert [(item.id, item.reason, item.seconds) for item in silent] == [("e", "is silent", 0.0)]
    with pytest.raises(UserError, match="nowhere"):
        next(read_speech(tmp_path / "nowhere"))


def test_samples_are_those_that_stage_1_took_and_a_pipe_runs_where_allowed(data_dir, cuts):
    speech = read_speech(data_dir, allow_pipes=True)
    expected = {item.id: item.samples for item in speech if item.samples is not None}
    found = by_id(cuts, data_dir, allow_pipes=True)
    assert sorted(found) == sorted(expected) == list("abcd")
    for name, samples in found.items():
        assert abs(len(samples) - len(expected[name])) <= 2
        length = min(len(samples), len(expected[name]))
        np.testing.assert_allclose(samples[:length], expected[name][:length], atol=1e-6)
    assert [name for name, samples in by_id(cuts, data_dir).items() if samples is None] == ["d"]  # the pipe


def test_a_recording_that_is_gone_or_damaged_is_none(data_dir, cuts, tmp_path):
    copy = shutil.copytree(data_dir.parent, tmp_path / "copy")
    (copy / "data/wav.scp").write_text((copy / "data/wav.scp").read_text().replace(str(data_dir.parent), str(copy)))
    moved = compute_features(copy / "data", tmp_path / "other", "test", allow_pipes=True).cuts_path
    (copy / "whole.wav").write_bytes((copy / "whole.wav").read_bytes()[:2000])
    (copy / "long.flac").unlink()
    found = by_id(moved, copy / "data")
    assert [found[name] for name in "abcd"] == [None] * 4


def test_a_command_in_a_cuts_file_is_not_run_and_a_file_there_is_not_opened(data_dir, cuts, tmp_path):
    expected = by_id(cuts, data_dir, allow_pipes=True)
    lines = [json.loads(line) for line in gzip.decompress(cuts.read_bytes()).splitlines()]
    for number, line in enumerate(lines):
        kind = ("command", "url", "file", "memory")[number]
        line["recording"]["sources"] = [{"type": kind, "channels": [0], "source": f"touch {tmp_path}/EXECUTED"}]
    cuts.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    found = by_id(cuts, data_dir, allow_pipes=True)
    assert all(np.array_equal(found[name], expected[name]) for name in "abcd")
    assert not (tmp_path / "EXECUTED").exists()


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

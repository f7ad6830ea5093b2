"""Samples and filter banks of a data directory are those of stage 1, but for its rounding."""

import numpy as np
import pytest
import soundfile
from lhotse import load_manifest_lazy

from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two recordings of 16 and 8 kHz, stereo the second; one is silence."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(3)
    tone = 0.2 * np.sin(np.arange(16000) * 0.2) + 0.01 * generator.standard_normal(16000)
    soundfile.write(folder / "a-1.wav", tone, 16000)
    soundfile.write(folder / "b-1.wav", np.stack([tone[:7001], -tone[:7001]], axis=1), 8000)
    soundfile.write(folder / "c-1.wav", np.zeros(8000), 16000)
    wavs = {name: folder / f"{name}.wav" for name in ("a-1", "b-1", "c-1")}
    texts = {"a-1": "ONE", "b-1": "TWO", "c-1": "THREE"}
    return write_data_dir(folder / "data", wav_scp=wavs, text=texts, utt2spk={key: key[0] for key in wavs})


def test_the_filter_banks_are_those_of_stage_1_but_for_lilcom(data_dir, tmp_path):
    cuts = {cut.id: cut for cut in load_manifest_lazy(compute_features(data_dir, tmp_path, "x").cuts_path)}
    speech = {item.id: item for item in read_speech(data_dir)}
    assert {name for name, item in speech.items() if item.samples is not None} == set(cuts) == {"a-1", "b-1"}
    for name, cut in cuts.items():
        expected = cut.load_features()
        got = filter_banks(speech[name].samples).numpy()
        assert got.shape == expected.shape and got.dtype == np.float32
        assert np.abs(got - expected).max() < 0.05  # lilcom rounds to 1/32
        assert speech[name].seconds == pytest.approx(cut.duration)
        assert speech[name].text == cut.supervisions[0].text and speech[name].speaker == name[0]


def test_what_cannot_be_used_says_why(data_dir):
    silent = [item for item in read_speech(data_dir) if item.samples is None]
    assert [(item.id, item.reason, item.seconds) for item in silent] == [("c-1", "is silent", 0.0)]


def test_a_directory_that_is_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        next(read_speech(tmp_path / "nowhere"))

"""espeak-ng through ctypes: samples depend on the arguments alone."""

import sys

import numpy as np
import pytest

from rnnt_kd.data.synthesis import espeak
from rnnt_kd.data.synthesis.espeak import SAMPLING_RATE, Prosody, speak
from rnnt_kd.data.synthesis.voices import ACCENTS, VARIANTS
from rnnt_kd.errors import UserError

SENTENCE = "turn on the kitchen light six"


@pytest.mark.parametrize("variant", ["f1", "f3", "f5", "Alex"])
def test_what_was_said_before_changes_nothing(variant):
    """Each would change in another way if the library were not loaded afresh."""
    first = speak(SENTENCE, "en-us", variant, seed=3)
    speak("hello there", "en", "m3", Prosody(rate=300, pitch=90))
    np.testing.assert_array_equal(speak(SENTENCE, "en-us", variant, seed=3), first)


def test_the_seed_changes_the_noise_in_the_voice():
    assert not np.array_equal(speak(SENTENCE, "en-us", "f3", seed=1), speak(SENTENCE, "en-us", "f3", seed=2))


def test_rate_and_pitch_do_what_they_say():
    slow, fast = (speak(SENTENCE, "en-us", "m3", Prosody(rate=rate)) for rate in (120, 240))
    assert len(slow) > 1.5 * len(fast)
    low, high = (_fundamental(speak("one nine", "en-us", "m3", Prosody(pitch=pitch, range=10))) for pitch in (20, 80))
    assert high > 1.3 * low


def test_phonemes_in_brackets_are_spoken_not_read():
    letter = speak("[['eI]]", "en-us", "m3")
    word = speak("the", "en-us", "m3")
    assert 0.5 * len(word) < len(letter) < 3 * len(word)


def test_every_voice_speaks_without_overflow():
    for variant in {variant for variants in VARIANTS.values() for variant in variants}:
        samples = speak("eight dollars", "en-us", variant)
        assert len(samples) > 0.4 * SAMPLING_RATE, variant
        assert 1000 < np.abs(samples.astype(int)).max() < 32000, variant


def test_every_accent_sounds_different():
    spoken = {speak("first of march", accent, "m3").tobytes() for accent in ACCENTS}
    assert len(spoken) == len(ACCENTS)


@pytest.mark.parametrize("accent, variant, found", [("en-us", "nobody", "nobody"), ("xx-yy", "f1", "xx-yy")])
def test_unknown_voice_is_a_user_error(accent, variant, found):
    with pytest.raises(UserError, match=found):
        speak("one", accent, variant)


def test_missing_package_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match="pip install espeakng-loader"):
        speak("one", "en-us", "f1")


def test_broken_library_is_a_user_error(monkeypatch, tmp_path):
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"not a library")
    data = espeak._find_library()[1]
    monkeypatch.setattr(espeak, "_find_library", lambda: (str(broken), data))
    with pytest.raises(UserError, match="cannot be loaded"):
        speak("one", "en-us", "f1")


def _fundamental(samples):
    """Hz, from the highest peak of the autocorrelation between 50 and 400 Hz."""
    samples = samples.astype(float) - samples.mean()
    spectrum = np.fft.rfft(samples, 2 * len(samples))
    autocorrelation = np.fft.irfft(np.abs(spectrum) ** 2)
    lags = np.arange(SAMPLING_RATE // 400, SAMPLING_RATE // 50)
    return SAMPLING_RATE / lags[np.argmax(autocorrelation[lags])]

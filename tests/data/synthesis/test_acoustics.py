"""Resampling, rooms and noise against exact integer sums, sines and spectra."""

import numpy as np
import pytest

from rnnt_kd.data.synthesis import acoustics


def sine(frequency, rate, seconds=0.5, amplitude=16000):
    return np.rint(amplitude * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.int64)


@pytest.mark.parametrize("frequency", [100, 1000, 5000, 6000])
def test_resampling_keeps_a_sine(frequency):
    found = acoustics.resample(sine(frequency, 22050), 22050, 16000)
    expected = sine(frequency, 16000)
    assert len(found) == len(expected)
    middle = slice(400, -400)
    error = np.sqrt(np.mean((found[middle] - expected[middle]) ** 2)) / 16000
    assert 20 * np.log10(error) < -55


def test_resampling_removes_what_would_alias():
    found = acoustics.resample(sine(9500, 22050), 22050, 16000)[400:-400]
    assert np.abs(found).max() < 16000 * 1e-3


@pytest.mark.parametrize("length", [0, 1, 2, 439, 441, 1000])
def test_resampled_length(length):
    assert len(acoustics.resample(np.ones(length, np.int64), 22050, 16000)) == -(-length * 320 // 441)


def test_a_room_is_an_exact_integer_convolution():
    room = acoustics.room_response(16000, seed=5, decay_seconds=0.2, late_db=-8.0)
    impulse = np.zeros(4000, np.int64)
    impulse[0] = 4096
    response = acoustics.convolve(impulse, room)  # the taps themselves: 4096 is their unit
    speech = acoustics.random_integers(1, 4000) // 4
    expected = (np.convolve(speech, response)[:4000] + 2048) >> 12
    np.testing.assert_array_equal(acoustics.convolve(speech, room), expected)


def test_a_room_has_the_late_energy_and_the_decay_asked_for():
    impulse = np.zeros(16000, np.int64)
    impulse[0] = 4096
    room = acoustics.room_response(16000, seed=2, decay_seconds=0.3, late_db=-8.0)
    response = acoustics.convolve(impulse, room).astype(float)
    assert response[0] == 4096 and not response[1:40].any()
    assert 10 * np.log10(np.sum(response[1:] ** 2) / 4096**2) == pytest.approx(-8.0, abs=0.1)
    early, late = (np.sum(response[start : start + 800] ** 2) for start in (100, 1700))  # 0.1 s apart: 20 dB
    assert 10 * np.log10(early / late) == pytest.approx(20, abs=3)
    assert not response[4800:].any()


@pytest.mark.parametrize("tilt", [0.0, 1.0, 1.5])
def test_noise_has_the_tilt_asked_for(tilt):
    samples = acoustics.noise(64000, seed=3, tilt=tilt).astype(float)
    spectrum = (np.abs(np.fft.rfft(samples.reshape(-1, 2000) * np.hanning(2000))) ** 2).mean(0)
    bins = np.arange(40, 400)  # 320 to 3200 Hz
    slope = np.polyfit(np.log10(bins), np.log10(spectrum[bins]), 1)[0]
    assert slope == pytest.approx(-tilt, abs=0.2)


@pytest.mark.parametrize("snr_db", [0.0, 15.0, 30.0])
def test_noise_is_as_far_below_the_speech_as_asked(snr_db):
    speech = sine(440, 16000)
    mixed = acoustics.add_noise(speech, acoustics.power(speech), acoustics.noise(len(speech), 1, 1.0), snr_db)
    ratio = 10 * np.log10(acoustics.power(speech) / acoustics.power(mixed - speech))
    assert ratio == pytest.approx(snr_db, abs=0.05)


def test_random_integers_are_the_guaranteed_bit_stream():
    expected = np.random.PCG64(9).random_raw(2)
    halves = [(int(word) >> shift) & 0xFFFF for word in expected for shift in (0, 16, 32, 48)]
    signed = [half - 65536 if half >= 32768 else half for half in halves]
    assert acoustics.random_integers(9, 7).tolist() == signed[:7]


def test_set_peak_never_exceeds_the_peak():
    samples = acoustics.random_integers(4, 1000)
    for peak in (1, 777, 32767):
        assert abs(np.abs(acoustics.set_peak(samples, peak)).max() - peak) <= 1
        assert np.abs(acoustics.set_peak(samples, peak)).max() <= peak
    assert not acoustics.set_peak(np.zeros(5, np.int64), 100).any()


def test_trim_cuts_silence_but_for_the_margin():
    samples = np.zeros(100, np.int64)
    samples[40:60] = 1000
    assert len(acoustics.trim(samples, margin=5)) == 30
    assert len(acoustics.trim(np.zeros(100, np.int64), margin=5)) == 0

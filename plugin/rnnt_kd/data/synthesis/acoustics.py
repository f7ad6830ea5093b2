"""Resampling, rooms and noise whose output is the same bytes with every library version.

Lhotse's random rooms need torchaudio and draw from torch's global generator, and the last bits of a
float FFT differ between versions; a corpus that is "same seed, same bytes" in every environment can use
neither.  So here every sum is a sum of integers: samples are int16, filter taps and gains are integers,
and where a float64 routine does the work its result is an exact integer below 2**53, or is rounded to the
integer that it must be.  Random bits come from ``PCG64.random_raw``, whose stream NumPy guarantees.

Samples are ``(n,)`` int64 arrays in the range of int16 unless said otherwise.
"""

import hashlib
import math

import numpy as np
from scipy.signal import fftconvolve, upfirdn

_TAP_BITS = 15
_GAIN_BITS = 16
FULL_SCALE = 32767


def hashed(text: str) -> int:
    """64 bits that follow from the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def random_integers(seed: int, count: int) -> np.ndarray:
    """``(count,)`` int64, uniform in [-32768, 32767]."""
    raw = np.random.PCG64(seed).random_raw((count + 3) // 4)
    return raw.astype("<u8").view("<i2")[:count].astype(np.int64)


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Band-limited resampling, flat to 3/4 of the band, then falling; ``ceil(n * target / source)`` samples."""
    divisor = math.gcd(source_rate, target_rate)
    up, down = target_rate // divisor, source_rate // divisor
    half = 14 * max(up, down)
    cutoff = 0.94 / max(up, down)
    window = np.kaiser(2 * half + 1, 8.0)
    taps = np.rint(up * cutoff * np.sinc(cutoff * np.arange(-half, half + 1)) * window * 2**_TAP_BITS)
    length = -(-len(samples) * up // down)
    # A delay of whole output samples can be cut away without a fraction being left.
    delay = -(-half // down)
    padded = np.concatenate([np.zeros(delay * down - half), taps])
    filtered = upfirdn(padded, samples.astype(np.float64), up, down)
    filtered = np.concatenate([filtered, np.zeros(max(0, delay + length - len(filtered)))])
    return _shift_right(filtered[delay : delay + length].astype(np.int64), _TAP_BITS)


def room_response(rate: int, seed: int, decay_seconds: float, late_db: float) -> np.ndarray:
    """Direct sound, then sparse reflections that decay by 60 dB ("velvet noise"): (n,) float64, the first is 1.

    Args:
      decay_seconds: reverberation time, 60 dB.
      late_db:       energy of all reflections relative to the direct sound.
    """
    length = max(2, int(decay_seconds * rate))
    spacing = rate // 1600  # 1600 reflections a second sound smooth
    count = length // spacing
    bits = random_integers(seed, 2 * count)
    position = np.arange(count) * spacing + (bits[:count] + 32768) * spacing // 65536
    level = np.where(bits[count:] < 0, -1.0, 1.0) * np.power(10.0, -3.0 * position / length)
    level[position < rate // 400] = 0.0  # nothing in the first 2.5 ms
    energy = float(np.sum(level**2))
    response = np.zeros(length)
    if energy > 0:
        np.add.at(response, position, level * math.sqrt(10.0 ** (late_db / 10.0) / energy))
    response[0] = 1.0
    return response


def convolve(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """As many samples as came in; they may exceed int16: scale afterwards.  ``response`` is rounded to 1/4096."""
    wet = np.rint(fftconvolve(samples.astype(np.float64), np.rint(response * 2**12)))[: len(samples)]
    return _shift_right(wet.astype(np.int64), 12)


def noise(count: int, seed: int, tilt: float) -> np.ndarray:
    """Noise with a spectrum of ``1 / f**tilt``: 0 white, 1 pink, between them as wanted (0 to 1.5)."""
    taps = np.ones(256)
    for k in range(1, len(taps)):  # fractional integration of order tilt / 2
        taps[k] = taps[k - 1] * (k - 1 + tilt / 2) / k
    taps = np.rint(taps * 2**12)
    white = random_integers(seed, count + len(taps) - 1) // 16
    return _shift_right(np.rint(fftconvolve(white.astype(np.float64), taps, mode="valid")).astype(np.int64), 12)


def power(samples: np.ndarray) -> float:
    """Mean square, from an exact integer sum."""
    return int(np.sum(samples.astype(np.int64) ** 2)) / max(1, len(samples))


def scale(samples: np.ndarray, gain: float) -> np.ndarray:
    """Multiply by ``gain``, rounded to 16 fractional bits."""
    return _shift_right(samples * int(round(gain * 2**_GAIN_BITS)), _GAIN_BITS)


def add_noise(speech: np.ndarray, speech_power: float, background: np.ndarray, snr_db: float) -> np.ndarray:
    """``speech`` plus ``background`` at ``snr_db`` below ``speech_power`` (mean square while somebody speaks)."""
    gain = math.sqrt(speech_power / max(1.0, power(background))) * 10.0 ** (-snr_db / 20.0)
    return speech + scale(background, gain)


def trim(samples: np.ndarray, margin: int) -> np.ndarray:
    """Cut silence (below 1/100 of the peak) at both ends, but for ``margin`` samples."""
    loud = np.flatnonzero(np.abs(samples) * 100 > np.abs(samples).max())
    if len(loud) == 0:
        return samples[:0]
    return samples[max(0, loud[0] - margin) : loud[-1] + 1 + margin]


def set_peak(samples: np.ndarray, peak: int) -> np.ndarray:
    """Scale so that the largest absolute sample is ``peak`` (at most, never above)."""
    assert 0 < peak <= FULL_SCALE, peak
    highest = int(np.abs(samples).max())
    return np.clip(scale(samples, peak / highest), -peak, peak) if highest else samples


def _shift_right(samples: np.ndarray, bits: int) -> np.ndarray:
    return (samples + (1 << (bits - 1))) >> bits

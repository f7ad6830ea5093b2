"""Audio that tests make, and data directories of it."""

from pathlib import Path

import numpy as np
import soundfile


def tone(seconds: float = 1.0, rate: int = 16000, seed: int = 0, noise: float = 0.05) -> np.ndarray:
    """440 Hz, and some noise."""
    time = np.arange(round(seconds * rate)) / rate
    hiss = noise * np.random.default_rng(seed).normal(size=len(time))
    return (0.3 * np.sin(2 * np.pi * 440 * time) + hiss).astype(np.float32)


def noise(seconds: float, seed: int = 3) -> np.ndarray:
    """Noise that swells and falls, at 16 kHz."""
    loudness = 0.3 * (1 + np.sin(np.arange(int(seconds * 16000)) / 2500.0))
    return (loudness * np.random.default_rng(seed).normal(size=len(loudness))).astype(np.float32)


def write_audio(path: Path, samples: np.ndarray, rate: int = 16000, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def noise_files(folder: Path, lengths: dict) -> dict:
    """Id -> a WAV of so many samples of noise at 16 kHz, all from one generator."""
    generator = np.random.default_rng(0)
    return {
        key: write_audio(folder / f"{key}.wav", 0.1 * generator.normal(size=length)) for key, length in lengths.items()
    }


def unchecked_dir(folder: Path, recordings: dict, segments=None, speaker=lambda key: "spk") -> Path:
    """A data directory of {recording id: what wav.scp says} and {utterance id: what segments says}; it may be wrong."""
    folder.mkdir(parents=True)
    keys = sorted(segments or recordings)
    tables = {
        "wav.scp": recordings,
        "text": dict.fromkeys(keys, "SOME WORDS"),
        "utt2spk": {k: speaker(k) for k in keys},
    }
    for name, table in {**tables, **({"segments": segments} if segments else {})}.items():
        (folder / name).write_text("".join(f"{key} {table[key]}\n" for key in sorted(table)))
    return folder

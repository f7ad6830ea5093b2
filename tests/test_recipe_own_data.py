"""Somebody's own Kaldi data directories through stages 0 to 7, no corpus folder; of the options few epochs alone.

Real speech (AN4) in the forms that data directories come in: WAV, FLAC, OPUS and SPH, 8 and 44.1 kHz, two
channels, segments, 0.2 s and 35 s, Cyrillic and Chinese text, absolute and relative paths.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly
from test_recipe import run

RATE = 16000


@pytest.fixture(scope="module")
def speech(corpora):
    """(utterance id, transcript, samples) of AN4's test set, in a fixed order."""
    an4 = corpora / "an4"
    files = (an4 / "etc" / "an4_test.fileids").read_text().split()
    texts = [line.rsplit("(", 1)[0].strip() for line in (an4 / "etc" / "an4_test.transcription").open()]
    utterances = []
    for name, text in list(zip(files, texts))[:60]:
        samples, rate = soundfile.read(an4 / "wav" / f"{name}.flac", dtype="float32")
        assert rate == RATE
        utterances.append((Path(name).name, text, samples))
    return utterances


def write_dir(folder, wav_scp, text, segments=()):
    folder.mkdir(parents=True)
    for name, lines in (
        ("wav.scp", wav_scp),
        ("text", text),
        ("utt2spk", [f"{line.split()[0]} {line.split('-')[0]}" for line in text]),
        ("segments", segments),
    ):
        if lines:
            (folder / name).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def mixed_dir(folder, audio, speech, base):
    """One form of audio after the other; paths absolute, relative to the data directory, or to ``base``."""
    forms = ["wav", "flac", "opus", "sph", "8k", "44k", "stereo"]
    audio.mkdir(parents=True)
    wav_scp, text = [], []
    for number, (name, words, samples) in enumerate(speech):
        form, rate, options = forms[number % len(forms)], RATE, {}
        if form == "8k":
            samples, rate = resample_poly(samples, 1, 2), 8000
        elif form == "44k":
            samples, rate = resample_poly(samples, 441, 160), 44100
        elif form == "stereo":
            samples = np.stack([samples, np.zeros_like(samples)], axis=1)
        elif form == "opus":
            options = {"format": "OGG", "subtype": "OPUS"}
        elif form == "sph":
            options = {"format": "NIST", "subtype": "PCM_16"}
        path = audio / f"{name}.{form if form in ('flac', 'opus', 'sph') else 'wav'}"
        soundfile.write(path, samples, rate, **options)
        shown = [path, path.relative_to(base), os.path.relpath(path, folder)][number % 3]
        words = {0: "да нет", 1: "你好 世界"}.get(number, words)
        wav_scp.append(f"spk{number % 4}-{name} {shown}")
        text.append(f"spk{number % 4}-{name} {words}")
    write_dir(folder, wav_scp, text)


def segmented_dir(folder, speech):
    """One long recording, cut by ``segments``: 0.2 s, 35 s, and the utterances."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    samples = np.concatenate([samples for _, _, samples in speech])
    soundfile.write(folder.parent / "long.flac", samples, RATE)
    text, segments, start = [], [], 0.0
    for name, words, part in speech[:8]:
        segments.append(f"spk-{name} long {start:.2f} {start + len(part) / RATE:.2f}")
        text.append(f"spk-{name} {words}")
        start += len(part) / RATE
    segments += ["spk-short long 0.30 0.50", "spk-very long 0.00 35.00"]
    text += ["spk-short A", "spk-very " + " ".join(words for _, words, _ in speech[:10])]
    write_dir(folder, [f"long {folder.parent / 'long.flac'}"], text, segments)
    return len(text)


def test_own_directories_of_every_kind(root, tmp_path, speech, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed_dir(tmp_path / "d" / "train", tmp_path / "d" / "audio_train", speech[:28], tmp_path)
    mixed_dir(tmp_path / "d" / "dev", tmp_path / "d" / "audio_dev", speech[28:35], tmp_path)
    mixed_dir(tmp_path / "d d" / "mixed", tmp_path / "d" / "audio_mixed", speech[35:42], tmp_path)
    segmented = segmented_dir(tmp_path / "d" / "segmented", speech[42:])
    result = run(
        root, "--train-dir", "d/train", "--dev-dir", "d/dev", "--test-dirs", "d d/mixed",
        "--test-dirs", "d/segmented", "--exp-dir", "exp", "--stop-stage", 7,
        "--set", "teacher.training.epochs=2", "--set", "sparse_student.training.epochs=2",
        "--set", "small_student.training.epochs=2",
    )  # fmt: skip
    rows = json.loads((tmp_path / "exp" / "default" / "summary.json").read_text())
    rows = [row for row in rows if row["search"] == "modified_beam_search"]
    assert [row["system"] for row in rows] == [
        system
        for system in ("teacher", "sparse60", "sparse60_kd", "sparse90", "sparse90_kd", "small", "small_kd")
        for _ in range(2)
    ]
    assert {row["test_set"] for row in rows} == {"mixed", "segmented"}
    assert all(row["wer"] is not None and row["words"] > 0 for row in rows)
    assert "left out" not in result.stdout, result.stdout
    for name, count in (("train", 28), ("dev", 7), ("mixed", 7), ("segmented", segmented)):
        assert json.loads((tmp_path / "exp" / "cuts" / f"{name}.left_out.json").read_text()) == {}, name
        decoded = [
            path for path in (tmp_path / "exp" / "default" / "teacher" / "seed1").glob(f"decode_*/recogs-{name}.txt")
        ]
        if name in ("mixed", "segmented"):
            assert decoded[0].read_text(encoding="utf-8").count("ref=") == count

"""CMU AN4 (census data: spelled names, numbers, dates, commands; 16 kHz) -> Kaldi data directories.

    <corpus_dir>/etc/an4_{train,test}.{fileids,transcription}    <corpus_dir>/wav/<fileid>.<suffix>

Audio is taken as ``.flac``, ``.sph``, ``.wav`` (used where it lies) or the distribution's header-less
16-bit **big-endian** ``.raw`` (converted to FLAC under ``<out_dir>/audio``).

Makes ``train`` and ``dev`` (the 74 training speakers, 8 of them held out whole for ``dev``) and ``test``
(the official one).  Utterance ids are ``<speaker>-<file>``, so that Kaldi's sorting rules hold.
"""

import random
import re
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import soundfile

from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.errors import UserError
from rnnt_kd.text_files import read_text

SUFFIXES = (".flac", ".sph", ".wav", ".raw")  # in the order of preference
OPTIONS = {"dev_speakers": "8"}


def prepare(corpus_dir: Path, out_dir: Path, *, seed: int, options: Dict[str, str]) -> List[Path]:
    """Make ``out_dir/{train,dev,test}``.

    Args:
      corpus_dir: the AN4 tree.
      out_dir:    e.g. ``data/an4``.
      seed:       chooses the held-out speakers.
      options:    ``dev_speakers`` (8).
    Returns: the three directories.
    Raises: UserError for a tree that is not AN4, missing audio, lists that disagree, a wrong option.
    """
    if corpus_dir is None or not Path(corpus_dir).is_dir():
        expected = "the folder of the CMU AN4 corpus, with etc/ and wav/"
        raise UserError(corpus_dir or "--corpus-dir", "no such directory", expected, "give --corpus-dir DIR")
    corpus_dir, out_dir = Path(corpus_dir).resolve(), Path(out_dir)
    train, test = _read_list(corpus_dir, "train"), _read_list(corpus_dir, "test")
    speakers = sorted({speaker for speaker, _, _ in train.values()})
    held_out = _number_of_dev_speakers(options.get("dev_speakers", OPTIONS["dev_speakers"]), len(speakers))
    dev_speakers = set(random.Random(seed).sample(speakers, held_out))
    parts = {
        "train": {key: entry for key, entry in train.items() if entry[0] not in dev_speakers},
        "dev": {key: entry for key, entry in train.items() if entry[0] in dev_speakers},
        "test": test,
    }
    audio = {part: {key: _audio(corpus_dir, out_dir, entry[1]) for key, entry in parts[part].items()} for part in parts}
    return [
        write_data_dir(
            out_dir / part,
            wav_scp=audio[part],
            text={key: entry[2] for key, entry in entries.items()},
            utt2spk={key: entry[0] for key, entry in entries.items()},
        )
        for part, entries in parts.items()
    ]


def _read_list(corpus_dir: Path, part: str) -> Dict[str, Tuple[str, str, str]]:
    """``{utterance id: (speaker, fileid, transcript)}`` of the official list ``part``."""
    fileids = corpus_dir / "etc" / f"an4_{part}.fileids"
    transcription = corpus_dir / "etc" / f"an4_{part}.transcription"
    for path in (fileids, transcription):
        if not path.is_file():
            raise UserError(path, "no such file", "the file lists of CMU AN4", "check --corpus-dir")
    texts = {}
    for number, line in enumerate(read_text(transcription).split("\n"), 1):
        match = re.fullmatch(r"\s*(?:<s>)?(.*?)(?:</s>)?\s*\((\S+)\)\s*", line)
        if line.strip() and not match:
            raise UserError(f"{transcription}:{number}", "cannot be read", "words and the file name in brackets")
        if match:
            texts[match.group(2)] = match.group(1).strip()
    entries = {}
    for number, line in enumerate(read_text(fileids).split("\n"), 1):
        fields = line.strip().split("/")
        if not line.strip():
            continue
        if len(fields) != 3 or not {*fields}.isdisjoint({"", ".", ".."}):
            raise UserError(f"{fileids}:{number}", f'found "{line.strip()}"', "folder/speaker/file")
        speaker, name = fields[1], fields[2]
        if name not in texts:
            raise UserError(f"{fileids}:{number}", f"{name} has no transcript", f"a line in {transcription}")
        entries[f"{speaker}-{name}"] = (speaker, line.strip(), texts[name])
    if not entries:
        raise UserError(fileids, "is empty", "the file list of CMU AN4", "check --corpus-dir")
    return entries


def _number_of_dev_speakers(value: str, available: int) -> int:
    number = int(value) if value.isdigit() else 0
    if not 0 < number < available:
        expected = f"a number from 1 to {available - 1} (of the training speakers)"
        raise UserError("--option dev_speakers", f'found "{value}"', expected)
    return number


def _audio(corpus_dir: Path, out_dir: Path, fileid: str) -> str:
    """Absolute path of the audio of ``fileid``; raw samples are converted first."""
    base = corpus_dir / "wav" / fileid
    for suffix in SUFFIXES:
        path = base.with_name(base.name + suffix)
        if path.is_file():
            is_raw = suffix == ".raw"
            return str(_convert_raw(path, out_dir / "audio" / f"{fileid}.flac") if is_raw else path.absolute())
    expected = f"a file with one of the suffixes {', '.join(SUFFIXES)}"
    raise UserError(base, "no audio", expected, "the corpus is incomplete: unpack it again")


def _convert_raw(path: Path, flac: Path) -> Path:
    samples = np.frombuffer(path.read_bytes()[: path.stat().st_size // 2 * 2], dtype=">i2").astype(np.int16)
    flac.parent.mkdir(parents=True, exist_ok=True)
    temporary = flac.with_name(f".{flac.name}.tmp")
    soundfile.write(temporary, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    temporary.replace(flac)
    return flac.absolute()

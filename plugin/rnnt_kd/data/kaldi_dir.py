"""Kaldi data directories: the one contract between corpora and everything else.

A directory holds, one entry a line, ``<id> <value>``, sorted by id in byte order (``LC_ALL=C sort``):

    wav.scp   recording id, path of an audio file (or FILE.ark:OFFSET, or a shell pipe ending in "|")
    text      utterance id, transcript (any Unicode, see ``text.normalization``; may be empty)
    utt2spk   utterance id, speaker id
    spk2utt   speaker id, its utterance ids (may be missing: it says what utt2spk says)
    segments  utterance id, recording id, start, end in seconds (missing: an utterance is
              a recording; an end of -1 is the end of the recording, as in Kaldi)

A relative path in ``wav.scp`` is relative to the current directory (Kaldi's rule); where no such
file exists, to the data directory.  Pipes run only where the user allows them.

``read_data_dir`` returns only what is right: any defect is one ``UserError`` that names the file and
the line.  It opens no audio: ``data.audio`` and ``data.check_audio`` do.
"""

import math
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Container, Dict, List, Mapping, Optional, Sequence, Tuple

from rnnt_kd.atomic import new_dir
from rnnt_kd.errors import UserError
from rnnt_kd.text.normalization import normalized
from rnnt_kd.text.transcripts import split_entry
from rnnt_kd.text_files import read_text

TABLES = ("wav.scp", "text", "utt2spk", "segments")  # that say all of a directory
Table = Dict[str, Tuple[str, str]]  # id -> (value, "file:line")


@dataclass(frozen=True)
class RecordingEntry:
    """One line of ``wav.scp``.  ``source`` is an absolute path, or a shell command where ``is_pipe``."""

    id: str
    source: str
    is_pipe: bool
    where: str  # "data/train/wav.scp:3", for messages

    @property
    def file(self) -> Tuple[Path, int]:
        """The file of what is no pipe, and at which of its bytes the recording begins."""
        return file_and_offset(self.source)


@dataclass(frozen=True)
class Utterance:
    """One utterance; ``start`` and ``end`` in seconds of its recording, ``end`` None = to the end."""

    id: str
    recording_id: str
    text: str
    speaker: str
    start: float
    end: Optional[float]
    where: str  # "data/train/segments:17", for messages


@dataclass(frozen=True)
class KaldiDataDir:
    """A whole directory; ``utterances`` are in the order of their ids."""

    path: Path
    recordings: Dict[str, RecordingEntry]
    utterances: List[Utterance]
    has_segments: bool

    @property
    def speakers(self) -> List[str]:
        return sorted({utterance.speaker for utterance in self.utterances})


def read_data_dir(
    path: Path, allow_pipes: bool = False, normalization: str = "nfc", unlabelled: bool = False
) -> KaldiDataDir:
    """Read and check a data directory.

    Args:
      path:        the directory.
      allow_pipes: take ``wav.scp`` entries that are shell commands.  They are not run here.
      normalization: of the transcripts, one of ``text.normalization.FORMS``.
      unlabelled:  ``text`` may be missing: then all transcripts are empty.
    Raises:
      UserError: no directory or file, empty, not UTF-8, unsorted, duplicate or mismatched ids,
        missing audio, a pipe without ``allow_pipes``, bad times in ``segments``.
    """
    path = Path(path)
    if not path.is_dir():
        expected = "a Kaldi data directory with wav.scp, text and utt2spk"
        raise UserError(path, "no such directory", expected, "check the path")
    for name in ("wav.scp", "text", "utt2spk"):
        if not (path / name).is_file() and not (unlabelled and name == "text" and not (path / name).exists()):
            raise UserError(
                path, f"has no file {name}", "wav.scp, text and utt2spk", "prepare the data directory again"
            )

    recordings = {
        key: _recording(path, key, value, where, allow_pipes)
        for key, (value, where) in read_table(path / "wav.scp").items()
    }
    utt2spk = read_table(path / "utt2spk")
    has_segments = (path / "segments").is_file()
    if has_segments:
        table = read_table(path / "segments")
        spans = {key: _segment(value, where) for key, (value, where) in table.items()}
        wheres = _wheres(table)
        origin = "segments"
        used: Dict[str, str] = {}
        for key, (recording_id, _, _) in spans.items():
            used.setdefault(recording_id, wheres[key])
        _all_in(recordings, used, 'recording "{}" is not in wav.scp', "a recording id of wav.scp")
    else:
        spans = {key: (key, 0.0, None) for key in recordings}
        wheres = {key: entry.where for key, entry in recordings.items()}
        origin = "wav.scp"

    text = dict.fromkeys(spans, ("", ""))
    if not unlabelled or (path / "text").exists():
        text = read_table(path / "text", value_may_be_empty=True)
    drop, known = "remove the line or add the audio", f"an utterance id of {origin}"
    _all_in(spans, _wheres(text), 'transcript "{}" has no audio', known, drop)
    _all_in(text, wheres, 'audio "{}" has no transcript', "a line in text", "remove it or add the transcript")
    advice = "take the utterance id where speakers are unknown"
    _all_in(utt2spk, wheres, 'utterance "{}" has no speaker', "a line in utt2spk", advice)
    _all_in(spans, _wheres(utt2spk), 'utterance "{}" has no audio', known, drop)
    speakers: Dict[str, str] = {}
    for key, (value, where) in utt2spk.items():
        _check_form(value, where, speakers)
        if len(value.split()) != 1:
            raise UserError(where, f'found "{key} {value}"', "two fields: utterance and speaker")
    if has_segments:
        listed = {key: entry.where for key, entry in recordings.items()}
        _all_in(used, listed, 'recording "{}" is in no segment', "its id in segments", "remove the line")
    _check_spk2utt(path, {key: value for key, (value, _) in utt2spk.items()})

    utterances = [
        Utterance(key, recording_id, normalized(text[key][0], normalization), utt2spk[key][0], start, end, wheres[key])
        for key, (recording_id, start, end) in spans.items()
    ]
    return KaldiDataDir(path, recordings, utterances, has_segments)


def find_recordings(path: Path, ids: Sequence[str], allow_pipes: bool = False) -> List[Optional[RecordingEntry]]:
    """The recordings of some ids; None for one that is not in ``wav.scp``, is gone, or is a pipe that may not run."""
    table = read_table(path / "wav.scp") if (path / "wav.scp").is_file() else {}
    found: List[Optional[RecordingEntry]] = []
    for key in ids:
        try:
            found.append(_recording(path, key, *table[key], allow_pipes))
        except (KeyError, UserError):
            found.append(None)
    return found


def write_data_dir(
    path: Path,
    *,
    wav_scp: Mapping[str, object],
    text: Mapping[str, str],
    utt2spk: Mapping[str, str],
    segments: Optional[Mapping[str, Tuple[str, float, float]]] = None,
) -> Path:
    """Write a data directory, sorted, whole or not at all; an older one is replaced.

    Args:
      path:     the directory to make.  Everything in an older one of that name goes: keep audio elsewhere.
      wav_scp:  recording id -> path of the audio, or a shell pipe ending in "|".
      text:     utterance id -> transcript; runs of white space become one space.
      utt2spk:  utterance id -> speaker id.
      segments: utterance id -> (recording id, start, end) in seconds.
    Returns: ``path``.
    Raises: UserError where ``read_data_dir`` would not take the result.
    """
    path = Path(path)
    tables = {
        "wav.scp": {key: str(value) for key, value in wav_scp.items()},
        "text": {key: " ".join(value.split()) for key, value in text.items()},
        "utt2spk": dict(utt2spk),
        "spk2utt": _invert(utt2spk),
    }
    if segments is not None:
        tables["segments"] = {key: f"{rec} {start:.6f} {end:.6f}" for key, (rec, start, end) in segments.items()}
    with new_dir(path) as made:
        for name, table in tables.items():
            lines = [f"{key} {table[key]}".rstrip() + "\n" for key in sorted(table)]
            (made / name).write_text("".join(lines), encoding="utf-8", newline="\n")
        try:
            read_data_dir(made, allow_pipes=True)
        except UserError as error:
            raise UserError(str(error).replace(str(made), str(path)), "the directory was not written") from None
    return path


def read_table(path: Path, value_may_be_empty: bool = False) -> Table:
    """``{id: (value, "file:line")}`` in the order of the file; outer white space of a value goes."""
    table: Table = {}
    forms: Dict[str, str] = {}
    previous = ""
    lines = read_text(path).split("\n")
    if lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        key, value = split_entry(line, where)
        if not key:
            raise UserError(where, "is empty", "an id and a value", "remove the line")
        if "\0" in line:
            raise UserError(where, "holds a NUL character", "plain text")
        if not value and not value_may_be_empty:
            raise UserError(where, f'id "{key}" has no value', "an id and a value")
        if key in table:
            first = table[key][1].rpartition(":")[2]
            raise UserError(where, f'duplicate id "{key}" (first at line {first})', "every id once", "remove one line")
        _check_form(key, where, forms)
        if key < previous:
            advice = f"run: LC_ALL=C sort -o {path} {path}"
            raise UserError(where, f'is not sorted: "{key}" after "{previous}"', "byte order", advice)
        table[key] = (value, where)
        previous = key
    if not table:
        raise UserError(path, "is empty", "at least one line", "prepare the data directory again")
    return table


def file_and_offset(source: str) -> Tuple[Path, int]:
    """``FILE.ark:OFFSET``, which Kaldi's wav-copy writes, in its parts; any other path, and 0."""
    archive = re.fullmatch(r"(.+):([0-9]{1,18})", source, flags=re.DOTALL)
    if archive and not os.path.exists(source):
        return Path(archive[1]), int(archive[2])
    return Path(source), 0


def _recording(directory: Path, key: str, value: str, where: str, allow_pipes: bool) -> RecordingEntry:
    if value.endswith("|"):
        if not allow_pipes:
            advice = "give --allow-pipes if you trust this directory"
            raise UserError(where, "is a shell pipe", "the path of an audio file", advice)
        return RecordingEntry(key, value[:-1].strip(), True, where)
    for candidate in (Path(value), directory / value):
        file = file_and_offset(str(candidate))[0]
        if os.path.isfile(file):
            if not os.access(file, os.R_OK):
                raise UserError(where, f"audio {value} cannot be read: permission denied", "a readable file")
            return RecordingEntry(key, str(candidate.absolute()), False, where)
    if re.match(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://", value):
        raise UserError(where, f"audio {value} is no path", "a file on this machine, or a shell pipe that ends in |")
    if os.path.exists(value) and not os.path.isdir(value):
        raise UserError(where, f"audio {value} is a device or pipe", "a plain file", "copy it, or end the line in |")
    places = "an existing file" if os.path.isabs(value) else f"a file relative to {Path.cwd()} or to {directory}"
    raise UserError(where, f"audio {value} does not exist", places, "fix the path or remove the utterance")


def _segment(value: str, where: str) -> Tuple[str, float, Optional[float]]:
    fields = value.split()
    if len(fields) != 3:
        raise UserError(where, f"has {len(fields) + 1} fields", "four: utterance, recording, start, end")
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError:
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end)):
        raise UserError(where, f'times "{fields[1]} {fields[2]}" are not numbers', "start and end in seconds")
    if end == -1.0 and start >= 0.0:
        return fields[0], start, None
    if start < 0.0:
        raise UserError(where, f"starts at {fields[1]}", "a start of 0 seconds or later")
    if end <= start:
        raise UserError(where, f"ends at {fields[2]}, not after its start {fields[1]}", "start < end, in seconds")
    return fields[0], start, end


def _check_spk2utt(path: Path, utt2spk: Mapping[str, str]) -> None:
    if not (path / "spk2utt").is_file():
        return
    expected = _invert(utt2spk)
    advice = "make it again from utt2spk (utils/utt2spk_to_spk2utt.pl), or remove it"
    found = read_table(path / "spk2utt")
    for key, (value, where) in found.items():
        if key not in expected:
            raise UserError(where, f'speaker "{key}" is not in utt2spk', "the speakers of utt2spk", advice)
        if sorted(value.split()) != expected[key].split():
            found_there = f'utterances of speaker "{key}" differ from utt2spk'
            raise UserError(where, found_there, "the same utterances", advice)
    missing = dict.fromkeys(expected, str(path / "spk2utt"))
    _all_in(found, missing, 'speaker "{}" of utt2spk is missing', "every speaker of utt2spk", advice)


def _check_form(key: str, where: str, seen: Dict[str, str]) -> None:
    """UserError: among those ``seen`` is the same id in another Unicode form."""
    if not key.isascii():
        other = seen.setdefault(unicodedata.normalize("NFC", key), key)
        if other != key:
            problem = f'"{key}" is there in two Unicode forms, {other!a} and {key!a}'
            raise UserError(where, problem, "one form of every id", "write all files in NFC, or rename one")


def _wheres(table: Table) -> Dict[str, str]:
    return {key: where for key, (_, where) in table.items()}


def _all_in(known: Container[str], wheres: Mapping[str, str], found: str, expected: str, advice: str = "") -> None:
    """UserError: a key of ``wheres`` is not ``known``; the first is named in the place of the {} of ``found``."""
    for key, where in wheres.items():
        if key not in known:
            raise UserError(where, found.format(key), expected, advice)


def _invert(utt2spk: Mapping[str, str]) -> Dict[str, str]:
    spk2utt: Dict[str, List[str]] = {}
    for utterance in sorted(utt2spk):
        spk2utt.setdefault(utt2spk[utterance], []).append(utterance)
    return {speaker: " ".join(utterances) for speaker, utterances in spk2utt.items()}

"""What was said and what was recognised, and ``recogs-<test set>.txt`` on disk.

Two lines an utterance, as icefall writes them, the words as a Python list:

    an4_fash-cen1:\tref=['YES', 'PLEASE']
    an4_fash-cen1:\thyp=['YES']
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Container, Dict, Iterable, List, Mapping, Sequence, Tuple
from unicodedata import normalize

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.text.events import without_events
from rnnt_kd.text_files import read_text

_AGAIN = "decode again"
_SAME = "the utterances of one data directory", "give the one that was decoded, or decode again"


@dataclass(frozen=True)
class Recognition:
    """One utterance: its id, the reference words, the recognised words; the words in Unicode's NFC."""

    utterance_id: str
    ref: Tuple[str, ...]
    hyp: Tuple[str, ...]

    def __post_init__(self) -> None:
        for side in ("ref", "hyp"):
            object.__setattr__(self, side, tuple(normalize("NFC", word) for word in getattr(self, side)))


def write_recogs(path: Path, recognitions: Iterable[Recognition]) -> None:
    """Write the file, sorted by id, atomically."""
    lines = []
    for item in sorted(recognitions, key=lambda item: item.utterance_id):
        lines += [f"{item.utterance_id}:\tref={list(item.ref)}\n", f"{item.utterance_id}:\thyp={list(item.hyp)}\n"]
    atomic.write_text(path, "".join(lines))


def read_recogs(path: Path) -> List[Recognition]:
    """Read the file, sorted by id.

    Raises:
      UserError: no such file; a line that is no such line, an id twice, a reference without
        hypothesis or the reverse (file and line are named); no utterance at all.
    """
    sides: Dict[str, Dict[str, Tuple[str, ...]]] = {"ref": {}, "hyp": {}}
    for where, line in read_lines(path):
        if ":\ttimestamp_" in line:  # icefall's, of words or tokens
            continue
        utterance_id, side, words = _parse(line, where)
        if utterance_id in sides[side]:
            raise UserError(where, f'a second {side} of "{utterance_id}"', "every id once", _AGAIN)
        sides[side][utterance_id] = words
    for one, other in (("ref", "hyp"), ("hyp", "ref")):
        for utterance_id in sides[one]:
            if utterance_id not in sides[other]:
                raise UserError(path, f'"{utterance_id}" has no {other}', "a ref and a hyp line for every id", _AGAIN)
    return [Recognition(key, sides["ref"][key], sides["hyp"][key]) for key in sorted(sides["ref"])]


def read_lines(path: Path) -> List[Tuple[str, str]]:
    """("file:line", line without the white space around it) of every line that is not blank.

    Raises:
      UserError: no such file, not UTF-8, no line.
    """
    lines = read_text(path, "recognised text", "decode first").split("\n")
    found = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(path, "holds no utterance", "at least one", _AGAIN)
    return found


def words_counted(recognitions: List[Recognition], score_events: bool) -> List[Recognition]:
    """References and hypotheses, without what ``text.events`` takes for no word where these do not count."""
    if score_events:
        return recognitions
    keep = [(item.utterance_id, without_events(item.ref), without_events(item.hyp)) for item in recognitions]
    return [Recognition(utterance_id, tuple(ref), tuple(hyp)) for utterance_id, ref, hyp in keep]


def check_references(
    recognitions: Iterable[Recognition],
    path: Path,
    references: Mapping[str, Tuple[str, ...]],
    references_path: Path,
    left_out: Container[str] = (),
) -> List[str]:
    """Compare the utterances and references of a decoding with those of a data directory or of another decoding.

    Args:
      path, references_path: for messages.
      references:            utterance id -> words.
      left_out:              ids of ``references`` that decoding is known to have left out (unreadable audio).
    Returns:
      the ids of ``references`` that were not decoded, all of them in ``left_out``; sorted.
    Raises:
      UserError: an id or a reference differs; the first is named.
    """
    missing = set(references)
    for item in recognitions:
        if item.utterance_id not in references:
            raise UserError(path, f'"{item.utterance_id}" is not in {references_path}', *_SAME)
        expected = references[item.utterance_id]
        if item.ref != expected:
            problem = f'ref of "{item.utterance_id}" differs from {references_path}: "{" ".join(item.ref)}"'
            raise UserError(path, problem, f'"{" ".join(expected)}"', _AGAIN)
        missing.remove(item.utterance_id)
    unexplained = sorted(key for key in missing if key not in left_out)
    if unexplained:
        problem = f"{len(unexplained)} of {len(references)} utterances of {references_path} are missing, the first is"
        raise UserError(path, f'{problem} "{unexplained[0]}"', *_SAME)
    return sorted(missing)


def check_same_references(
    recognitions: Sequence[Recognition], baseline: Sequence[Recognition], path: Path, baseline_path: Path
) -> None:
    """Two systems are compared on the same utterances only.  Raises UserError naming the first that differs."""
    check_references(recognitions, path, {item.utterance_id: item.ref for item in baseline}, baseline_path)


def _is_word(value: object) -> bool:
    """Text that stands between two blanks, and can be written."""
    return isinstance(value, str) and value.split() == [value] and not re.search("[\ud800-\udfff]", value)


def _parse(line: str, where: str) -> Tuple[str, str, Tuple[str, ...]]:
    """One line -> id, "ref" or "hyp", words."""
    utterance_id, separator, rest = line.partition(":\t")
    side, equals, words = rest.partition("=")
    if separator and equals and utterance_id and side in ("ref", "hyp"):
        try:
            value = ast.literal_eval(words)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            value = None
        if isinstance(value, list) and all(map(_is_word, value)):
            return utterance_id, side, tuple(value)
    raise UserError(where, f'found "{line[:60]}"', "<id>:<TAB>ref=[...] or hyp=[...]", _AGAIN)

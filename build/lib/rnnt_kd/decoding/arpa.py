"""The lines of an ARPA file, checked: kaldilm takes any number, and drops without a word what does not fit."""

import re
import unicodedata
from pathlib import Path
from typing import Dict, Iterator, Set

from rnnt_kd.errors import UserError
from rnnt_kd.text_files import text_lines

ARPA = "an n-gram language model in ARPA format"
_CHECK = "check the file, or copy it again"
_HIGHEST, _LARGEST = 1e-3, 100.0  # log10 of a probability (rounded) and, either way, of a back-off weight


def checked_lines(path: Path, normalization: str = "nfc") -> Iterator[str]:
    """The lines from ``\\data\\`` to ``\\end\\``, the words in the form of ``text.normalization``.

    Raises: UserError: no such file; a line that does not belong there; other numbers of n-grams than the head says.
    """
    counts: Dict[int, int] = {}  # as the head says
    order = -1  # of the section; 0: the head, -1: what comes before it
    vocabulary: Set[str] = set()
    found: Set[str] = set()  # n-grams of the section
    for where, line in text_lines(path, ARPA):
        line = line.strip(" \t")
        if order < 0 and line != "\\data\\":
            continue
        if normalization == "nfc":
            line = unicodedata.normalize("NFC", line)
        if line.startswith("\\"):
            if order > 0 and len(found) != counts[order]:
                problem = f"follows {len(found)} n-grams of order {order}"
                raise UserError(where, problem, f"{counts[order]}, as the head says", _CHECK)
            order += 1
            vocabulary = vocabulary or found
            found = set()
            expected = "\\data\\" if order == 0 else f"\\{order}-grams:" if order in counts else "\\end\\"
            if line != expected or (expected == "\\end\\" and not counts):
                raise UserError(where, f'found "{line[:60]}"', expected, _CHECK)
            if line == "\\end\\":
                break
        elif line and order == 0:
            if not re.fullmatch(rf"ngram\s+{len(counts) + 1}\s*=\s*\d{{1,12}}", line):
                raise UserError(where, f'found "{line[:60]}"', f"ngram {len(counts) + 1}=COUNT", _CHECK)
            counts[len(counts) + 1] = int(line.partition("=")[2])
        elif line:
            _check(line, where, order, vocabulary, found)
        yield line
    else:
        raise UserError(path, "ends before \\end\\" if order >= 0 else "has no line \\data\\", ARPA, _CHECK)
    for word in ("<s>", "</s>"):
        if word not in vocabulary:
            raise UserError(path, f"does not know {word}", ARPA, "train it on whole sentences")
    yield "\\end\\"


def _check(line: str, where: str, order: int, vocabulary: Set[str], found: Set[str]) -> None:
    """Add the n-gram of a line to ``found``."""
    number, *words = re.split(r"[ \t]+", line)
    weight = words.pop() if len(words) == order + 1 else "0"
    ngram = " ".join(words)
    try:
        fits = len(words) == order and float(number) <= _HIGHEST and abs(float(weight)) <= _LARGEST
    except ValueError:
        fits = False
    if not fits or re.search(r"[\x00-\x08\x0a-\x1f]", line):  # kaldilm would split the line there
        expected = f"log10 of a probability, {order} words, perhaps log10 of a back-off weight"
        raise UserError(where, f'found "{line[:60]}"', expected, _CHECK)
    if ngram in found:
        raise UserError(where, f'"{ngram[:60]}" a second time', "every n-gram once", _CHECK)
    strange = next((word for word in words if vocabulary and word not in vocabulary), None)
    if strange is not None:
        raise UserError(where, f'"{strange[:60]}" is none of the words', "words among the 1-grams", _CHECK)
    found.add(ngram)

"""The transcripts of Kaldi data directories, without the rest."""

import re
import unicodedata
from pathlib import Path
from typing import Iterable, List, Tuple

from rnnt_kd.errors import UserError
from rnnt_kd.text.normalization import normalized
from rnnt_kd.text_files import read_text

_UNSEEN = "\ufeff\u200b"  # byte order mark and zero-width space


def read_transcripts(paths: Iterable[Path], form: str = "nfc") -> List[str]:
    """The normalised transcripts of files ``text`` (id, transcript), empty ones left out.

    Raises:
      UserError: a file is missing, or no UTF-8, or an id holds a blank that Kaldi does not take for one.
    """
    texts: List[str] = []
    for path in paths:
        lines = read_text(path, "the text file of a Kaldi data directory").split("\n")
        entries = (split_entry(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
        texts.extend(filter(None, (normalized(text, form) for _, text in entries)))
    return texts


def split_entry(line: str, where: str) -> Tuple[str, str]:
    """Id and value of a line of a Kaldi table: what stands before and behind the first blanks or tabs.

    Raises: UserError: an id with another blank in it, as an East Asian keyboard or a web page leaves behind it.
    """
    key, _, value = re.sub(r"[ \t\r]+", " ", line.strip(" \t\r"), count=1).partition(" ")
    odd = next((letter for letter in key if letter.isspace() or letter in _UNSEEN), None)
    if odd is not None:
        name = unicodedata.name(odd, "control character").lower()
        problem = f'id "{key[:60]}" holds the blank U+{ord(odd):04X} ({name})'
        raise UserError(where, problem, "a space or a tab after the id", "write one in its place")
    return key, value.strip()

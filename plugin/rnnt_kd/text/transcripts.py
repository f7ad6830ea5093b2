"""The transcripts of Kaldi data directories, without the rest."""

from pathlib import Path
from typing import Iterable, List

from rnnt_kd.errors import UserError


def read_transcripts(paths: Iterable[Path]) -> List[str]:
    """The transcripts of files ``text`` (id, transcript), empty ones left out.

    Raises:
      UserError: a file is missing, or no UTF-8.
    """
    texts: List[str] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(path, "no such file", "the text file of a Kaldi data directory", "check the path")
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise UserError(path, "is not UTF-8", "UTF-8 text", "convert it, for example with iconv") from None
        texts.extend(fields[1] for fields in (line.split(maxsplit=1) for line in lines) if len(fields) == 2)
    return texts

"""Words and ids: NIST's trn, one utterance a line.

    YES PLEASE (fash-an4_fash-cen1)

The id is ``<speaker>-<utterance id>``: sclite -i rm takes what stands before the first "-" for the speaker.

sclite gives some characters a meaning: ``{ A / B }`` is a choice, ``(A)`` may be missing, ``@`` is no word, ``A;B`` is
A with a tag, ``;;`` begins a comment, ``A*`` is A, ``\\`` is left out, ``<ALT_BEGIN>`` in a ctm begins a choice.  In
words and ids of trn and ctm these are written as ``%`` and two hexadecimal digits (``(UH)``: ``%28UH%29``), and so is a
``%`` before two such digits: sclite then counts what we count.
"""

import re
from pathlib import Path
from typing import Iterable, Mapping

from rnnt_kd import atomic
from rnnt_kd.scoring.recognitions import Recognition

_MEANT = re.compile(r"[{}();\\]|\*$|^@$|%(?=[0-9A-F]{2})|(?i:^<(?=ALT))")
_ESCAPED = re.compile("%(7B|7D|28|29|3B|5C|2A|40|25|3C)")


def escaped(word: str) -> str:
    """As it stands in trn and ctm; different words stay different."""
    return _MEANT.sub(lambda match: f"%{ord(match[0]):02X}", word)


def unescaped(word: str) -> str:
    """What ``escaped`` was given."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), word)


def write_trn(ref_path: Path, hyp_path: Path, recognitions: Iterable[Recognition], speakers: Mapping[str, str]) -> None:
    """Write the references to one file and what was recognised to the other, sorted by id, atomically.

    Args:
      speakers: utterance id -> speaker id; of one that is not known, the utterance's id is taken.
    """
    items = sorted(recognitions, key=lambda item: item.utterance_id)
    for path, side in ((ref_path, "ref"), (hyp_path, "hyp")):
        lines = []
        for item in items:
            speaker = speakers.get(item.utterance_id, item.utterance_id)
            name = f"({escaped(f'{speaker}-{item.utterance_id}')})"
            lines.append(" ".join([*map(escaped, getattr(item, side)), name]) + "\n")
        atomic.write_text(path, "".join(lines))

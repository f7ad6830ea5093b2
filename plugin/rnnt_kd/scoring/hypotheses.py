"""Hypotheses of any recogniser, in the forms in which they are passed around, against a data directory's references.

    <utterance id> YES PLEASE                Kaldi's text (Kaldi, ESPnet)
    YES PLEASE (<speaker>-<utterance id>)    NIST's trn (sclite, ESPnet); or the utterance id alone in brackets
    <utterance id>:\\thyp=['YES', 'PLEASE']   icefall's recogs, with its ref= lines

The form is recognised from the lines, their order does not matter, an id alone is an empty hypothesis.  What trn.py
writes as %XX is read as what it was.
"""

import re
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.recognitions import Recognition, read_lines, read_recogs
from rnnt_kd.scoring.trn import unescaped


def read_hypotheses(
    path: Path, references: Mapping[str, Tuple[str, ...]], speakers: Mapping[str, str]
) -> List[Recognition]:
    """Read the file, sorted by id; ``check_references`` says what is missing in it or not in ``references``.

    Args:
      references: utterance id -> words, for Kaldi's text and trn; recogs have their own.
      speakers:   utterance id -> speaker id, for the ids of trn.
    Raises:
      UserError: no such file, not UTF-8, no utterance, an id twice, a line of recogs that is none.
    """
    lines = read_lines(path)
    if re.search(r":\t(timestamp_)?(ref|hyp)=", lines[0][1]):
        return read_recogs(path)
    trn = [re.fullmatch(r"(.*)\((\S+)\)", line) for _, line in lines]
    if all(trn) and not any(line.split()[0] in references for _, line in lines):
        own = {f"{key}-{key}": key for key in references}  # of whom nothing is known, see ``write_trn``
        ids = {**own, **{f"{speakers[key]}-{key}": key for key in speakers}, **{key: key for key in references}}
        named = [(unescaped(match[2]), [unescaped(word) for word in match[1].split()]) for match in trn if match]
        pairs = [(ids.get(name, name), words) for name, words in named]
    else:
        pairs = [(fields[0], fields[1:]) for fields in (line.split() for _, line in lines)]
    hyps: Dict[str, Tuple[str, ...]] = {}
    for (where, _), (utterance_id, words) in zip(lines, pairs, strict=True):
        if utterance_id in hyps:
            raise UserError(where, f'a second hypothesis of "{utterance_id}"', "every id once", "remove one line")
        hyps[utterance_id] = tuple(words)
    return [Recognition(key, references.get(key, ()), hyps[key]) for key in sorted(hyps)]

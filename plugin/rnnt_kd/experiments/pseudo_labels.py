"""Labelled cuts and unlabelled ones with somebody's words, in one file: what a student trains on.

Copies at other speeds and far ones have the words of what they are copies of.
"""

import gzip
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from rnnt_kd import atomic
from rnnt_kd.data.cuts import check_lhotse, parse_line, read_lines
from rnnt_kd.data.features import originals
from rnnt_kd.data.kaldi_dir import Table, read_table
from rnnt_kd.errors import UserError
from rnnt_kd.record import Record, file_digest
from rnnt_kd.scoring.recognitions import read_recogs

AGAIN = "run stage 1 again"


def check_apart(unlabelled: Path, others: Sequence[Optional[Path]]) -> None:
    """UserError: an utterance of one data directory is labelled or tested in another; what is missing has none."""
    ids, *known = ({} if folder is None else _utterances(folder) for folder in (unlabelled, *others))
    for folder, table in zip(others, known):
        for key in filter(table.__contains__, ids):
            problem, cure = f'"{key}" is in {folder}, too', "remove it from --unlabelled-dir"
            raise UserError(ids[key][1], problem, "utterances that are neither labelled nor tested", cure)


def _utterances(folder: Path) -> Table:
    return read_table(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}


class Sources(NamedTuple):
    """``labelled`` and ``unlabelled``: cuts of stage 1; ``words``: recogs of the latter, None where they have text."""

    labelled: Path
    unlabelled: Path
    words: Optional[Path]

    def record(self, out: Path) -> Record:
        """Of the file ``out`` that ``write`` makes."""
        digests = {name: file_digest(path) for name, path in self._asdict().items() if path is not None}
        return Record(out.parent, f"pseudo_labels_{out.name.partition('.jsonl')[0]}", {}, digests, [out.name])


class Written(NamedTuple):
    """Numbers of cuts; ``silent``: of ``unlabelled``, without a word and left out."""

    labelled: int
    unlabelled: int
    silent: int


def write(sources: Sources, out: Path) -> Written:
    """Write ``out``, .jsonl.gz, whole or not at all.

    Raises:
      UserError: no such files; a cut of both; words for cuts with text, or none for those without; no word at all.
    """
    labelled = {cut["id"]: line for _, line, cut in _cuts(sources.labelled)}
    unlabelled = [(where, cut) for where, _, cut in _cuts(sources.unlabelled)]
    words = None if sources.words is None else _words(sources, [cut for _, cut in unlabelled])
    original_of = originals([cut["id"] for _, cut in unlabelled])
    lines: List[bytes] = [*labelled.values()]
    for where, cut in unlabelled:
        if cut["id"] in labelled:
            problem = f'"{cut["id"]}" is labelled, too, in {sources.labelled}'
            raise UserError(where, problem, "other utterances", "remove them from --unlabelled-dir")
        supervision, original = cut["supervisions"][0], original_of[cut["id"]]
        text = _text(cut) if words is None else words.get(original)
        if text is None:
            raise UserError(where, f'nobody decoded "{original}"', "words, perhaps none", "decode these cuts again")
        if text:
            supervision["text"] = text
            lines.append(json.dumps(cut, ensure_ascii=False).encode() + b"\n")
    silent = len(labelled) + len(unlabelled) - len(lines)
    if silent == len(unlabelled):
        whose = "its text has" if words is None else "the teacher heard"
        problem = f"{whose} no word in any of {silent} cuts"
        raise UserError(sources.unlabelled, problem, "speech of its language", "leave --unlabelled-dir away")
    atomic.write_bytes(out, gzip.compress(b"".join(lines), compresslevel=6, mtime=0))
    return Written(len(labelled), len(unlabelled), silent)


def _words(sources: Sources, cuts: List[Dict[str, Any]]) -> Mapping[str, str]:
    """By utterance."""
    assert sources.words is not None
    given = next((cut["id"] for cut in cuts if _text(cut)), None)
    if given is not None:
        raise UserError(sources.unlabelled, f'"{given}" has text, and a teacher wrote it, too', "one of them", AGAIN)
    return {one.utterance_id: " ".join(one.hyp) for one in read_recogs(sources.words)}


def _text(cut: Mapping[str, Any]) -> str:
    return cut["supervisions"][0].get("text") or ""


def _cuts(path: Path) -> Iterator[Tuple[str, bytes, Dict[str, Any]]]:
    """Place, line and contents of each cut.  UserError: not such a file."""
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}:{number}"
        cut = parse_line(line, where)
        check_lhotse(parse_line(line, where), where)
        yield where, line, cut

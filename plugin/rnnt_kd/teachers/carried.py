"""A teacher's posteriors that travel with the cuts: through mixing, bucketing, splitting by rank, and Shar.

    cuts = attach(CutSet.from_file("cuts.jsonl.gz"), TeacherCache.open("kd_cache"))     # cut.kd, cut.load_kd()

A training without a cache reads them from its cuts, and comes to the same bits.
"""

import copy
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from rnnt_kd import atomic
from rnnt_kd.data.cuts import parse_line, read_lines
from rnnt_kd.data.source import Source
from rnnt_kd.data.stored_frames import AGAIN, TEACHER, TEACHER_DIGEST, TEACHER_FACTS, Frames, carried
from rnnt_kd.errors import UserError
from rnnt_kd.teachers.cache import TeacherCache, check_facts
from rnnt_kd.teachers.shards import CacheFacts

_OF_THE_CACHE = {"cuts": "", "shard_utterances": 0}  # facts that do not go with a cut


class CarriedTeacher:
    """What cuts carry of their teacher, as ``attach`` gave it to them; the rest as of ``TeacherCache``."""

    def __init__(self, cuts: Source, facts: CacheFacts):
        self.folder, self.facts = cuts.path, facts
        self.digest = hashlib.sha256(f"{facts} {cuts.teacher_content}".encode()).hexdigest()

    @classmethod
    def of(cls, cuts: Source, expected: Mapping[str, Any]) -> Optional["CarriedTeacher"]:
        """None where no cut carries one.  UserError: made with something else than ``expected``, or in two ways.

        Takes what the index knows: no other cut is read than the first of each way.
        """
        first: Optional[CacheFacts] = None
        cuts_path = cuts.path
        for cut in (cuts[place] for place in cuts.teacher_cuts):
            values: Any = (cut.custom or {}).get(TEACHER_FACTS)
            try:
                facts = CacheFacts(**{**values, **_OF_THE_CACHE})
            except TypeError as error:
                where = f"{cuts_path}: cut '{cut.id:.100}'"
                raise UserError(where, f"its {TEACHER_FACTS} ({error})", "those of a cache", AGAIN) from None
            if first is None:
                first = facts
                carried(cut, cuts_path)  # of the others, when they are read
                check_facts(facts, cuts_path, {key: expected[key] for key in {*expected} - {*_OF_THE_CACHE}})
            if facts != first:
                check_facts(facts, f"{cuts_path}: cut '{cut.id:.100}'", vars(first))
        return None if first is None else cls(cuts, first)

    def content_as(self, recorded: Optional[str]) -> str:
        return self.digest

    def arrays(
        self, source: Source, places: Sequence[int], cut_ids: Sequence[str]
    ) -> List[Union[None, Frames, np.ndarray]]:
        return [carried(source[place], self.folder) for place in places]

    def frames(self, source: Source, places: Sequence[int], cut_ids: Sequence[str]) -> np.ndarray:
        return source.teacher_frames[places]


StoredTeacher = Union[TeacherCache, CarriedTeacher]


def attach(cuts: Iterable[Any], cache: TeacherCache, missing: str = "error") -> Iterator[Any]:
    """Lhotse's cuts, each with what ``cache`` has of it: ``cut.kd``, to be read by ``cut.load_kd()``, (T, width) int16.

    Raises UserError: the cache does not have a cut, and ``missing`` is not "skip".
    """
    for cut in cuts:
        cut = copy.copy(cut)
        cut.custom = {**_without_teacher(cut.custom), **_fields(cache, cut.id, missing)}
        yield cut


def attach_to_file(cuts: Path, cache: TeacherCache, out: Path, missing: str = "error") -> Tuple[int, int]:
    """``attach`` for a cuts file (.jsonl or .jsonl.gz); all else in it stays as it is.

    Returns: cuts, and those without a teacher.  Raises UserError as ``attach``, or: no cuts file.
    """
    lines: List[bytes] = []
    lacking = 0
    for number, line in enumerate(read_lines(cuts), 1):
        cut = parse_line(line, f"{cuts}:{number}")
        try:
            fields = _fields(cache, cut["id"], missing)
            cut["custom"] = {**_without_teacher(cut.get("custom")), **fields}
            text = json.dumps(cut, ensure_ascii=False, default=lambda array: array.to_dict())
            lines.append(text.encode() + b"\n")  # half a character cannot be written
        except UserError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            problem = f"is no cut ({type(error).__name__}: {error})"
            raise UserError(f"{cuts}:{number}", problem, "Lhotse's cuts, .jsonl or .jsonl.gz") from None
        lacking += not fields
    if not lines:
        raise UserError(cuts, "has no cuts", "Lhotse's cuts, at least one", "check the path")
    content = b"".join(lines)
    atomic.write_bytes(out, gzip.compress(content, compresslevel=6, mtime=0) if out.suffix == ".gz" else content)
    return len(lines), lacking


def _without_teacher(custom: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """A cut's fields, without what an earlier cache had of it."""
    return {key: value for key, value in (custom or {}).items() if key not in (TEACHER, TEACHER_FACTS, TEACHER_DIGEST)}


def _fields(cache: TeacherCache, cut_id: str, missing: str) -> Dict[str, Any]:
    (place,) = cache.places([cut_id])
    if place is not None:
        facts = {key: value for key, value in vars(cache.facts).items() if key not in _OF_THE_CACHE}
        return {TEACHER: place.manifest(), TEACHER_FACTS: facts, TEACHER_DIGEST: place.digest}
    if missing == "skip":
        return {}
    raise UserError(cache.folder, f"has nothing of cut {cut_id:.100}", "all cuts (or --missing skip)", AGAIN)

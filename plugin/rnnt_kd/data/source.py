"""A source of cuts, whatever they lie in, as one sequence that costs no memory.

    source = open_source("exp/an4/cuts/train.jsonl.gz")   # or any Lhotse manifest of cuts, or a folder in Shar format
    len(source), source[3], source.durations[3]           # lhotse.MonoCut, read from the disk when it is asked for
    source.read(3)                                        # CutInfo, (T, 80)

The first reading checks every cut and writes an index; what is asked for later is read from there.  The index of a
file above ``KEPT_BYTES`` is kept beside it, ``.<name>.index``, mapped and not loaded, and made again where file or
index have changed; where that folder cannot be written, and of small files, it is held in memory.
"""

import array
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from filelock import FileLock
from lhotse import MonoCut

from rnnt_kd import atomic, progress_bar
from rnnt_kd.data import cuts, shar
from rnnt_kd.data.stored_features import read_features
from rnnt_kd.data.stored_frames import TEACHER, TEACHER_FACTS, frames_of_array
from rnnt_kd.errors import UserError
from rnnt_kd.files import named_in, parse_json
from rnnt_kd.record import json_digest

KEPT_BYTES = 4 << 20  # of manifests as they are on the disk
BLOCK = 16  # cuts that are compressed together
VERSION = 3  # of the index, and of what is checked before a cut gets into it
TYPES = {"durations": "<f8", "num_frames": "<i4", "id_ends": "<i8", "ids": "u1", "hashes": "<u8"}
TYPES.update(teacher_frames="<i4", block_ends="<i8", blocks="u1")
CHECKED = [name for name in TYPES if name != "blocks"]  # by SHA-256 when it is opened; zlib checks each block


@dataclasses.dataclass(frozen=True)
class CutInfo:
    """One cut, without its features."""

    id: str
    text: str
    speaker: str
    duration: float  # seconds
    num_frames: int  # of 10 ms


class Source(Sequence[MonoCut]):
    """Made by ``open_source``.  A worker process that it is sent to opens it again.

    Attributes:
      path:       as it was opened.
      durations:  (N,) float64, seconds.
      num_frames: (N,) int32, of 10 ms.
      digest:     SHA-256 over what a model can learn from: ids, transcripts, lengths and where in their files the
                  features lie (which changes with them); not the folders.
      teacher_frames: (N,) int32, of the teacher's array that a cut carries; -1: it carries none.
      teacher_cuts: places of the first cut that carries a teacher, and of the first that carries another; 0, 1 or 2.
      content:    SHA-256 of the unpacked manifest, without the folders that its features lie in where it says what
                  these are; of a Shar folder, with the sizes of its archives.  As it was before cuts carried a
                  teacher; what they carry has one of its own, ``teacher_content``.
      lines:      as ``content``, with the folders: how earlier versions recorded it.
    """

    def __init__(self, path: Path, facts: Dict[str, Any], columns: Dict[str, np.ndarray], folder: Optional[Path]):
        self.path, self.digest, self._folder, self._is_shar = path, facts["digest"], folder, path.is_dir()
        self.lines, self.content = facts["lines"], facts["content"]
        self.teacher_content = facts["teacher_content"]
        self.durations, self.num_frames = columns["durations"], columns["num_frames"]
        self.teacher_frames, self.teacher_cuts = columns["teacher_frames"], facts["teacher_cuts"]
        self._columns = columns
        self._kept: Dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        return MonoCut.from_dict(self._line(range(len(self))[place]))

    def __iter__(self) -> Iterator[MonoCut]:
        return map(MonoCut.from_dict, self._lines())

    def __reduce__(self):
        return open_source, (self.path,)

    def content_as(self, recorded: Optional[str]) -> str:
        """``content``; or ``lines`` where that is what a record has."""
        return self.lines if self.lines == recorded else self.content

    def ids(self, places: Iterable[int]) -> List[str]:
        """Ids of some cuts."""
        text, ends = memoryview(self._columns["ids"].data), memoryview(self._columns["id_ends"].data)
        return [str(text[ends[at - 1] if at else 0 : ends[at]], "utf-8") for at in places]

    def find(self, name: str) -> Optional[int]:
        """The place of the cut with this id; None where there is none."""
        hashes, wanted = self._columns["hashes"], np.uint64(_hash(name))
        begin = int(np.searchsorted(hashes, wanted, sorter=self._by_hash))
        while begin < len(self) and hashes[place := int(self._by_hash[begin])] == wanted:
            if self.ids([place]) == [name]:
                return place
            begin += 1
        return None

    @functools.cached_property
    def _by_hash(self) -> np.ndarray:
        return np.argsort(self._columns["hashes"], kind="stable")

    def info(self, place: int) -> CutInfo:
        return _info(self._line(place))

    def infos(self) -> Iterator[CutInfo]:
        """Every cut in order, one at a time."""
        return map(_info, self._lines())

    def read(self, place: int) -> Tuple[CutInfo, torch.Tensor]:
        """A cut and its features, (T, 80) float32, finite.

        UserError: outside of the folders that may be read, missing, damaged, or not what the cut says.
        """
        values = self._line(place)
        return _info(values), read_features(MonoCut.from_dict(values), self.path)

    def audio_files(self) -> Dict[str, Path]:
        """Recording id -> the file that features are computed from, of cuts that have none; not of those in archives.

        UserError: outside of the folders that may be read, or missing.
        """
        heard = [cut["recording"] for cut in self._lines() if "features" not in cut]
        named = {one["id"]: one["sources"][0] for one in heard}
        return {name: named_in(self.path, one["source"]) for name, one in named.items() if one["type"] == "file"}

    def column(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """(N, ...) integers that are expensive to compute: made once, kept with the index.

        ``name`` stands for all that they depend on beside the cuts.
        """
        path = self._folder / f"column-{name}" if self._folder else None
        found = _read_column(path, "<i4") if path else self._kept.get(name)
        if found is None or len(found) % len(self):
            found = np.ascontiguousarray(make(), dtype="<i4").reshape(-1)
            if path is None:
                self._kept[name] = found
            elif os.access(path.parent, os.W_OK):
                atomic.write_bytes(path, hashlib.sha256(found.tobytes()).digest() + found.tobytes())
        return found.reshape(len(self), -1)

    def _line(self, place: int) -> Dict[str, Any]:
        return self._cut(self._block(place // BLOCK)[place % BLOCK])

    def _lines(self) -> Iterator[Dict[str, Any]]:
        for number in range(len(self._columns["block_ends"])):
            yield from map(self._cut, self._block(number))

    def _cut(self, line: bytes) -> Dict[str, Any]:
        """A kept index may have come with the file that it is of: what Lhotse is given is checked again."""
        if self._folder is None:
            return json.loads(line)
        try:
            return cuts.check_kept(parse_json(line), "a cut", self._is_shar)
        except (UserError, ValueError) as error:
            raise self._damaged(f"holds what is no cut ({error!s:.200})") from None

    def _block(self, number: int) -> List[bytes]:
        ends = self._columns["block_ends"]
        packed = self._columns["blocks"][ends[number - 1] if number else 0 : ends[number]]
        try:
            reader = zlib.decompressobj()
            lines = reader.decompress(packed.tobytes(), BLOCK * cuts.LONGEST_LINE)
            if reader.eof:
                return lines.split(b"\n")
        except zlib.error:
            pass
        raise self._damaged("a part of it is not what was written")

    def _damaged(self, problem: str) -> UserError:
        next_step = "remove it: it is made again"
        return UserError(self._folder, f"damaged: {problem}", f"the index of {self.path}", next_step)


def open_source(path: Path) -> Source:
    """The cuts of a file of stage 1, of another Lhotse manifest, or of a folder in Shar format, in their order.

    Raises:
      UserError: missing, empty or damaged; a cut that cannot be used, by its line and name.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(path, "no such file", "a cuts file (.jsonl.gz) of stage 1", "check the path, or run stage 1")
    return _open_source(str(path), json_digest(_stamp(path)))


@functools.lru_cache(maxsize=4)
def _open_source(path: str, stamp: str) -> Source:
    folder = Path(path).parent / f".{Path(os.path.abspath(path)).name}.index"
    if sum(size for _, size, _ in _stamp(Path(path))) <= KEPT_BYTES:
        return _in_memory(Path(path))
    if (found := _opened(Path(path), folder, stamp)) is not None:
        return found
    try:
        with FileLock(str(folder.with_suffix(".lock"))):
            if _opened(Path(path), folder, stamp) is None:
                with atomic.new_dir(folder) as made:
                    _write_index(Path(path), made, stamp)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        line = f"{path}: its folder cannot be written, so its index is held in memory and made again at every start"
        progress_bar.say(line)
        return _in_memory(Path(path))
    found = _opened(Path(path), folder, stamp)
    assert found is not None, folder
    return found


def _stamp(path: Path) -> List[Tuple[str, int, int]]:
    """Name, size and time of the files that cuts come from."""
    files = shar.files(path) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _in_memory(path: Path) -> Source:
    blocks = io.BytesIO()
    facts, columns = _read(path, blocks)
    return Source(path, facts, {**columns, "blocks": np.frombuffer(blocks.getvalue(), "u1")}, None)


def _write_index(path: Path, folder: Path, stamp: str) -> None:
    with open(folder / "blocks", "wb") as blocks:
        facts, columns = _read(path, blocks)
        blocks.flush()
        os.fsync(blocks.fileno())
    for name, column in columns.items():
        atomic.write_bytes(folder / name, hashlib.sha256(column.tobytes()).digest() + column.tobytes())
    facts.update(version=VERSION, stamp=stamp)
    atomic.write_text(folder / "facts.json", json.dumps({**facts, "sha256": json_digest(facts)}) + "\n")


def _opened(path: Path, folder: Path, stamp: str) -> Optional[Source]:
    """What an index holds; None where there is none, or a damaged one, or one of another file."""
    try:
        facts = parse_json((folder / "facts.json").read_bytes())
        whole = facts.pop("sha256") == json_digest(facts) and facts["bytes"] == (folder / "blocks").stat().st_size
        if not whole or (facts["version"], facts["stamp"]) != (VERSION, stamp):
            return None
        columns = {name: _read_column(folder / name, TYPES[name]) for name in CHECKED}
        if any(column is None for column in columns.values()):
            return None
        columns["blocks"] = np.memmap(folder / "blocks", "u1", "r")
        return Source(path, facts, columns, folder)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _read_column(path: Path, kind: str) -> Optional[np.ndarray]:
    """The mapped array behind its SHA-256; None where it is not there or damaged."""
    try:
        with open(path, "rb") as file:
            written, digest = file.read(32), hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return np.memmap(path, kind, "r", offset=32) if written == digest.digest() else None
    except (OSError, ValueError):
        return None


def _read(path: Path, blocks: BinaryIO) -> Tuple[Dict[str, Any], Dict[str, np.ndarray]]:
    """Check every cut; write them to ``blocks``; return facts and the other columns of the index."""
    durations: array.array = array.array("d")
    num_frames, teacher_frames, id_ends, block_ends, ids = (array.array(kind) for kind in "iiqqB")
    teachers: List[Tuple[int, Any]] = []  # place and facts of the first, and of the first other one
    hashes, waiting, digest = array.array("Q"), [], hashlib.sha256()
    manifest = shar.Manifest(path) if path.is_dir() else cuts.Manifest(path)
    for cut in manifest:
        info = _info(cut)
        digest.update(json.dumps([info.id, info.text, info.num_frames, cuts.storage_key(cut)]).encode() + b"\n")
        custom = cut.get("custom") or {}
        teacher_frames.append(frames_of_array(custom[TEACHER]) if TEACHER in custom else -1)
        if (TEACHER in custom or TEACHER_FACTS in custom) and len(teachers) < 2:
            if not teachers or custom.get(TEACHER_FACTS) != teachers[0][1]:
                teachers.append((len(durations), custom.get(TEACHER_FACTS)))
        durations.append(info.duration)
        num_frames.append(info.num_frames)
        ids.frombytes(info.id.encode())
        id_ends.append(len(ids))
        hashes.append(_hash(info.id))
        try:
            waiting.append(json.dumps(cut, ensure_ascii=False, separators=(",", ":")).encode())
        except UnicodeEncodeError:
            where = f"{manifest.where(len(durations) - 1)}: cut '{info.id:.100}'"
            raise UserError(where, "holds half of a character (a lone surrogate)", "UTF-8", cuts.AGAIN) from None
        if len(waiting) == BLOCK:
            blocks.write(zlib.compress(b"\n".join(waiting), 1))
            block_ends.append(blocks.tell())
            waiting = []
    if waiting:
        blocks.write(zlib.compress(b"\n".join(waiting), 1))
        block_ends.append(blocks.tell())
    if not len(durations):
        raise UserError(path, "has no cuts", "a cuts file with at least one cut", cuts.AGAIN)
    named = {"durations": durations, "num_frames": num_frames, "id_ends": id_ends, "ids": ids, "hashes": hashes}
    named.update(teacher_frames=teacher_frames, block_ends=block_ends)
    columns = {name: np.frombuffer(column, TYPES[name]) for name, column in named.items()}
    _refuse_twins(manifest, columns["hashes"], columns["ids"], columns["id_ends"])
    facts: Dict[str, Any] = {
        "digest": digest.hexdigest(),
        **{name: digest.hexdigest() for name, digest in zip(("lines", "content"), manifest.digests)},
        "bytes": blocks.tell(),
    }
    facts.update(teacher_content=manifest.teachers.hexdigest(), teacher_cuts=[place for place, _ in teachers])
    return facts, columns


def _refuse_twins(manifest: Any, hashes: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> None:
    order = np.argsort(hashes, kind="stable")
    for one, other in zip(*(order[np.flatnonzero(np.diff(hashes[order]) == 0) + shift] for shift in (0, 1))):
        names = [bytes(ids[ends[at - 1] if at else 0 : ends[at]]).decode() for at in (one, other)]
        if names[0] == names[1]:
            problem = f"cut '{names[0]:.100}' stands there twice"
            raise UserError(manifest.where(int(other)), problem, "every id once", cuts.AGAIN)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _info(cut: Dict[str, Any]) -> CutInfo:
    supervision, duration = cut["supervisions"][0], cut["duration"]
    text, speaker = supervision.get("text") or "", "_".join((supervision.get("speaker") or "").split())
    return CutInfo(cut["id"], text, speaker, duration, cuts.frames_of(duration))

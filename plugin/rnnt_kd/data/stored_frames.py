"""Arrays that go with cuts: 16-bit numbers for every frame of an utterance, in a file of many utterances.

A cut carries one as a custom field: a Lhotse ``Array``, which mixing, bucketing, splitting and ``SharWriter`` pass on
and ``cut.load_kd()`` reads.  It is no ``TemporalArray``: that counts frames by seconds, and the last one would be lost.
"""

import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Sequence, Union

import numpy as np
from lhotse.array import Array
from lhotse.features.io import FeaturesReader, register_reader

from rnnt_kd.errors import UserError
from rnnt_kd.files import bytes_at, named_in, patiently

STORAGE = "rnnt_kd_frames"
SHAR = "shar"  # of what lies in an archive of a Shar folder: "offset,size,extension" or "archive,offset,size"
# Custom fields of a cut: the teacher's array, how it was made, and its digest (a Shar folder has none).
TEACHER_FIELDS = TEACHER, TEACHER_FACTS, TEACHER_DIGEST = "kd", "kd_facts", "kd_digest"
AGAIN = "make the cache again (./run.sh: stage 4)"
DIGEST = "[0-9a-f]{32}(?:[0-9a-f]{8})?"  # of the bytes of an utterance, and of its labels where these are known
_BYTES, _LABELS = slice(32), slice(32, None)
_KEY = re.compile(f"([0-9]{{1,15}}),([0-9]{{1,9}}),([0-9]{{1,5}}),({DIGEST})")
_SHAR_KEY = re.compile(r"([0-9]{1,15}),([0-9]{1,12}),\.npy")


def digest(content: bytes, labels: Optional[Sequence[int]] = None) -> str:
    """Of the bytes of one utterance, 128 bits in hexadecimal; behind it 32 of the labels that they were made of."""
    of_bytes = hashlib.blake2b(content, digest_size=16).hexdigest()
    if labels is None:
        return of_bytes
    return of_bytes + hashlib.blake2b(repr([*map(int, labels)]).encode(), digest_size=4).hexdigest()


def is_of_labels(array: object, labels: Sequence[int]) -> bool:
    """False: the ``digest`` of ``array`` is of others.  One without, or with zeros in their place, says nothing."""
    written = getattr(array, "digest", "")[_LABELS]
    return not written.strip("0") or written == digest(b"", labels)[_LABELS]


def damaged(path: object, reason: str) -> UserError:
    return UserError(path, f"damaged: {reason}", "a shard as it was written", f"{AGAIN}: it makes this one anew")


class StoredFrames(NamedTuple):
    """Where the frames of an utterance are: a file, the first byte there, the shape, and a digest."""

    path: str
    begin: int
    frames: int
    width: int
    digest: str

    def read(self) -> np.ndarray:
        """(frames, width) int16.  UserError: the file is gone, or its bytes are not those that were written."""
        try:
            content = patiently(lambda: bytes_at(self.path, self.begin, 2 * self.frames * self.width))
        except FileNotFoundError:
            raise damaged(self.path, "it is gone") from None
        if len(content) != 2 * self.frames * self.width or digest(content) != self.digest[_BYTES]:
            raise damaged(self.path, f"the {self.frames} frames at byte {self.begin} are not what was written")
        return np.frombuffer(content, dtype="<i2").reshape(self.frames, self.width)

    def manifest(self) -> Array:
        key = f"{self.begin},{self.frames},{self.width},{self.digest}"
        return Array(STORAGE, os.path.abspath(self.path), key, [self.frames, self.width])


class ArchivedFrames(NamedTuple):
    """The same in an archive of a Shar folder: a member, ``size`` bytes from ``begin`` on, that is a ``.npy`` file."""

    path: str
    begin: int
    size: int
    frames: int
    width: int
    digest: str  # "": not known

    def read(self) -> np.ndarray:
        """(frames, width) int16.  UserError: the archive is gone, or holds something else there."""
        next_step = "write the folder again with lhotse.shar.SharWriter"
        try:
            content = io.BytesIO(patiently(lambda: bytes_at(self.path, self.begin, self.size)))
        except FileNotFoundError:
            raise UserError(self.path, "it is gone", "an archive of the teacher", next_step) from None
        try:
            version = np.lib.format.read_magic(content)
            header, values = np.lib.format.read_array_header_1_0(content), content.read()
        except (ValueError, SyntaxError, TypeError, EOFError) as error:
            problem = f"damaged at byte {self.begin} ({' '.join(str(error).split()):.100})"
            raise UserError(self.path, problem, "an array (.npy)", next_step) from None
        expected = (self.frames, self.width), False, np.dtype("<i2")
        if (version, header, len(values)) != ((1, 0), expected, 2 * self.frames * self.width):
            problem = f"at byte {self.begin}: {header[2]} of the shape {header[0]} in {self.size} bytes"
            raise UserError(self.path, problem, f"int16 of {expected[0]}, as its cut says", next_step)
        if self.digest[_BYTES] not in ("", digest(values)):
            problem = f"damaged: the {self.frames} frames at byte {self.begin} are not what was written"
            raise UserError(self.path, problem, "", next_step)
        return np.frombuffer(values, dtype="<i2").reshape(self.frames, self.width)


Frames = Union[StoredFrames, ArchivedFrames]


@register_reader
class _Reader(FeaturesReader):
    """For ``cut.load_kd()``; import this module before."""

    name = STORAGE

    def __init__(self, path: str):
        self.path = path

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: Optional[int] = None) -> np.ndarray:
        return _place(self.path, key).read()[left_offset_frames:right_offset_frames]


def carried(cut: Any, cuts_path: Path) -> Union[None, Frames, np.ndarray]:
    """The teacher's array that a cut of a file or a Shar folder carries, or where it is; None where it carries none.

    Raises UserError: another storage than ours or a Shar directory's, or a file outside of the folder of ``cuts_path``.
    """
    array = (cut.custom or {}).get(TEACHER)
    if array is None:
        return None
    where = f"{cuts_path}: cut '{cut.id:.100}'"
    if isinstance(array, Array) and array.storage_type in (STORAGE, SHAR):
        named_by = Path(cuts_path) / "cuts" if Path(cuts_path).is_dir() else Path(cuts_path)
        path = str(named_in(named_by, array.storage_path))
        if array.storage_type == STORAGE:
            return _place(path, array.storage_key)
        found = _SHAR_KEY.fullmatch(array.storage_key)
        if found is not None and len(array.shape) == 2:
            frames, width = array.shape
            written = cut.custom.get(TEACHER_DIGEST, "")
            return ArchivedFrames(path, int(found[1]), int(found[2]), frames, width, written)
    if isinstance(array, Array) and array.storage_type == "memory_npy" and isinstance(array.storage_key, bytes):
        try:
            frames = np.load(io.BytesIO(array.storage_key), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(where, f"its {TEACHER} cannot be read ({error})", "the array that was written") from None
        if frames.dtype == np.int16 and frames.ndim == 2 and frames.flags.c_contiguous:
            return frames
    problem = f"its {TEACHER} is not an array of frames in storage {STORAGE} or a Shar directory"
    raise UserError(where, problem, "cuts as python -m rnnt_kd.bin.attach_teacher writes them")


def frames_of_array(array: Mapping[str, Any]) -> int:
    """How many frames a cut's array has, by what a manifest says of it."""
    if array["storage_type"] == SHAR:
        return array["shape"][0]
    return _place(array["storage_path"], array["storage_key"]).frames


def _place(path: str, key: object) -> StoredFrames:
    found = _KEY.fullmatch(str(key))
    if found is None:
        raise UserError(path, f"asked for {str(key)!r:.100}", "BEGIN,FRAMES,WIDTH,DIGEST", "write the cuts again")
    begin, frames, width = map(int, found.groups()[:3])
    return StoredFrames(path, begin, frames, width, found[4])

"""One shard of a teacher cache: a file that says how it was made and whether it is whole.

    <cache dir>/shard-00003.safetensors

An ordinary safetensors file with one tensor: the F frames of its utterances, one after the other.

    kd  (F, 1 + 2 * s_range) int16: the first kept symbol position of each frame, then the bits of its (s_range, 2)
        float16 posteriors, see losses/packed_posteriors.py, 0 on nodes above the last symbol; where ``temperature`` is
        not 1, 2 * s_range more: the same at ``temperature``

So a frame costs 4 * s_range + 2 bytes; an utterance its id, the number of its frames and a digest, which makes each
readable by itself and tells its labels from others (``data/stored_frames.py``).  The metadata has one entry,
"teacher_cache": a JSON object with the ``CacheFacts``, the number of the shard and of all shards, and the utterances;
before it, its SHA-256.  Equal contents give equal bytes.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.data.stored_frames import DIGEST, StoredFrames, digest
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json

FORMAT = 2
_ENTRY, _FRAMES = "teacher_cache", "kd"
MOST_SHARDS = 100_000  # their names have five digits


@dataclass(frozen=True)
class CacheFacts:
    """How a cache was made: all that its contents depend on.

    A student must agree on all but the scales, the limits in seconds and the size of the shards.
    """

    teacher: str  # SHA-256 of the teacher's weights; ``digest_of_all`` of several teachers'
    bpe: str  # SHA-256 of bpe.model
    cuts: str  # data.source.Source.digest
    blank_id: int
    subsampling: int  # feature frames an encoder frame
    prune_range: int  # kept symbol positions a frame, in every frame
    rnnt_type: str
    temperature: float  # of ``tempered``
    lm_only_scale: float  # of the smoothed loss that the ranges come from
    am_only_scale: float
    min_seconds: float  # shorter and longer utterances are not in the cache
    max_seconds: float
    shard_utterances: int  # consecutive cuts a shard

    @property
    def width(self) -> int:
        """Numbers a frame."""
        return 1 + 2 * self.prune_range * (1 if self.temperature == 1.0 else 2)

    def differences(self, expected: Dict[str, Any]) -> List[Tuple[str, str, str]]:
        """(what, value here, expected value) of each field of ``expected`` that differs."""
        return [
            (_NAMES.get(key, key), _short(getattr(self, key)), _short(value))
            for key, value in expected.items()
            if getattr(self, key) != value
        ]


_NAMES = {
    "teacher": "teacher weights",
    "bpe": "BPE model",
    "blank_id": "blank id",
    "prune_range": "prune range",
    "shard_utterances": "shard size",
}


class Entry(NamedTuple):
    """One utterance of T encoder frames."""

    id: str
    starts: Tensor  # (T,) integers
    packed: Tensor  # (T, s_range, 2) float16
    tempered: Optional[Tensor] = None  # as ``packed``
    labels: Optional[Sequence[int]] = None  # that it was made of, to be recognised by


class Damaged(Exception):
    """A shard that is not what was written; the text says what is wrong."""


def digest_of_all(digests: Sequence[str]) -> str:
    """Of the weights of teachers, of which each has a digest; of one, its own."""
    return digests[0] if len(digests) == 1 else _sha256(" ".join(digests))


def shard_path(folder: Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.safetensors"


def shard_indices(folder: Path) -> List[int]:
    """Numbers of the shards in a folder, ascending."""
    stems = [path.stem[len("shard-") :] for path in Path(folder).glob("shard-*.safetensors")]
    return sorted(int(stem) for stem in stems if re.fullmatch("[0-9]{5}", stem))


def write_shard(folder: Path, facts: CacheFacts, index: int, count: int, entries: Sequence[Entry]) -> None:
    """Write shard ``index`` of ``count`` atomically.  UserError: a symbol position that int16 cannot hold."""
    arrays = [_frames(entry, facts) for entry in entries]
    utterances = [
        [entry.id, len(array), digest(array.numpy().tobytes(), entry.labels)] for entry, array in zip(entries, arrays)
    ]
    values = {"format": FORMAT, **asdict(facts), "shard": index, "shards": count, "utterances": utterances}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    frames = torch.cat([torch.zeros(0, facts.width, dtype=torch.int16), *arrays])
    content = safetensors.torch.save({_FRAMES: frames}, {_ENTRY: f"{_sha256(text)} {text}"})
    atomic.write_bytes(shard_path(folder, index), content)


class Shard:
    """A shard opened for reading: what it says of itself; the frames are read as they are asked for.

    Attributes: path, facts (CacheFacts), index, count, num_frames, sha256 (hexadecimal, of all of it), and of each
      utterance ``places``: (id, where its frames are).
    Raises: FileNotFoundError; Damaged: it is not what was written, as far as can be seen without its frames.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            with open(path, "rb") as stream:
                begin = 8 + int.from_bytes(stream.read(8), "little")
                size = os.fstat(stream.fileno()).st_size
            with safetensors.safe_open(str(path), framework="np") as file:
                metadata, names = dict(file.metadata() or {}), list(file.keys())
                kind = [(file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in names]
        except safetensors.SafetensorError as error:
            raise Damaged(f"its header is wrong ({error})") from None
        try:
            self.sha256, _, text = metadata[_ENTRY].partition(" ")
            if self.sha256.startswith("{"):
                raise Damaged(f"its format is 1, and this program writes {FORMAT}")
            values = parse_json(text)
            if values.get("format") != FORMAT:
                raise Damaged(f"its format is {values.get('format')}, and this program writes {FORMAT}")
            if _sha256(text) != self.sha256:
                raise Damaged("its checksum is wrong")
            self.index, self.count = int(values["shard"]), int(values["shards"])
            if not 0 <= self.index < self.count <= MOST_SHARDS:
                raise ValueError(f"shard {self.index} of {self.count}")
            self.facts = CacheFacts(**{field.name: values[field.name] for field in fields(CacheFacts)})
            self.places: List[Tuple[str, StoredFrames]] = []
            self.num_frames = 0
            for name, frames, written in values["utterances"]:
                is_digest = type(written) is str and re.fullmatch(DIGEST, written)
                if type(frames) is not int or frames < 0 or type(name) is not str or not name.encode() or not is_digest:
                    raise ValueError(f"{frames} frames of {name}, {written}")
                at = begin + 2 * self.facts.width * self.num_frames
                self.places.append((name, StoredFrames(str(path), at, frames, self.facts.width, written)))
                self.num_frames += frames
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise Damaged(f"its header is wrong ({type(error).__name__}: {error})") from None
        if (names, kind) != ([_FRAMES], [("I16", [self.num_frames, self.facts.width])]):
            raise Damaged(f"its header is wrong (tensors {names}, {self.num_frames} frames in all)")
        if size != begin + 2 * self.facts.width * self.num_frames:
            raise Damaged(f"it has {size} bytes for {self.num_frames} frames")

    def verify(self) -> None:
        """Read everything once.  Raises Damaged: the bytes are not those that were written."""
        for name, place in self.places:
            try:
                place.read()
            except UserError:
                raise Damaged(f"the frames of {name} are not what was written") from None


def _frames(entry: Entry, facts: CacheFacts) -> Tensor:
    """(T, facts.width) int16."""
    largest = int(entry.starts.max()) if len(entry.starts) else 0
    if largest > np.iinfo(np.int16).max:
        raise UserError(f"utterance {entry.id}", f"{largest} symbols", "at most 32767", "leave it out, or cut it")
    nodes = [entry.packed] if facts.temperature == 1.0 else [entry.packed, entry.tempered]
    bits = [values.contiguous().view(torch.int16).flatten(1) for values in nodes if values is not None]
    array = torch.cat([entry.starts.to(torch.int16).unsqueeze(1), *bits], dim=1)
    assert array.size(1) == facts.width, (array.shape, facts)
    return array


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _short(value: object) -> str:
    """A checksum by its first digits."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)

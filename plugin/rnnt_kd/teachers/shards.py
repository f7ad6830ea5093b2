"""One shard of a teacher cache: a file that says how it was made and whether it is whole.

    <cache dir>/shard-00003.safetensors

An ordinary safetensors file.  Utterances stand one after the other; U of them, F their encoder
frames together:

    packed      (F, s_range, 2) float16, see losses/packed_posteriors.py; 0 on nodes above the last symbol
    tempered    the same at ``temperature``; only where that is not 1
    starts      (F,) int16, first kept symbol position of each frame
    num_frames  (U,) int32
    ids         (n,) uint8, the utterance ids in UTF-8 with a line feed after each

So a frame costs 4 * s_range + 2 bytes, an utterance its id and 5 bytes more.  The metadata has one
entry, "teacher_cache": a JSON object with the ``CacheFacts``, the number of the shard and of all shards,
and the SHA-256 of these and of the tensors' bytes.  Equal contents give equal bytes.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json

FORMAT = 1
_ENTRY = "teacher_cache"
_DTYPES = {"F16": np.float16, "I16": np.int16, "I32": np.int32, "U8": np.uint8}
_LARGEST_HEADER = 1 << 20  # bytes
MOST_SHARDS = 100_000  # their names have five digits


@dataclass(frozen=True)
class CacheFacts:
    """How a cache was made: all that its contents depend on.

    A student must agree on all but the scales, the limits in seconds and the size of the shards.
    """

    teacher: str  # SHA-256 of the teacher's weights
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


class Damaged(Exception):
    """A shard that is not what was written; the text says what is wrong."""


def shard_path(folder: Path, index: int) -> Path:
    return Path(folder) / f"shard-{index:05d}.safetensors"


def shard_indices(folder: Path) -> List[int]:
    """Numbers of the shards in a folder, ascending."""
    stems = [path.stem[len("shard-") :] for path in Path(folder).glob("shard-*.safetensors")]
    return sorted(int(stem) for stem in stems if stem.isdigit() and len(stem) == 5)


def write_shard(folder: Path, facts: CacheFacts, index: int, count: int, entries: Sequence[Entry]) -> None:
    """Write shard ``index`` of ``count`` atomically.

    Raises:
      UserError: an utterance with a symbol position that int16 cannot hold, or an id with a line feed.
    """
    for entry in entries:
        largest = int(entry.starts.max()) if len(entry.starts) else 0
        if largest > np.iinfo(np.int16).max:
            raise UserError(f"utterance {entry.id}", f"{largest} symbols", "at most 32767", "leave it out, or cut it")
        if "\n" in entry.id:
            raise UserError(f"utterance {entry.id!r}", "an id with a line feed", "an id in one line")
    s_range = facts.prune_range
    tensors = {
        "packed": torch.cat([torch.zeros(0, s_range, 2, dtype=torch.float16), *(entry.packed for entry in entries)]),
        "starts": torch.cat([torch.zeros(0, dtype=torch.int16), *(entry.starts.to(torch.int16) for entry in entries)]),
        "num_frames": torch.tensor([len(entry.starts) for entry in entries], dtype=torch.int32),
        "ids": torch.tensor(list("".join(f"{entry.id}\n" for entry in entries).encode()), dtype=torch.uint8),
    }
    if facts.temperature != 1.0:
        tempered = [entry.tempered for entry in entries if entry.tempered is not None]
        assert len(tempered) == len(entries)
        tensors["tempered"] = torch.cat([tensors["packed"][:0], *tempered])
    values = {"format": FORMAT, **asdict(facts), "shard": index, "shards": count}
    digest = _digest(values)
    content = safetensors.torch.save(tensors)
    digest.update(memoryview(content)[8 + int.from_bytes(content[:8], "little") :])
    values["sha256"] = digest.hexdigest()
    content = safetensors.torch.save(tensors, {_ENTRY: json.dumps(values)})
    atomic.write_bytes(shard_path(folder, index), content)


class Shard:
    """A shard opened for reading: the header now, tensors as they are asked for (``map``).

    Attributes: path, facts (CacheFacts), index, count, sha256 (hexadecimal).
    Raises:
      Damaged: the file is not a shard of this format, or is shorter or longer than its header says.
      FileNotFoundError.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        with open(self.path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(_LARGEST_HEADER, size - 8):
                raise Damaged("it has no header")
            header = stream.read(length)
        self._data_offset = 8 + length
        try:
            tensors = parse_json(header)
            values = parse_json(tensors.pop("__metadata__")[_ENTRY])
            if values.get("format") != FORMAT:
                raise Damaged(f"its format is {values.get('format')}, and this program writes {FORMAT}")
            self._values = dict(values)
            self.sha256 = str(values.pop("sha256"))
            self.index, self.count = int(values.pop("shard")), int(values.pop("shards"))
            if not 0 <= self.index < self.count <= MOST_SHARDS:
                raise ValueError(f"shard {self.index} of {self.count}")
            self.facts = CacheFacts(**{field.name: values[field.name] for field in fields(CacheFacts)})
            self._tensors = {name: self._checked(name, spec) for name, spec in tensors.items()}
            self._check_shapes()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            raise Damaged(f"its header is wrong ({type(error).__name__}: {error})") from None
        end = max(end for _, _, _, end in self._tensors.values())
        if size != self._data_offset + end:
            raise Damaged(f"it has {size} bytes, and its header promises {self._data_offset + end}")

    @property
    def num_frames(self) -> int:
        return self._tensors["starts"][1][0]

    def map(self) -> Dict[str, np.ndarray]:
        """The tensors, mapped into memory: reading a part reads that part of the file."""
        mapped = np.memmap(self.path, dtype=np.uint8, mode="r", offset=0)
        offset = self._data_offset
        return {
            name: mapped[offset + begin : offset + end].view(dtype).reshape(shape)
            for name, (dtype, shape, begin, end) in self._tensors.items()
        }

    def ids(self) -> List[str]:
        """Ids of the utterances, in their order.  Raises Damaged: they do not fit the numbers of frames."""
        arrays = self.map()
        names = arrays["ids"].tobytes().decode(errors="replace").split("\n")[:-1]
        frames = arrays["num_frames"].astype(np.int64)
        if len(names) != len(frames) or (frames < 0).any() or frames.sum() != self.num_frames:
            raise Damaged(f"{len(names)} ids for {len(frames)} utterances of {frames.sum()} frames")
        return names

    def verify(self) -> None:
        """Read everything once.  Raises Damaged: the bytes are not those that were written."""
        digest = _digest({key: value for key, value in self._values.items() if key != "sha256"})
        with open(self.path, "rb") as stream:
            stream.seek(self._data_offset)
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != self.sha256:
            raise Damaged("its checksum is wrong")

    @staticmethod
    def _checked(name: str, spec: Dict[str, Any]) -> Tuple[type, Tuple[int, ...], int, int]:
        dtype, shape, (begin, end) = _DTYPES[spec["dtype"]], tuple(spec["shape"]), spec["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
            raise ValueError(f"tensor {name}")
        if end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"tensor {name}")
        return dtype, shape, begin, end

    def _check_shapes(self) -> None:
        frames, utterances = self._tensors["starts"][1][0], self._tensors["num_frames"][1][0]
        nodes = (np.float16, (frames, self.facts.prune_range, 2))
        expected = {
            "packed": nodes,
            "starts": (np.int16, (frames,)),
            "num_frames": (np.int32, (utterances,)),
            "ids": (np.uint8, (self._tensors["ids"][1][0],)),
        }
        if self.facts.temperature != 1.0:
            expected["tempered"] = nodes
        if {name: spec[:2] for name, spec in self._tensors.items()} != expected:
            raise ValueError("its tensors are not those of a shard")


def _digest(values: Dict[str, Any]):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode())


def _short(value: object) -> str:
    """A checksum by its first digits."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)

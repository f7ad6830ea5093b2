"""A cuts file of stage 1, read as data: what it must hold, and where its features lie.

Every value is checked before Lhotse sees it, alone and against its neighbours; nothing that a cuts file names is opened
but the plain files of features, by the door of ``rnnt_kd.files``.
"""

import functools
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Dict, List, Literal, Set, Tuple

import numpy as np
import torch
from lhotse import LilcomChunkyWriter, MonoCut
from lhotse.features.io import LilcomChunkyReader
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from rnnt_kd.data.audio_format import FEATURE_DIM, FRAME_SAMPLES, FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.stored_frames import STORAGE
from rnnt_kd.errors import UserError
from rnnt_kd.files import named_in, parse_json
from rnnt_kd.record import verify

FEATURES_DIGEST = "features_sha256"  # custom field of a cut: of the bytes that its features are stored as
_verified: Set[int] = set()  # features that this process has compared
LONGEST_LINE = 1 << 20  # bytes of one cut
MOST_SECONDS = 1_000_000  # of a recording
TOLERANCE = 0.005  # seconds, of times that are rounded in two ways
AGAIN = "run stage 1 again"

Id = Annotated[str, Field(pattern=r"^\S+$", max_length=10_000)]
Start = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=MOST_SECONDS * SAMPLING_RATE)]
_strict = with_config(ConfigDict(extra="forbid", strict=True))


@_strict
class _Supervision(TypedDict):
    id: Id
    recording_id: Id
    start: Start
    duration: Seconds
    channel: Literal[0]
    text: NotRequired[str]
    speaker: NotRequired[str]


@_strict
class _Features(TypedDict):
    type: Literal["kaldi-fbank"]
    num_frames: Count
    num_features: Literal[FEATURE_DIM]  # type: ignore[valid-type]
    frame_shift: Literal[FRAME_SECONDS]  # type: ignore[valid-type]
    sampling_rate: Literal[SAMPLING_RATE]  # type: ignore[valid-type]
    start: Start
    duration: Seconds
    storage_type: Literal[LilcomChunkyWriter.name]  # type: ignore[valid-type]
    storage_path: Annotated[str, Field(min_length=1)]
    storage_key: Annotated[str, Field(pattern=r"^[0-9]{1,15}(,[0-9]{1,15})+$")]
    recording_id: Id
    channels: Literal[0]


@_strict
class _Recording(TypedDict):
    id: Id
    sources: List[Any]
    sampling_rate: Literal[SAMPLING_RATE]  # type: ignore[valid-type]
    num_samples: Count
    duration: Seconds
    channel_ids: NotRequired[List[int]]
    transforms: NotRequired[List[Dict[str, Any]]]


@_strict
class _Array(TypedDict):
    storage_type: Literal[STORAGE]  # type: ignore[valid-type]
    storage_path: Annotated[str, Field(min_length=1)]
    storage_key: str
    shape: Annotated[List[Count], Field(min_length=2, max_length=2)]


@_strict
class _Custom(TypedDict):
    features_sha256: NotRequired[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    kd: NotRequired[_Array]
    kd_facts: NotRequired[Dict[str, Any]]


@_strict
class _Cut(TypedDict):
    id: Id
    start: Start
    duration: Seconds
    channel: Literal[0]
    supervisions: Annotated[List[_Supervision], Field(min_length=1, max_length=1)]
    features: _Features
    recording: _Recording
    type: Literal["MonoCut"]
    custom: NotRequired[_Custom]


_CUT = TypeAdapter(_Cut)


def load_cuts(cuts_path: Path) -> List[MonoCut]:
    """Every cut of a file, in its order.  UserError: missing, empty or damaged file, a cut that stage 1 does not write.

    A list that is shared: do not change it.
    """
    path = Path(cuts_path)
    if not path.is_file():
        raise UserError(path, "no such file", "a cuts file (.jsonl.gz) of stage 1", "check the path, or run stage 1")
    status = path.stat()
    return _load_cuts(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _load_cuts(path: str, modified: int, size: int) -> List[MonoCut]:
    """Read once, not in every epoch."""
    verify(Path(path), f"features_{Path(path).name.partition('.jsonl')[0]}", f"move {path} away and run stage 1 again")
    cuts: List[MonoCut] = []
    ids: Set[str] = set()
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as stream:
            for line in iter(lambda: stream.readline(LONGEST_LINE + 1), b""):
                where = f"{path}:{len(cuts) + 1}"
                if len(line) > LONGEST_LINE:
                    raise UserError(where, "a line of more than 1 MB", "a cut of stage 1", AGAIN)
                cut = _checked(parse_json(line), where)
                if cut["id"] in ids:
                    raise UserError(where, f"cut '{cut['id']}' stands there twice", "every id once", AGAIN)
                ids.add(cut["id"])
                del cut["recording"]  # what is heard is what wav.scp says, see cut_audio
                cuts.append(MonoCut.from_dict(cut))
    except UserError:
        raise
    except (ValueError, EOFError, OSError, zlib.error) as error:
        problem = f"cannot be read as cuts (line {len(cuts) + 1}: {type(error).__name__}: {error})"
        raise UserError(path, problem, "a cuts file (.jsonl.gz) of stage 1", AGAIN) from None
    if not cuts:
        raise UserError(path, "has no cuts", "a cuts file with at least one cut", AGAIN)
    return cuts


def read_features(cut: MonoCut, cuts_path: Path) -> torch.Tensor:
    """(T, 80) float32, finite.  A cuts file and its ``*_feats`` folder may move together: the folder beside it comes
    first.  UserError: outside of the folder of the cuts, missing, or not what the cut says."""
    features = cut.features
    path = _features_file(str(cuts_path), features.storage_path)
    next_step = f"move {path.parent} away and run stage 1 again"
    try:
        if sum(map(int, features.storage_key.split(","))) > path.stat().st_size:
            raise ValueError(f"the file ends before {features.storage_key}")
        _verify_features(cut, path)
        matrix = LilcomChunkyReader(str(path)).read(features.storage_key)
    except (ValueError, RuntimeError, EOFError, OSError, MemoryError) as error:
        problem = f"features of {cut.id} cannot be read ({error})"
        raise UserError(path, problem, "the file that stage 1 wrote", next_step) from None
    if matrix.shape != (features.num_frames, features.num_features):
        problem = f"features of {cut.id} have shape {matrix.shape}"
        raise UserError(path, problem, f"{(features.num_frames, features.num_features)}, as in {cuts_path}", next_step)
    if not np.isfinite(matrix).all():
        raise UserError(path, f"features of {cut.id} hold NaN or infinity", "the file that stage 1 wrote", next_step)
    return torch.from_numpy(matrix)


def stored_digest(file: BinaryIO, key: str) -> str:
    """SHA-256 of the bytes that one cut's features are in an open ``.lca`` file; ``key`` is their ``storage_key``."""
    start, *sizes = map(int, key.split(","))
    file.seek(start)
    return hashlib.sha256(file.read(min(sum(sizes), os.fstat(file.fileno()).st_size))).hexdigest()


def _verify_features(cut: MonoCut, path: Path) -> None:
    """ValueError: they are not those that the cut holds the digest of.  Compared once a process, not in every epoch."""
    status, written = path.stat(), (cut.custom or {}).get(FEATURES_DIGEST)
    seen = hash((path, status.st_mtime_ns, status.st_size, cut.features.storage_key, written))
    if written is not None and seen not in _verified:
        with open(path, "rb") as file:
            if stored_digest(file, cut.features.storage_key) != written:
                raise ValueError("they are not what was written")
        _verified.add(seen)


@functools.lru_cache(maxsize=10_000)
def _features_file(cuts_path: str, storage_path: str) -> Path:
    beside = Path(Path(storage_path).parent.name, Path(storage_path).name)
    name = beside if os.path.exists(Path(cuts_path).parent / beside) else storage_path
    return named_in(Path(cuts_path), name, next_step=f"{AGAIN}, or name their folder with --data-root")


def _checked(values: Any, where: str) -> Dict[str, Any]:
    """The cut, if it is one that stage 1 may have written; else UserError."""
    named = values.get("id") if isinstance(values, dict) else None
    where = f"{where}: cut '{named:.100}'" if isinstance(named, str) else where
    try:
        cut = _CUT.validate_python(values)
    except ValidationError as failed:
        error = failed.errors(include_url=False)[0]
        place, found = ".".join(map(str, error["loc"])), json.dumps(error["input"], default=str)[:200]
        found = "missing" if error["type"] == "missing" else found
        expected = error["msg"].replace("Input should be ", "").replace("Extra inputs are not permitted", "no such key")
        raise UserError(where, f"{place}: {found}".lstrip(": "), expected, f"as stage 1 writes it; {AGAIN}") from None
    supervision, features, recording = cut["supervisions"][0], cut["features"], cut["recording"]
    frames = (round(cut["duration"] * SAMPLING_RATE) + FRAME_SAMPLES // 2) // FRAME_SAMPLES
    for name, one, other in (
        ("supervisions.0.start", supervision["start"], 0.0),
        ("supervisions.0.duration", supervision["duration"], cut["duration"]),
        ("recording.duration", recording["duration"], recording["num_samples"] / SAMPLING_RATE),
        ("start + duration", max(cut["start"] + cut["duration"], recording["duration"]), recording["duration"]),
    ):
        if abs(one - other) > TOLERANCE:
            raise UserError(where, f"{name}: {one:g}", f"{other:g}, as its other values say", AGAIN)
    exact: List[Tuple[str, object, object]] = [
        ("features.num_frames", features["num_frames"], frames),
        ("features.start", features["start"], cut["start"]),
        ("features.duration", features["duration"], cut["duration"]),
        ("supervisions.0.id", supervision["id"], cut["id"]),
        ("supervisions.0.recording_id", supervision["recording_id"], recording["id"]),
        ("features.recording_id", features["recording_id"], recording["id"]),
    ]
    for name, is_there, should_be in exact:
        if is_there != should_be:
            problem = f"{name}: {str(is_there):.100}"
            raise UserError(where, problem, f"{str(should_be):.100}, as its other values say", AGAIN)
    return dict(cut)

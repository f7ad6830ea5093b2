"""A file of cuts, read as data: what it must hold.

Every value is checked before Lhotse sees it, alone and against its neighbours; what a cuts file names is opened by
``stored_features`` and ``stored_frames``, by the door of ``rnnt_kd.files``.

``NAME.jsonl.gz`` with its record or a folder ``NAME_feats`` beside it is held to what stage 1 writes.  Any other
manifest is Lhotse's (of icefall, say): what is not needed is not looked at.
"""

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Annotated, Any, Dict, Iterator, List, Literal, Mapping, Optional, Tuple, Union

from lhotse import LilcomChunkyWriter
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from rnnt_kd.data.audio_format import FEATURE_DIM, FRAME_SAMPLES, FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.stored_frames import DIGEST, SHAR, STORAGE, TEACHER_FIELDS
from rnnt_kd.errors import UserError
from rnnt_kd.files import allowed_storages, parse_json
from rnnt_kd.record import record_path, verify

LONGEST_LINE = 1 << 20  # bytes of one cut
MOST_SECONDS = 1_000_000  # of a recording
TOLERANCE = 0.005  # seconds, of times that are rounded in two ways
AGAIN = "run stage 1 again"
FEATURES_DIGEST = "features_sha256"  # custom field of a cut: of the bytes that its features are stored as

Id = Annotated[str, Field(pattern=r"^\S+$", max_length=10_000)]
Start = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=MOST_SECONDS * SAMPLING_RATE)]
Rate = Annotated[int, Field(ge=1000, le=1_000_000)]
_strict = with_config(ConfigDict(extra="forbid", strict=True))
_forbid = with_config(ConfigDict(extra="forbid"))


@_strict
class _Supervision(TypedDict):
    id: Id
    recording_id: Id
    start: Start
    duration: Seconds
    channel: Literal[0]
    text: NotRequired[str]
    speaker: NotRequired[str]


class _AnyFeatures(TypedDict):
    num_frames: Count
    num_features: Literal[FEATURE_DIM]  # type: ignore[valid-type]
    frame_shift: Literal[FRAME_SECONDS]  # type: ignore[valid-type]
    sampling_rate: Literal[SAMPLING_RATE]  # type: ignore[valid-type]
    start: Start
    duration: Seconds


@_strict
class _Features(_AnyFeatures):
    type: Literal["kaldi-fbank"]
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
    storage_type: Literal[STORAGE, SHAR]  # type: ignore[valid-type]
    storage_path: Annotated[str, Field(min_length=1)]
    storage_key: str
    shape: Annotated[List[Count], Field(min_length=2, max_length=2)]


class _Custom(TypedDict):
    features_sha256: NotRequired[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    kd: NotRequired[_Array]
    kd_facts: NotRequired[Dict[str, Any]]
    kd_digest: NotRequired[Annotated[str, Field(pattern=f"^{DIGEST}$")]]


@_strict
class _OurCustom(_Custom):
    """All that stage 1 and the teacher's cache add."""


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
    custom: NotRequired[_OurCustom]


_CUT = TypeAdapter(_Cut)

# Of other manifests, what is used; the rest is not looked at.
_lax = with_config(ConfigDict(extra="ignore"))


@_lax
class _LhotseSupervision(TypedDict):
    id: Id
    text: NotRequired[Optional[str]]
    speaker: NotRequired[Optional[str]]


@_lax
class _LhotseFeatures(_AnyFeatures):
    type: NotRequired[Literal["kaldi-fbank", "kaldifeat-fbank", "fbank"]]  # Whisper's, say, are something else
    storage_type: str
    storage_path: str
    storage_key: str


@_forbid
class _Factor(TypedDict):
    factor: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


@_forbid
class _Rates(TypedDict):
    source_sampling_rate: Rate
    target_sampling_rate: Rate


@_lax
class _Changed(TypedDict):
    name: Literal["Speed", "Tempo", "Volume"]
    kwargs: _Factor


@_lax
class _Resampled(TypedDict):
    name: Literal["Resample"]
    kwargs: _Rates


@_lax
class _LhotseSource(TypedDict):
    type: Literal["file", "shar"]
    channels: Annotated[List[int], Field(min_length=1)]
    source: str


@_lax
class _LhotseRecording(TypedDict):
    id: Id
    sources: Annotated[List[_LhotseSource], Field(min_length=1, max_length=1)]
    sampling_rate: Rate
    num_samples: Count
    duration: Seconds
    transforms: NotRequired[Optional[List[Annotated[Union[_Changed, _Resampled], Field(discriminator="name")]]]]


@_lax
class _LhotseCustom(_Custom):
    """Of all that others add, what is ours."""


@_lax
class _LhotseCut(TypedDict):
    type: Literal["MonoCut"]
    id: Id
    start: Start
    duration: Seconds
    channel: Annotated[int, Field(ge=0)]
    supervisions: Annotated[List[_LhotseSupervision], Field(min_length=1, max_length=1)]
    features: NotRequired[Optional[_LhotseFeatures]]
    recording: NotRequired[Optional[_LhotseRecording]]
    custom: NotRequired[Optional[_LhotseCustom]]


_LHOTSE_CUT = TypeAdapter(_LhotseCut)
STORAGES = ("lilcom_chunky", "lilcom_files", "numpy_files", "lilcom_hdf5", "chunked_lilcom_hdf5", "numpy_hdf5", SHAR)


class Manifest:
    """The checked cuts of a file, one after the other, as dictionaries for ``MonoCut.from_dict``.

    UserError: missing or damaged file, a cut that cannot be used.  ``digests``: SHA-256 of the lines read so far, as
    ``without_teacher`` gives them; ``teachers``: of what they carry.
    """

    def __init__(self, path: Path):
        self.path, self.teachers = Path(path), hashlib.sha256()
        self.digests = hashlib.sha256(), hashlib.sha256()
        name = _stem(self.path)
        of_stage_1 = (self.path.parent / f"{name}_feats").is_dir()
        of_stage_1 = of_stage_1 or record_path(self.path.parent, f"features_{name}").exists()
        self._check = _checked if of_stage_1 else check_lhotse

    def where(self, place: int) -> str:
        """File and line of a cut."""
        return f"{self.path}:{place + 1}"

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        verify(self.path, f"features_{_stem(self.path)}", f"move {self.path} away and run stage 1 again")
        for place, line in enumerate(read_lines(self.path)):
            values = parse_line(line, self.where(place))
            for digest, form in zip(self.digests, without_teacher(line, values, self.teachers)):
                digest.update(form)
            yield self._check(values, self.where(place))


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a JSONL file, packed or not; UserError: damaged, or longer than a cut is."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            for line in iter(lambda: stream.readline(LONGEST_LINE + 1), b""):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{path}:{number}", "a line of more than 1 MB", "a cut", AGAIN)
                yield line
    except (ValueError, EOFError, OSError, zlib.error) as error:
        problem = f"cannot be read as cuts (line {number + 1}: {type(error).__name__}: {error})"
        raise UserError(path, problem, "a cuts file (.jsonl.gz) of stage 1 or of Lhotse", AGAIN) from None


def without_teacher(line: bytes, values: Any, teachers: Any) -> Tuple[bytes, bytes]:
    """A cut's line as Lhotse wrote it before a teacher was attached; what that is goes to the digest ``teachers``.

    And once more without the places of its features and audio, where it has the SHA-256 that these are held against.
    """
    custom = values.get("custom") if isinstance(values, dict) else None
    if not isinstance(custom, dict):
        return line, line
    if {*TEACHER_FIELDS} & {*custom}:
        teachers.update(json.dumps([custom.get(key) for key in TEACHER_FIELDS], sort_keys=True).encode() + b"\n")
        rest = {key: value for key, value in custom.items() if key not in TEACHER_FIELDS}
        values = {key: value for key, value in {**values, "custom": rest}.items() if key != "custom" or rest}
        line = _line(values)
    features = values.get("features")
    held = FEATURES_DIGEST in custom and isinstance(features, dict)
    if not held or features.get("storage_type") != LilcomChunkyWriter.name:
        return line, line
    features = {key: value for key, value in features.items() if key != "storage_path"}
    return line, _line({**{key: value for key, value in values.items() if key != "recording"}, "features": features})


def _line(values: Dict[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def parse_line(line: bytes, where: str) -> Any:
    """Its values; UserError where they are not JSON."""
    try:
        return parse_json(line)
    except ValueError as error:
        raise UserError(where, f"cannot be read as a cut ({error})", "JSON", AGAIN) from None


def frames_of(seconds: float) -> int:
    """Frames of 10 ms in so much audio at 16 kHz."""
    return (round(seconds * SAMPLING_RATE) + FRAME_SAMPLES // 2) // FRAME_SAMPLES


def storage_key(cut: Mapping[str, Any]) -> str:
    """Where in its file the features of a cut lie, for a digest; of audio, which file."""
    if "features" not in cut:
        source = cut["recording"]["sources"][0]["source"]
        return f"{Path(source).name}@{cut['start']}"
    features = cut["features"]
    skipped = frames_of(cut["start"] - features["start"])
    return features["storage_key"] + (f"@{skipped}" if skipped else "")


def _checked(values: Any, where: str) -> Dict[str, Any]:
    """The cut, if it is one that stage 1 may have written; else UserError."""
    cut, where = _validated(_CUT, values, where, f"as stage 1 writes it; {AGAIN}")
    supervision, features, recording = cut["supervisions"][0], cut["features"], cut["recording"]
    frames = frames_of(cut["duration"])
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
    del cut["recording"]  # what is heard is what wav.scp says, see cut_audio
    return cut


def check_lhotse(values: Any, where: str, in_shar: bool = False) -> Dict[str, Any]:
    """The cut of another manifest, with what is needed of it; UserError where that is wrong or missing."""
    once = "make it with Lhotse so that it can be used (docs/data.md), or run stage 1"
    supervisions = values.get("supervisions") if isinstance(values, dict) else None
    if isinstance(supervisions, list) and len(supervisions) > 1:
        problem = f"cut '{str(values.get('id')):.100}' has {len(supervisions)} supervisions"
        raise UserError(where, problem, "one", "make a cut of each: CutSet.trim_to_supervisions()")
    cut, where = _validated(_LHOTSE_CUT, values, where, once)
    features, recording = cut.pop("features", None), cut.get("recording")
    if recording and recording.get("transforms", ()) is None:
        del recording["transforms"]
    found = (features or {}).get("storage_type") or ((recording or {}).get("sources") or [{}])[0].get("type")
    if features and found not in (*STORAGES, *allowed_storages()):
        trust = "copy them with CutSet.copy_feats; of cuts that you trust to open pipes and URLs: --allow-storage"
        raise UserError(where, f'features.storage_type: "{found:.100}"', f"one of {', '.join(STORAGES)}", trust)
    if (found == SHAR) != in_shar:
        raise UserError(where, f"its data is of the storage '{found}'", "a Shar folder is given by its name", once)
    supervision = cut["supervisions"][0]
    recording_id = recording["id"] if recording else cut["id"]
    supervision.update(recording_id=recording_id, start=0.0, duration=cut["duration"])
    if features is None and recording is None:
        raise UserError(where, "has neither features nor a recording", "one of them", once)
    if features is not None:
        cut.pop("recording", None)
        cut["features"] = {**features, "type": "kaldi-fbank", "recording_id": recording_id, "channels": cut["channel"]}
    whole = features or {**(recording or {}), "start": 0.0}
    begin, end = whole["start"], whole["start"] + whole["duration"]
    if cut["start"] < begin - TOLERANCE or cut["start"] + cut["duration"] > end + TOLERANCE:
        problem = f"it is from {cut['start']:g} to {cut['start'] + cut['duration']:g} s"
        kind = "features" if features else "recording"
        raise UserError(where, problem, f"a part of its {kind}, {begin:g} to {end:g} s", once)
    return cut


def check_kept(values: Any, where: str, in_shar: bool) -> Dict[str, Any]:
    """A cut as these checks gave it, out of a file that may be from elsewhere: checked again, else UserError."""
    cut = check_lhotse(values, where, in_shar)
    supervision, before = cut["supervisions"][0], values["supervisions"][0]
    supervision["recording_id"] = str(before.get("recording_id"))
    if "channel" in before:
        supervision["channel"] = 0
    if "features" in cut:
        cut["features"]["recording_id"] = supervision["recording_id"]
    return cut


def _validated(form: TypeAdapter, values: Any, where: str, next_step: str) -> Tuple[Dict[str, Any], str]:
    """The values, and ``where`` with the cut's name."""
    named = values.get("id") if isinstance(values, dict) else None
    where = f"{where}: cut '{named:.100}'" if isinstance(named, str) else where
    try:
        return dict(form.validate_python(values)), where
    except ValidationError as failed:
        error = failed.errors(include_url=False)[0]
        place, found = ".".join(map(str, error["loc"])), json.dumps(error["input"], default=str)[:200]
        found = "missing" if error["type"] == "missing" else found
        expected = error["msg"].replace("Input should be ", "").replace("Extra inputs are not permitted", "no such key")
        raise UserError(where, f"{place}: {found}".lstrip(": "), expected, next_step) from None


def _stem(path: Path) -> str:
    return path.name.partition(".jsonl")[0]

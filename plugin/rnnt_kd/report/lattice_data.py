"""One utterance on the teacher's pruned lattice, as three systems see it; and its three files on disk.

    EXPERIMENT_DIR/lattices/<system>/<test set>/<utterance>.npz    arrays
                                                <utterance>.json   names, words, figures; written last
                                                <utterance>.mp3    what was said (.flac where libsndfile has no MP3;
                                                                   nothing where the recording is gone)

    for path in list_lattices(folder):                  # of finished triples, by system, then as they were chosen
        utterance = read_lattice(path)                  # UtteranceLattice
        svg = draw_lattice(utterance)                   # report/plots/lattice.py

No torch here.  Characters of an utterance's id that no file name should have are written as %XX.

T encoder frames, S tokens of the reference, s_range kept nodes a frame.  Node k of frame t stands for "starts[t] + k
tokens are emitted"; nodes above S do not exist, and every array holds NaN there.  All logarithms are natural.

Arrays of the .npz: ``starts`` (T,) int32; ``loudness`` (T,) float32, root mean square of the samples, 0 to 1; and for
each model (teacher, twin, student) ``<model>_log_blank``, ``<model>_log_label``, ``<model>_occupancy`` (T, s_range)
float32 and ``<model>_path`` (N, 2) int32; for twin and student ``<model>_kl`` (T, s_range) float32.

Keys of the .json: ``format`` (1), ``order`` (from 1, as chosen), ``chosen`` ("gained": distillation took errors away,
"lost": it brought some, "changed": other words, as many errors), ``utterance``, ``speaker``, ``test_set``,
``search``, ``duration`` (s), ``frame_seconds``, ``prune_range``, ``rnnt_type``, ``tokens`` (S pieces), ``ref`` (words),
``audio`` (file name, or ""), and ``models``: for each of the three ``name``, ``hyp`` (words), ``errors``, ``loss``
(nats: minus log-probability of the reference over the kept nodes), ``kd`` (nats: the distillation term, weighted by the
teacher's occupancy; 0 for the teacher).
"""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import quote

import numpy as np

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import named_in, parse_json

FORMAT = 1
LARGEST_ARRAYS = 1 << 28  # bytes, of one utterance
MODELS = ("teacher", "twin", "student")
AUDIO_TYPES = {".mp3": "audio/mpeg", ".flac": "audio/flac"}
_DAMAGED = (
    *(ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, MemoryError),
    *(RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error),
)
_NODES = ("log_blank", "log_label", "occupancy")


@dataclass(frozen=True)
class ModelOnLattice:
    """What one model says of the nodes.

    Attributes:
      name:       its system's name.
      hyp:        the words it recognised, when it decoded freely.
      errors:     of ``hyp``, against the reference.
      log_blank:  (T, s_range), log p(blank).
      log_label:  (T, s_range), log p(the reference's next token); -inf at s = S, where no token is left.
                  1 - p(blank) - p(label) belongs to all other tokens.
      occupancy:  (T, s_range), by this model: the probability that a path of the reference passes the node.
      path:       (N, 2), the best path: the nodes (t, s) that it reads, in order; the end (T, S) is not among them.
      kl:         (T, s_range), nats: KL(teacher || this model) over {blank, label, rest}; None for the teacher.
      loss, kd:   nats, of the whole utterance; see the module's docstring.
    """

    name: str
    hyp: Tuple[str, ...]
    errors: int
    log_blank: np.ndarray
    log_label: np.ndarray
    occupancy: np.ndarray
    path: np.ndarray
    kl: Optional[np.ndarray]
    loss: float
    kd: float


@dataclass(frozen=True)
class UtteranceLattice:
    """One utterance; ``models`` has the keys ``MODELS``.

    ``audio`` is a whole file of the MIME type ``audio_type``; both are empty where the recording was gone.
    """

    utterance: str
    speaker: str
    test_set: str
    search: str
    chosen: str  # "gained", "lost" or "changed"
    order: int
    duration: float  # seconds
    frame_seconds: float  # of an encoder frame
    prune_range: int
    rnnt_type: str
    tokens: Tuple[str, ...]
    ref: Tuple[str, ...]
    starts: np.ndarray
    loudness: np.ndarray
    models: Dict[str, ModelOnLattice]
    audio: bytes
    audio_type: str

    @property
    def system(self) -> str:
        """The distilled one."""
        return self.models["student"].name


def lattices_dir(experiment_dir: Path, system: str, test_set: str) -> Path:
    """Where the lattices of a system's utterances lie."""
    return Path(experiment_dir) / "lattices" / system / test_set


def list_lattices(experiment_dir: Path) -> List[Path]:
    """The .json of every picture of an experiment, by system and test set, then in the order they were chosen."""
    found = (Path(experiment_dir) / "lattices").glob("*/*/*.json")
    keyed = [(path.parent, _order(path), path) for path in found if not path.name.startswith(".")]
    return [path for *_, path in sorted(keyed)]


def write_lattice(folder: Path, item: UtteranceLattice) -> List[str]:
    """Write the three files into ``folder``, each atomically, the .json last; returns their names."""
    stem = file_stem(item.utterance)
    suffix = {mime: suffix for suffix, mime in AUDIO_TYPES.items()}.get(item.audio_type, "")
    arrays: Dict[str, Any] = {"starts": item.starts.astype(np.int32), "loudness": item.loudness.astype(np.float32)}
    models: Dict[str, Dict[str, Any]] = {}
    for key, model in item.models.items():
        arrays.update({f"{key}_{name}": getattr(model, name).astype(np.float32) for name in _NODES})
        arrays[f"{key}_path"] = model.path.astype(np.int32)
        if model.kl is not None:
            arrays[f"{key}_kl"] = model.kl.astype(np.float32)
        models[key] = {name: getattr(model, name) for name in ("name", "hyp", "errors", "loss", "kd")}
    texts = {key: value for key, value in vars(item).items() if isinstance(value, (str, int, float, tuple))}
    texts.pop("audio_type")
    content = {"format": FORMAT, **texts, "audio": stem + suffix if suffix else "", "models": models}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    if suffix:
        atomic.write_bytes(folder / f"{stem}{suffix}", item.audio)
    atomic.write_bytes(folder / f"{stem}.npz", stream.getvalue())
    atomic.write_json(folder / f"{stem}.json", content)
    return [f"{stem}{ending}" for ending in (suffix, ".npz", ".json") if ending]


def read_lattice(path: Path) -> UtteranceLattice:
    """``path``: the .json.  UserError: one of the three files is missing, damaged, or they do not belong together."""
    path = Path(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        name = content.pop("audio")
        arrays_path = named_in(path, path.with_suffix(".npz").name, next_step="make the lattices again")
        with zipfile.ZipFile(arrays_path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_ARRAYS:
                raise ValueError(f"more than {LARGEST_ARRAYS} bytes of arrays")
        with np.load(arrays_path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        models = {key: _model(key, content["models"][key], arrays) for key in MODELS}
        content.update(tokens=tuple(content["tokens"]), ref=tuple(content["ref"]), models=models)
        item = UtteranceLattice(
            **content,
            starts=arrays["starts"],
            loudness=arrays["loudness"],
            audio_type=AUDIO_TYPES[Path(name).suffix] if name else "",
            audio=named_in(path, name, next_step="make the lattices again").read_bytes() if name else b"",
        )
        _check(item)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(error.filename, "missing", f"what belongs to {path}", "make the lattices again") from None
    except _DAMAGED as error:
        problem = f"damaged or not of this program ({type(error).__name__}: {error})"
        raise UserError(path, problem, "a lattice of rnnt_kd.bin.dump_lattices", "make it again") from None
    return item


def file_stem(utterance: str) -> str:
    """The id, as a file may be called."""
    stem = quote(utterance, safe=" +,=@()")
    return "%2E" + stem[1:] if stem.startswith(".") else stem


def _model(key: str, values: Dict[str, Any], arrays: Dict[str, np.ndarray]) -> ModelOnLattice:
    facts: Dict[str, Any] = {name: values[name] for name in ("name", "errors", "loss", "kd")}
    facts.update({name: arrays[f"{key}_{name}"] for name in (*_NODES, "path")})
    return ModelOnLattice(**facts, hyp=tuple(values["hyp"]), kl=None if key == "teacher" else arrays[f"{key}_kl"])


def _check(item: UtteranceLattice) -> None:
    """Raises ValueError where the arrays do not fit one another."""
    T, S = len(item.starts), len(item.tokens)
    shape = item.models["teacher"].log_blank.shape
    if T == 0 or len(shape) != 2 or shape[0] != T or item.loudness.shape != (T,):
        raise ValueError(f"nodes of shape {shape} for {T} frames")
    for model in item.models.values():
        nodes = [getattr(model, name) for name in _NODES] + ([] if model.kl is None else [model.kl])
        if any(array.shape != shape for array in nodes):
            raise ValueError(f"arrays of {model.name} differ in shape")
        if model.path.ndim != 2 or model.path.shape[1] != 2 or (model.path < 0).any() or (model.path > [T, S]).any():
            raise ValueError(f"the path of {model.name} leaves the lattice")


def _order(path: Path) -> int:
    """The key by which pictures are sorted; what cannot be read comes first, and ``read_lattice`` says why."""
    try:
        return int(parse_json(path.read_text(encoding="utf-8"))["order"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0

"""What the page shows of an experiment, read from its folder; no torch.

    experiment.json    systems, their roles, baselines and folders (systems/experiment_folder.py)
    summary.json       the table: a row a system, test set and way to decode, all finished seeds together
                       (experiments/table.py), and all folds where there are some (experiments/fold_table.py); all else
                       is of the first fold then
    results.json       single seeds
    sizes.json         bytes and %WER of every file format
    lattices/          pictures' data (report/lattice_data.py)
    <system>/seed<N>/  metrics.jsonl, model.safetensors, decode_*/, of each system's first seed; kd_cache*/ of teachers

Only experiment.json has to be there.  What is missing, half written or damaged is omitted, and a row's ``unfinished``
or ``problems`` say so; a page is made of the rest.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Dict, List, Optional, Tuple

import numpy as np
import safetensors
from pydantic import ConfigDict, Field, TypeAdapter, create_model

from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.systems import experiment_folder
from rnnt_kd.systems.experiment_folder import GREEDY, ExperimentFolder, ListedSystem

Row = Dict[str, Any]

PACKED_BITS = ":bits"  # of systems/packed.py
_UNITS = ("ins", "del", "sub", "ins_mean", "del_mean", "sub_mean", "relative_change", "p_value", "p_value_seeds")
_WORDS = ("wer", "wer_sd", "words", "compared_wer", "baseline_wer", *_UNITS)
CHARACTERS = (
    "cer",
    "cer_sd",
    "ci95",
    "characters",
    "compared_cer",
    "baseline_cer",
    *_UNITS,
)  # of its rows' ``characters``
_MEASURED = ("params", "nonzero_params", "sparsity_measured", "train_seconds", "rtf", "delay_ms")
_OF_FOLDS = ("folds", "declared", "endpoint", "change_ci95", "seen_with_80")
FIGURES = (
    *_WORDS,
    "ci95",
    "too_few",
    "characters",
    "compared_seeds",
    *_MEASURED,
    "delay_ci95_ms",
    *_OF_FOLDS,
)  # of summary.json

_Number = Annotated[float, Field(gt=-1e15, lt=1e15)]
_NumberOrNone = (Optional[_Number], None)  # a pydantic field: type, default
_IntervalOrNone = (Optional[Annotated[List[_Number], Field(min_length=2, max_length=2)]], None)
_Text = (str, ...)


def _object_with(**fields: Any) -> Any:
    """What the page reads of an object; a value of another type is damage."""
    return create_model("Row", __config__=ConfigDict(strict=True), **fields)


_CHARACTERS = _object_with(**{**dict.fromkeys(CHARACTERS, _NumberOrNone), "ci95": _IntervalOrNone})
_SUMMARY = _object_with(
    **dict.fromkeys((*_WORDS, *_MEASURED, "seen_with_80"), _NumberOrNone),
    **dict.fromkeys(("ci95", "delay_ci95_ms", "change_ci95"), _IntervalOrNone),
    folds=(Optional[List[int]], None),
    declared=(Optional[bool], None),
    endpoint=(Optional[str], None),
    **dict.fromkeys(("system", "test_set", "search"), _Text),
    token_bonus=(str, ""),
    seeds=(List[_Number], ...),
    compared_seeds=(Optional[List[_Number]], None),
    unfinished=(Dict[str, str], ...),
    characters=(Optional[_CHARACTERS], None),
    too_few=(Optional[str], None),
)
_RESULTS = _object_with(system=_Text, seed=(_Number, ...), test_set=_Text, wer=_NumberOrNone, cer=_NumberOrNone)
_SIZES = _object_with(system=_Text, format=_Text, bytes=(Annotated[_Number, Field(gt=0)], ...), wer=_NumberOrNone)


@dataclass(frozen=True)
class FinishedSystem:
    """One system of the experiment.

    Attributes:
      twin:     the same without distillation, which it is compared with; "" where there is none.
      kind:     "teacher", "plain" (no distillation), "kd" (from the teacher's cache) or "online".
      rows:     test set -> row of summary.json of the preset's search, with all ``FIGURES``; its ``greedy`` is the
                same of greedy search.
      metrics:  the lines of metrics.jsonl, of the first seed.
      matrices: name of a weight matrix -> (entries that are not zero, entries), of the first seed; empty before
                training ends.
    """

    listed: ListedSystem
    twin: str
    kind: str
    rows: Dict[str, Row]
    metrics: Tuple[Dict[str, Any], ...]
    matrices: Dict[str, Tuple[int, int]]

    @property
    def name(self) -> str:
        return self.listed.name

    @property
    def family(self) -> str:
        """The name that it shares with its twin."""
        return self.twin or self.name

    def measured(self, figure: str) -> Any:
        """A figure that does not depend on the test set; None where there is none."""
        return next(iter(self.rows.values()), {}).get(figure)


@dataclass(frozen=True)
class FinishedExperiment:
    """All of it.  ``seeds``: of results.json; ``problems``: a line on each file that could not be used."""

    folder: Path
    about: ExperimentFolder
    systems: Tuple[FinishedSystem, ...]
    seeds: Tuple[Row, ...]
    sizes: Tuple[Row, ...]
    cache_bytes: int
    cache_shards: int
    problems: Tuple[str, ...]

    def pairs(self) -> List[Tuple[FinishedSystem, FinishedSystem]]:
        """(distilled system, its twin)."""
        by_name = {system.name: system for system in self.systems}
        return [(system, by_name[system.twin]) for system in self.systems if system.twin]

    def families(self) -> Dict[str, List[FinishedSystem]]:
        """Systems beside their twins, by the twin's name."""
        found: Dict[str, List[FinishedSystem]] = {}
        for system in sorted(self.systems, key=lambda system: bool(system.twin)):
            found.setdefault(system.family, []).append(system)
        return found

    def scored_sets(self) -> List[str]:
        """Test sets on which some system has a %WER."""
        names = self.about.test_sets
        return [name for name in names if any(system.rows[name]["wer"] is not None for system in self.systems)]

    def counts_characters(self, test_set: str) -> bool:
        """Whether %CER stands beside %WER."""
        return any(system.rows[test_set]["characters"] for system in self.systems)

    def has_folds(self) -> bool:
        return any(row["folds"] is not None for system in self.systems for row in system.rows.values())

    def has_several_seeds(self) -> bool:
        return any(len(system.listed.seeds) > 1 for system in self.systems)


def read_finished(folder: Path) -> FinishedExperiment:
    """Raises UserError: there is no usable experiment.json."""
    about = experiment_folder.read(folder)
    folder = Path(folder)
    failed = experiment_folder.failed_exports(folder)
    problems = [f"an export of {path.parent.stem}: the last one failed its check, see {path}" for path in failed]
    summary = _objects(folder / "summary.json", _SUMMARY, problems)
    plain = [row for row in summary if not row.get("token_bonus")]
    rows = {(row["system"], row["test_set"], row["search"]): row for row in plain}
    shards = _shards(about)
    return FinishedExperiment(
        folder,
        about,
        tuple(_system(about, listed, rows, problems) for listed in about.systems),
        tuple(_objects(folder / "results.json", _RESULTS, problems)),
        tuple(_objects(folder / "sizes.json", _SIZES, problems)),
        sum(path.stat().st_size for path in shards),
        len(shards),
        tuple(problems),
    )


def inputs(folder: Path) -> Tuple[List[Path], List[Path]]:
    """Files that the page depends on: small ones, and those that are large or many."""
    about, folder = experiment_folder.read(folder), Path(folder)
    small = [folder / f"{name}.json" for name in ("experiment", "summary", "results", "sizes")]
    small += experiment_folder.failed_exports(folder)
    large = sorted(folder.glob("lattices/*/*/[!.]*")) + _shards(about)
    for listed in about.systems:
        small += sorted(listed.first.glob("decode_*/*.json")) + sorted(listed.first.glob("decode_*/recogs-*.txt"))
        large += [listed.first / "metrics.jsonl", _weights(listed.first)]
    return [path for path in small if path.is_file()], [path for path in large if path.is_file()]


def read_metrics(path: Path) -> List[Dict[str, Any]]:
    """Lines of a metrics.jsonl; a last one that is being written, and any other that is none, is omitted."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


def count_nonzero(path: Path) -> Dict[str, Tuple[int, int]]:
    """Weight matrix -> (not zero, all), of a safetensors file, plain or packed.  UserError: it is damaged."""
    counts = {}
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            shapes = parse_json((file.metadata() or {}).get("shapes", "{}"))
            for name in file.keys():
                if name.endswith(PACKED_BITS):
                    plain = name[: -len(PACKED_BITS)]
                    if len(shapes[plain]) == 2:
                        kept = int(np.unpackbits(file.get_tensor(name)).sum())
                        counts[plain] = kept, math.prod(shapes[plain])
                elif len(file.get_slice(name).get_shape()) == 2 and name.endswith("weight"):
                    tensor = file.get_tensor(name)
                    counts[name] = int(np.count_nonzero(tensor)), tensor.size
    except FileNotFoundError:
        return {}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"damaged ({error})", "the weights of a system") from None
    return dict(sorted(counts.items()))


def kind_of(listed: ListedSystem) -> str:
    """How a system was made: see ``FinishedSystem.kind``."""
    if listed.role == "teacher":
        return "teacher"
    return "plain" if listed.kd is None else "online" if listed.kd.get("ranges") == "student" else "kd"


def twin_of(about: ExperimentFolder, listed: ListedSystem) -> str:
    """The baseline of a distilled system, where that is not distilled itself; else ""."""
    plain = {other.name for other in about.systems if other.kd is None}
    return listed.baseline if listed.kd is not None and listed.baseline in plain else ""


def _system(
    about: ExperimentFolder, listed: ListedSystem, rows: Dict[Tuple[str, str, str], Row], problems: List[str]
) -> FinishedSystem:
    matrices: Dict[str, Tuple[int, int]] = {}
    try:
        matrices = count_nonzero(_weights(listed.first))
    except UserError as error:
        problems.append(str(error))
    missing = {"seeds": [], "unfinished": dict.fromkeys(map(str, listed.seeds), "not in summary.json (stage 7)")}
    test_sets = {
        name: {
            **_whole(rows.get((listed.name, name, about.search), missing)),
            "greedy": _whole(rows.get((listed.name, name, GREEDY), {})),
        }
        for name in about.test_sets
    }
    metrics = tuple(read_metrics(listed.first / "metrics.jsonl"))
    return FinishedSystem(listed, twin_of(about, listed), kind_of(listed), test_sets, metrics, matrices)


def _whole(row: Row) -> Row:
    """With all ``FIGURES``; rows of before 0.2 do not say what was compared."""
    characters = row.get("characters")
    usual = {**dict.fromkeys(CHARACTERS), "compared_cer": (characters or {}).get("cer")}
    more = {"characters": {**usual, **characters}} if characters else {}
    return {**dict.fromkeys(FIGURES), "compared_wer": row.get("wer"), **row, **more}


def _weights(system_dir: Path) -> Path:
    return next((path for path in sorted(system_dir.glob("model*.safetensors"))), system_dir / "model.safetensors")


def _shards(about: ExperimentFolder) -> List[Path]:
    """Paths of the teachers' caches."""
    folders = {listed.first for listed in about.systems}
    return sorted(path for folder in folders for path in folder.glob("kd_cache*/*.safetensors"))


def _objects(path: Path, schema: Any, problems: List[str]) -> List[Row]:
    """A list of JSON objects of ``schema``, a pydantic model; [] where there is no such file."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        TypeAdapter(List[schema]).validate_python(values)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):  # pydantic's errors, too
        problems.append(f"{path}: not what rnnt_kd writes; run the stage that makes it")
        return []
    return values

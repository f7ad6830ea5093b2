"""``experiment.json``: what an experiment's folder holds, for all who read it (report, sizes, lattice pictures).

    {"experiment": "default", "corpus": "an4", "preset": "egs/an4/conf/cpu.yaml",
     "search": "modified_beam_search", "beam": 4, "bpe_dir": "../bpe", "train_cuts": "../cuts/train.jsonl.gz",
     "test_sets": {"test": {"data_dir": "/data/an4/test", "cuts": "../cuts/test.jsonl.gz"}},
     "systems": [{"name": "sparse90_kd", "role": "sparse_student", "baseline": "sparse90", "teacher": "teacher",
                  "sparsity": 0.9, "structure": "unstructured", "kd": {"variant": "collapsed", "ranges": "teacher"},
                  "seeds": [1, 2], "folders": {"1": "sparse90_kd/seed1", "2": "sparse90_kd/seed2"}}]}

A path is relative to the experiment's folder where it lies below that folder's parent, else absolute; in the objects
here all are absolute.  All but ``data_dir`` must lie there, or in a --data-root (``rnnt_kd.files``).
"""

import os
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Dict, List, Optional, Tuple

from pydantic import AfterValidator, PlainSerializer, SerializationInfo, TypeAdapter, ValidationError, ValidationInfo
from pydantic.dataclasses import dataclass

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import named_in

FILE = "experiment.json"
GREEDY = "greedy_search"  # what clients run by default: it stands beside the preset's search


def _absolute(path: Path, info: ValidationInfo) -> Path:
    return path if info.context is None else Path(os.path.normpath(info.context / path))


def _as_written(path: Path, info: SerializationInfo) -> str:
    folder: Any = info.context
    return os.path.relpath(path, folder) if folder.parent in path.parents else str(path)


Located = Annotated[Path, AfterValidator(_absolute), PlainSerializer(_as_written)]


@dataclass(frozen=True)
class EvaluationSet:
    """A test set: its Kaldi data directory, and its cuts of stage 1."""

    data_dir: Located
    cuts: Located


@dataclass(frozen=True)
class ListedSystem:
    """A system of the experiment.

    Attributes:
      role:      teacher, sparse_student, small_student or streaming_student.
      baseline:  the system that it is compared with; None: it is compared with none.
      teacher:   the system that it starts or learns from; None: neither.
      sparsity:  of the sparsified weights that is asked for, 0 to 1; ``structure``: None where nothing is sparsified.
      kd:        the options of distillation (``config.KdConfig``); None: not distilled.
      folders:   seed -> the trained system.
    """

    name: str
    role: str
    seeds: Tuple[int, ...]
    folders: Dict[int, Located]
    baseline: Optional[str] = None
    teacher: Optional[str] = None
    sparsity: float = 0.0
    structure: Optional[str] = None
    kd: Optional[Dict[str, Any]] = None

    @property
    def first(self) -> Path:
        """The folder of the first seed."""
        return self.folders[self.seeds[0]]


@dataclass(frozen=True)
class ExperimentFolder:
    """All of ``experiment.json``.

    ``search`` and ``beam``: of the decodings; ``systems``: in the tables' order; ``score_events``: as in the preset.
    """

    experiment: str
    corpus: str
    preset: str
    search: str
    beam: int
    bpe_dir: Located
    train_cuts: Located
    test_sets: Dict[str, EvaluationSet] = field(default_factory=dict)
    systems: Tuple[ListedSystem, ...] = ()
    score_events: bool = True

    def system(self, name: str) -> ListedSystem:
        """Raises UserError: no such system; it lists those that there are."""
        for system in self.systems:
            if system.name == name:
                return system
        known = ", ".join(system.name for system in self.systems)
        raise UserError(f"experiment {self.experiment}", f"it has no system '{name}'", f"of: {known}")

    def test_set(self, name: Optional[str] = None) -> Tuple[str, EvaluationSet]:
        """A test set and its name; None: the first.  Raises UserError: no such test set."""
        name = next(iter(self.test_sets), "") if name is None else name
        if name not in self.test_sets:
            known = ", ".join(self.test_sets) or "none"
            raise UserError(f"experiment {self.experiment}", f"it has no test set '{name}'", f"of: {known}")
        return name, self.test_sets[name]


_JSON = TypeAdapter(ExperimentFolder)


def data_dir(folder: Path, test_set: EvaluationSet) -> Path:
    """The data directory of a test set.  Raises UserError: not there, or neither in EXP_DIR nor in a --data-root."""
    folder = Path(os.path.abspath(folder))
    return named_in(folder / FILE, test_set.data_dir, within=folder.parent)


def failed_exports(folder: Path) -> List[Path]:
    """What the last export of a system found wrong, EXPERIMENT_DIR/export/SYSTEM.failed/check.json."""
    return sorted(Path(folder).glob("export/*.failed/check.json"))


def read(folder: Path) -> ExperimentFolder:
    """Raises UserError: no experiment's folder, a damaged ``experiment.json``, or one that names files elsewhere."""
    folder = Path(os.path.abspath(folder))
    path = folder / FILE
    try:
        found = _JSON.validate_json(path.read_bytes(), context=folder)
    except (FileNotFoundError, NotADirectoryError):
        next_step = "run the experiment's stages 3 to 7 first"
        raise UserError(path, "no such file", "the folder of an experiment, EXP_DIR/EXPERIMENT", next_step) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found_there = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(path, found_there, "what rnnt_kd.bin.experiment writes", "run the experiment again") from None
    for system in found.systems:
        if not system.seeds or set(system.seeds) - set(system.folders):
            raise UserError(path, f"'{system.name}' has no folder for each of its seeds", "one or more seeds")
    for name in [*found.test_sets, *(system.name for system in found.systems)]:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise UserError(path, f"'{name}' is no name", "one without folders", "run the experiment again")
    named = [found.bpe_dir, found.train_cuts, *(one.cuts for one in found.test_sets.values())]
    for place in [*named, *(place for system in found.systems for place in system.folders.values())]:
        named_in(path, place, within=folder.parent, exists=False)
    return found


def write(folder: Path, experiment: ExperimentFolder) -> None:
    """Write ``experiment.json`` atomically; all paths in ``experiment`` are absolute."""
    folder = Path(os.path.abspath(folder))
    content = _JSON.dump_json(experiment, indent=1, context=folder)
    atomic.write_text(folder / FILE, content.decode("utf-8") + "\n")

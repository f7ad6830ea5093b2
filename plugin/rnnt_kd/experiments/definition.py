"""An experiment: a file that names systems and seeds, each system by what it has other than its base.

    # egs/an4/conf/experiments/paper.yaml
    seeds: [1, 2, 3]                  # of every system that names no others
    baseline: sparse90                # what a system is compared with that has no base of its own
    systems:
      teacher: {of: default}          # the system of that name in default.yaml beside this file: trained once, shared
      sparse90: {role: sparse_student, sparsity: 0.9}
      sparse90_uniform: {base: sparse90, kd: {weighting: uniform}}
      sparse90_blocks: {base: sparse90_uniform, kd: null, sparsity: {structure: 16x1}}
      teacher_large: {role: teacher, seeds: [1], model: {encoder_options: {dim: 128}}}
      small_large_kd: {role: small_student, teacher: teacher_large, kd: {weighting: uniform}}

Keys of a system:

    base       another system of the file: everything is taken over but its baseline, key by key
    of         another experiment of the folder, whose system of this name it is
    role       teacher, sparse_student, small_student or streaming_student: the part of the preset
    model, training, sparsity, kd   values over the preset's part, key by key; ``sparsity: 0.9`` is its target;
               ``kd: {}`` distils with the preset's options, ``kd: null`` takes distillation away
    teacher    a system of the file with one seed, or a list of them, whose mean posteriors a student learns from a
               cache and of which it starts from the first; default: the one called teacher
    external   icefall: the teacher that icefall's train.py made; with path (folder of checkpoints), epoch, avg, and
               perhaps iter, use_averaged_model, recipe, tokens and options (docs/icefall.md), and no other key
    seeds      of data order, dropout and new weights
    baseline   what it is compared with; default: the nearest of its bases without kd, else the file's

Keys of the file beside ``systems``, ``seeds`` and ``baseline``:

    folds      cross-validation by speaker (data.folds): every system is trained in each of so many folds; with it,
    endpoint   {system, baseline, sparsity, test_set, search}, and perhaps token_bonus: own: the one question that the
               experiment answers, written down before it runs (experiments.endpoint); all else is exploratory
    tune_token_bonus   true: also decode every system with the token bonus that is best on its development set
    labelled   share of the training words in each fold whose labels are used, by speaker; the other speakers' audio is
               unlabelled: students learn a teacher's words of it.  A system of another experiment has all labels
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from rnnt_kd import choices
from rnnt_kd.config import ROLES
from rnnt_kd.config_io import mapping, merged, nested, parse_override, read_mapping
from rnnt_kd.data.folds import LEAST as LEAST_FOLDS
from rnnt_kd.data.folds import MOST as MOST_FOLDS
from rnnt_kd.errors import UserError
from rnnt_kd.systems.compose import SECTIONS

TEACHER = "teacher"  # the role, and the name of a student's teacher where the file does not say which
EXTERNAL = "external"  # key of a teacher from elsewhere
OF_EXTERNAL = ("seeds", "baseline", "role")  # its keys that are not for training.external
KEYS = (EXTERNAL, "base", "of", "role", *SECTIONS, "teacher", "seeds", "baseline")
OF_FILE = ("seeds", "baseline", "folds", "endpoint", "tune_token_bonus", "labelled")  # keys beside systems
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_RESERVED = ("export", "lattices", "log", "report")  # folders of an experiment
_NO_EXPERIMENT = re.compile(r"bpe|cuts|data|log|folds\d+|fold\d+of\d+")  # folders of EXP_DIR
_FILES = (".json", ".md")  # endings of its files


@dataclass(frozen=True)
class System:
    """One system, all bases resolved.

    Attributes:
      values:     for ``systems.compose.compose``: model, training, sparsity, kd.
      experiment: whose folder it lies in.
      teacher:    name of its teacher; None for a teacher, and where the file has none.
      others:     of further teachers, whose posteriors are in the mean.
      family:     of a sparser member of a family: the system whose training makes it.
    """

    name: str
    role: str
    seeds: Tuple[int, ...]
    experiment: str
    values: Dict[str, Any] = field(default_factory=dict)
    teacher: Optional[str] = None
    others: Tuple[str, ...] = ()
    baseline: Optional[str] = None
    family: Optional[str] = None


@dataclass(frozen=True)
class Experiment:
    """``systems`` in the order of the file; ``name`` is the file's; ``preset``: overrides of the preset itself.

    ``folds``: 0 for none; ``endpoint``: as it stands in the file, see ``experiments.endpoint``.
    """

    name: str
    path: Path
    systems: Dict[str, System]
    preset: Tuple[str, ...] = ()
    folds: int = 0
    endpoint: Optional[Mapping[str, Any]] = None
    tune_token_bonus: bool = False
    labelled: Optional[float] = None


def read_experiment(path: Path, overrides: Sequence[str] = (), sections: Sequence[str] = ()) -> Experiment:
    """Read and resolve a file.

    Args:
      overrides: ``SYSTEM.KEY=VALUE`` (or ``seeds=...``), as if it stood in the file.
      sections:  of a preset; an override that begins with one is handed on in ``Experiment.preset``.
    Raises:
      UserError: not such a file; a key, system, base, baseline, teacher, experiment or override that does not exist;
        a name or seed twice; bases or files in a circle; no system at all.  File and system are named.
    """
    return _read(Path(path), overrides, sections, ())


def _read(path: Path, overrides: Sequence[str], sections: Sequence[str], above: Tuple[Path, ...]) -> Experiment:
    whole = read_mapping(path, "see egs/<corpus>/conf/experiments")
    if _NO_EXPERIMENT.fullmatch(path.stem):
        problem = f"'{path.stem}' is a folder of EXP_DIR for something else"
        raise UserError(path, problem, "another name for an experiment", "rename the file")
    for key in whole:
        choices.check(str(key), (*OF_FILE, "systems"), path)
    entries = mapping(whole.get("systems") or {}, f"{path}: systems")
    if not entries:
        raise UserError(
            path, "names no system", "systems: with at least one", "for example small: {role: small_student}"
        )
    preset = []
    for text in overrides:
        key, value = parse_override(text)
        head, _, rest = key.partition(".")
        if head in entries and rest:
            entries[head] = merged(mapping(entries[head] or {}, f"{path}: system {head}"), nested(rest, value))
        elif key in OF_FILE:
            whole[key] = value
        elif head in sections:
            preset.append(text)
        else:
            choices.check(head, [*entries, *sections, *OF_FILE], f"--set {key}")
            raise UserError(f"--set {key}", "names a whole system", "SYSTEM.KEY=VALUE", f"keys: {', '.join(KEYS)}")
    _check_seeds(whole.setdefault("seeds", [1]), f"{path}: seeds")
    folds, tuned, endpoint = whole.get("folds", 0), whole.get("tune_token_bonus", False), whole.get("endpoint")
    labelled = whole.get("labelled")
    if type(folds) is not int or folds and not LEAST_FOLDS <= folds <= MOST_FOLDS:
        expected = f"a whole number from {LEAST_FOLDS} to {MOST_FOLDS}"
        raise UserError(f"{path}: folds", repr(folds), expected, "for example folds: 5")
    if type(tuned) is not bool:
        raise UserError(f"{path}: tune_token_bonus", repr(tuned), "true or false")
    if endpoint is not None:
        mapping(endpoint, f"{path}: endpoint")
    if labelled is not None and not (type(labelled) is float and 0 < labelled < 1):
        raise UserError(f"{path}: labelled", repr(labelled), "a share between 0 and 1", "for example labelled: 0.2")
    for name in ("endpoint", "tune_token_bonus", "labelled"):
        if whole.get(name) and not folds:
            raise UserError(f"{path}: {name}", "given without folds", "both, for example folds: 5", "or omit it")
    systems = _Resolver(path, whole, entries, above).all()
    return Experiment(path.stem, path, systems, tuple(preset), folds, endpoint, tuned, labelled)


class _Resolver:
    def __init__(self, path: Path, whole: Mapping[Any, Any], entries: Mapping[Any, Any], above: Tuple[Path, ...]):
        self.path, self.whole, self.above = path, whole, (*above, path)
        self.given: Dict[str, Dict[str, Any]] = {}  # only the keys that stand in the file
        self.others: Dict[str, Experiment] = {}
        self.shared: Dict[str, System] = {}
        self.theirs: Dict[str, Mapping[str, System]] = {}  # of a shared one, all systems of the file it is taken from
        for name, entry in entries.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED or name.endswith(_FILES):
                problem = f"'{name}' is no name for a system"
                none = ", ".join((*_RESERVED, *(f"*{ending}" for ending in _FILES)))
                raise UserError(path, problem, f"at most 100 letters, digits and . _ + -, and none of: {none}")
            same = next((other for other in self.given if other.lower() == name.lower()), None)
            if same is not None:
                problem = f"systems {same} and {name} would lie in one folder where names have no case"
                raise UserError(path, problem, "names that differ in more than case")
            self.given[name] = self._checked(name, mapping({} if entry is None else entry, self._where(name)))

    def all(self) -> Dict[str, System]:
        if self.whole.get("baseline") is not None:
            self._known(self.whole["baseline"], f"{self.path}: baseline")
        systems = {name: self._system(name) for name in self.given}
        for system in systems.values():
            self._check_teacher(system, systems)
        return systems

    def _checked(self, name: str, entry: Dict[Any, Any]) -> Dict[str, Any]:
        """The entry; one that is ``of`` another experiment with what stands there."""
        where = self._where(name)
        for key, value in entry.items():
            if EXTERNAL not in entry:
                choices.check(str(key), KEYS, where)
            if key in SECTIONS and not (value is None and key == "kd"):
                if key == "sparsity" and not isinstance(value, dict):
                    entry[key] = {"target": value}
                else:
                    mapping(value, f"{where}: {key}")
        if "seeds" in entry:
            _check_seeds(entry["seeds"], f"{where}: seeds")
        if EXTERNAL in entry:
            options = {key: value for key, value in entry.items() if key not in OF_EXTERNAL}
            rest = {key: entry[key] for key in OF_EXTERNAL if key in entry}
            model = {"encoder": EXTERNAL, "encoder_options": {EXTERNAL: options}}
            return {"seeds": [1], **rest, "role": TEACHER, "model": model}
        if "of" not in entry:
            return entry
        others = sorted(set(entry) - {"of", "seeds", "baseline"})
        if others:
            problem = f"{', '.join(others)} given beside of: the system is made by experiment {entry['of']}"
            raise UserError(where, problem, "only of, seeds, baseline", "set it there, or give the system a base")
        system = self._shared(name, str(entry["of"]), where)
        self.shared[name] = system
        teachers = [system.teacher, *system.others] if system.teacher else None
        return {"role": system.role, "teacher": teachers, **system.values, **entry}

    def _shared(self, name: str, experiment: str, where: str) -> System:
        choices.check(experiment, sorted(file.stem for file in self.path.parent.glob("*.yaml")), f"{where}: of")
        path = self.path.with_name(f"{experiment}.yaml")
        if path in self.above:
            files = " -> ".join(file.name for file in (*self.above, path))
            raise UserError(f"{where}: of", f"experiments in a circle: {files}", "a first one that makes the system")
        if experiment not in self.others:
            self.others[experiment] = _read(path, (), (), self.above)
        if self.others[experiment].labelled is not None:
            raise UserError(f"{where}: of", f"{path.name} has labels of a part", "an experiment with all labels")
        known = self.others[experiment].systems
        self.theirs[name] = known
        return known[choices.check(name, list(known), f"{where}: of {experiment}")]

    def _system(self, name: str) -> System:
        where, chain = self._where(name), self._chain(name)
        entry: Dict[str, Any] = {}
        for ancestor in reversed(chain):
            entry = merged(entry, {key: value for key, value in self.given[ancestor].items() if key != "of"})
        role = entry.get("role")
        if role is None:
            raise UserError(where, "has no role", f"one of: {', '.join(ROLES)}")
        choices.check(role, ROLES, f"{where}: role")
        shared = self.shared.get(name)
        teachers = [] if role == TEACHER else self._teachers(entry.get("teacher"), where)
        return System(
            name=name,
            role=role,
            seeds=tuple(entry.get("seeds") or (shared.seeds if shared else self.whole["seeds"])),
            experiment=shared.experiment if shared else self.path.stem,
            values={key: entry[key] for key in SECTIONS if key in entry},
            teacher=teachers[0] if teachers else None,
            others=tuple(teachers[1:]),
            baseline=self._baseline(name, chain, role),
        )

    def _chain(self, name: str) -> List[str]:
        """The system, its base, the base of that, ..."""
        chain = [name]
        while (base := self.given[chain[-1]].get("base")) is not None:
            self._known(base, f"{self._where(chain[-1])}: base")
            if base in chain:
                circle = " -> ".join([*chain[chain.index(base) :], base])
                raise UserError(self._where(name), f"bases in a circle: {circle}", "a first system without base")
            chain.append(base)
        return chain

    def _teachers(self, given: Any, where: str) -> List[str]:
        if given is None:
            return [TEACHER] if TEACHER in self.given else []
        names = given if isinstance(given, list) else [given]
        if not names or len(set(map(str, names))) < len(names):
            raise UserError(f"{where}: teacher", str(given), "a system, or a list of some, each once")
        return [self._known(name, f"{where}: teacher") for name in names]

    def _baseline(self, name: str, chain: List[str], role: str) -> Optional[str]:
        where = f"{self._where(name)}: baseline"
        if "baseline" in self.given[name]:
            given = self.given[name]["baseline"]
            if given == name:
                raise UserError(where, "is the system itself", "another system of the file", "or null for none")
            return given if given is None else self._known(given, where)
        shared = self.shared.get(name)
        if shared and shared.baseline in self.given:
            return shared.baseline
        for place, ancestor in enumerate(chain[1:], 1):
            decided = next((self.given[own]["kd"] for own in chain[place:] if "kd" in self.given[own]), None)
            if decided is None:
                return ancestor
        whole = self.whole.get("baseline")
        return None if role == TEACHER or whole == name else whole

    def _check_teacher(self, system: System, systems: Mapping[str, System]) -> None:
        where = f"{self._where(system.name)}: teacher"
        if system.role == TEACHER and self.given[system.name].get("teacher"):
            raise UserError(where, "given for a teacher", "only students with one", "omit it")
        for name in (system.teacher, *system.others):
            if name is not None:
                self._check_one_teacher(system, systems[name], where)

    def _check_one_teacher(self, system: System, teacher: System, where: str) -> None:
        options = (teacher.values.get("model") or {}).get("encoder_options")
        if isinstance(options, Mapping) and EXTERNAL in options and system.role == "sparse_student":
            problem = f"{teacher.name} is {EXTERNAL}, and a sparse student starts from its teacher's weights"
            raise UserError(
                where, problem, "a small or streaming student", "or make it sparse where its teacher is from"
            )
        if teacher.role != TEACHER:
            raise UserError(where, f"{teacher.name} is a {teacher.role}", "a system with role: teacher")
        if len(teacher.seeds) != 1:
            problem = f"{teacher.name} has {len(teacher.seeds)} seeds"
            raise UserError(where, problem, "one: all its students learn from the same", "for example seeds: [1]")
        shared, theirs = self.shared.get(system.name), self.theirs.get(system.name, {}).get(teacher.name)
        if shared and (theirs is None or teacher != replace(theirs, baseline=teacher.baseline)):
            problem = f"{teacher.name} is not that of experiment {shared.experiment}, which makes {system.name}"
            raise UserError(where, problem, f"{teacher.name}: {{of: {shared.experiment}}}")

    def _known(self, name: str, where: str) -> str:
        return choices.check(name, list(self.given), where)

    def _where(self, name: str) -> str:
        return f"{self.path}: system {name}"


def _check_seeds(seeds: Any, where: str) -> None:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(where, str(seeds), "a list of whole numbers, at least 0", "for example [1, 2, 3]")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise UserError(where, f"{twice[0]} stands there twice", "every seed once: a system counts once for each")

"""An experiment is a file: systems, each told by what it has other than its base.

    # egs/an4/conf/experiments/paper.yaml
    seeds: [1, 2, 3]                  # of every system that names no others
    baseline: sparse90                # what a system is compared with that has no base of its own
    systems:
      sparse90: {role: sparse_student, sparsity: 0.9}
      sparse90_uniform: {base: sparse90, kd: {weighting: uniform}}
      sparse90_blocks: {base: sparse90_uniform, kd: null, structure: 16x1}
      teacher_large: {role: teacher, seeds: [1], set: {teacher.model.encoder_options.dim: 128}}
      small_large_kd: {role: small_student, teacher: teacher_large, kd: {weighting: uniform}}

Keys of a system:

    base       another system of the file: all of it is taken over, but its baseline; ``kd`` and ``set`` key by key
    role       teacher, sparse_student, small_student or streaming_student: the part of the preset
    sparsity, structure   of the zeros
    kd         options of config.KdConfig, the others as in the preset; {}: all as in the preset; null: none
    teacher    a system of the file, instead of the preset's teacher
    set        values of the preset, by dotted key
    seeds      of data order, dropout and new weights
    baseline   what it is compared with; left out: the nearest of its bases without kd, else the file's
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, NoReturn, Optional, Tuple

from omegaconf import OmegaConf

from rnnt_kd.config import KdConfig
from rnnt_kd.config_io import checked, read_mapping
from rnnt_kd.errors import UserError
from rnnt_kd.training.compose import ROLES

TEACHER = "teacher"  # the preset's, in every table
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED = (TEACHER, "kd_caches")


@dataclass(frozen=True)
class System:
    """One system, all bases resolved.  ``kd`` holds the options that the file gives; None: no distillation."""

    name: str
    role: str
    seeds: Tuple[int, ...]
    sparsity: float = 0.0
    structure: Optional[str] = None
    kd: Optional[Dict[str, Any]] = None
    teacher: str = TEACHER
    overrides: Dict[str, Any] = field(default_factory=dict)
    base: Optional[str] = None
    baseline: Optional[str] = None


@dataclass(frozen=True)
class Experiment:
    """``systems`` in the order of the file; ``name`` is the file's."""

    name: str
    path: Path
    systems: Dict[str, System]


def read_experiment(path: Path) -> Experiment:
    """Read and resolve a file.

    Raises:
      UserError: not such a file; a key, system, base, baseline, teacher or option that does not exist; a name or
        seed twice; bases in a circle; no system at all.  File and system are named.
    """
    path = Path(path)
    values = OmegaConf.to_container(read_mapping(path, "see egs/<corpus>/conf/experiments"))
    entries = _mapping(values.get("systems") or {}, f"{path}: systems")  # type: ignore[union-attr]
    whole = checked(_File, {**values, "systems": {}}, path)  # type: ignore[dict-item]
    if not entries:
        example = "for example small: {role: small_student}"
        raise UserError(path, "names no system", "systems: with at least one", example)
    _check_seeds(whole.seeds, f"{path}: seeds")
    return Experiment(path.stem, path, _Resolver(path, whole, entries).all())


def close_match(name: str, known) -> str:
    """A next step for a mistyped name, empty where nothing is like it."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


@dataclass
class _Entry:
    base: Optional[str] = None
    role: Optional[str] = None
    sparsity: Optional[float] = None
    structure: Optional[str] = None
    kd: Optional[Dict[str, Any]] = None
    teacher: Optional[str] = None
    set: Optional[Dict[str, Any]] = None
    seeds: Optional[List[int]] = None
    baseline: Optional[str] = None


@dataclass
class _File:
    seeds: List[int] = field(default_factory=lambda: [1])
    baseline: Optional[str] = None
    systems: Dict[str, Any] = field(default_factory=dict)


class _Resolver:
    def __init__(self, path: Path, whole: _File, entries: Mapping[str, Any]):
        self.path, self.whole = path, whole
        self.given: Dict[str, Dict[str, Any]] = {}  # only the keys that stand in the file
        for name, entry in entries.items():
            where = self._where(name)
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
                found = f"'{name}' is no name for a system"
                raise UserError(path, found, f"letters, digits and . _ + -, and not {' or '.join(_RESERVED)}")
            entry = _mapping({} if entry is None else entry, where)
            values = vars(checked(_Entry, entry, where))
            self.given[name] = {key: values[key] for key in entry}

    def all(self) -> Dict[str, System]:
        if self.whole.baseline is not None:
            self._known(self.whole.baseline, f"{self.path}: baseline")
        systems = {name: self._system(name) for name in self.given}
        for system in systems.values():
            self._check_teacher(system, systems)
        return systems

    def _system(self, name: str) -> System:
        where = self._where(name)
        chain = self._chain(name)
        merged: Dict[str, Any] = {}
        for ancestor in reversed(chain):
            for key, value in self.given[ancestor].items():
                if key in ("kd", "set") and value is not None:
                    value = {**(merged.get(key) or {}), **value}
                merged[key] = value
        role = merged.get("role")
        if role not in ROLES:
            found = f"role '{role}'" if role else "has no role"
            raise UserError(where, found, f"one of: {', '.join(ROLES)}", close_match(role or "", ROLES))
        kd = merged.get("kd")
        if kd is not None:
            right = vars(checked(KdConfig, kd, f"{where}: kd"))
            kd = {key: right[key] for key in kd}
        seeds = merged.get("seeds") or self.whole.seeds
        if "seeds" in merged and merged["seeds"] is not None:
            _check_seeds(merged["seeds"], f"{where}: seeds")
        return System(
            name=name,
            role=role,
            seeds=tuple(seeds),
            sparsity=merged.get("sparsity") or 0.0,
            structure=merged.get("structure"),
            kd=kd,
            teacher=merged.get("teacher") or TEACHER,
            overrides=merged.get("set") or {},
            base=self.given[name].get("base"),
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

    def _baseline(self, name: str, chain: List[str], role: str) -> Optional[str]:
        where = f"{self._where(name)}: baseline"
        if "baseline" in self.given[name]:
            given = self.given[name]["baseline"]
            if given == name:
                raise UserError(where, "is the system itself", "another system of the file", "or null for none")
            if given is not None:
                self._known(given, where)
            return given
        for place, ancestor in enumerate(chain[1:], 1):
            decided = next((self.given[own]["kd"] for own in chain[place:] if "kd" in self.given[own]), None)
            if decided is None:
                return ancestor
        return None if role == TEACHER or self.whole.baseline == name else self.whole.baseline

    def _check_teacher(self, system: System, systems: Mapping[str, System]) -> None:
        if system.teacher == TEACHER:
            return
        where = f"{self._where(system.name)}: teacher"
        teacher = systems[self._known(system.teacher, where)]
        if system.role == TEACHER:
            raise UserError(where, "given for a teacher", "only students with one", "take it away")
        if teacher.role != TEACHER:
            raise UserError(where, f"{teacher.name} is a {teacher.role}", "a system with role: teacher")
        if len(teacher.seeds) != 1:
            found = f"{teacher.name} has {len(teacher.seeds)} seeds"
            raise UserError(where, found, "one: all its students learn from the same", "for example seeds: [1]")

    def _known(self, name: str, where: str) -> str:
        if name not in self.given:
            _unknown(where, name, self.given)
        return name

    def _where(self, name: str) -> str:
        return f"{self.path}: system {name}"


def _unknown(where: str, name: str, known) -> NoReturn:
    raise UserError(where, f"there is no system '{name}'", f"one of: {', '.join(known)}", close_match(name, known))


def _check_seeds(seeds: List[int], where: str) -> None:
    if not seeds:
        raise UserError(where, "empty", "at least one whole number")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise UserError(where, f"{twice[0]} stands there twice", "every seed once: a system counts once for each")
    if min(seeds) < 0:
        raise UserError(where, str(min(seeds)), "whole numbers, at least 0")


def _mapping(value: Any, where: str) -> Dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(where, f"'{value}' is no mapping", "key: value pairs")
    return value

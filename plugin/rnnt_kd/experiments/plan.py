"""What an experiment's systems are on disk, and the commands that make them.

EXP_DIR/experiments/<experiment>/<system>/seed<N>/   a system as bin.train makes it, decodings in it
EXP_DIR/teacher                                      the preset's teacher; all experiments share it
EXP_DIR/kd_cache                                     its cache (stage 4), for the preset's lattice and temperature
EXP_DIR/experiments/<experiment>/kd_caches/<what>/   other caches: temperature2, teacher_large, range7 ...
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from rnnt_kd.config import RecipeConfig, SystemConfig
from rnnt_kd.config_io import load_recipe
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.definition import TEACHER, Experiment, System
from rnnt_kd.systems.valid_config import check_config
from rnnt_kd.training.compose import ROLES, compose

OWN_OPTIONS = ("ranges", "variant", "weighting", "scale", "shift")  # of kd: bin.train has --kd-<name>
Job = Tuple[str, int]  # system, seed


@dataclass(frozen=True)
class Places:
    """Where inputs are and results go, and how to decode: the same for every system.

    Attributes:
      preset:    file that the definitions are relative to.
      exp_dir:   with bpe/, cuts/, teacher/.
      dev_set:   name of the development set.
      test_sets: name -> Kaldi data directory.
      teacher_seed: of the preset's teacher, for the table.
      machine:   options of training that do not change what a system is: --device ...; decoding_machine: of decoding
    """

    preset: Path
    exp_dir: Path
    dev_set: str
    test_sets: Mapping[str, Path]
    teacher_seed: int = 1
    machine: Tuple[str, ...] = ()
    decoding_machine: Tuple[str, ...] = ()

    @property
    def bpe_dir(self) -> Path:
        return self.exp_dir / "bpe"

    @property
    def train_cuts(self) -> Path:
        return self.cuts("train")

    @property
    def dev_cuts(self) -> Path:
        return self.cuts(self.dev_set)

    def cuts(self, name: str) -> Path:
        return self.exp_dir / "cuts" / f"{name}.jsonl.gz"


@dataclass(frozen=True)
class Cache:
    """One teacher cache: where, of which teacher, and the preset's values that it is made with."""

    folder: Path
    teacher_dir: Path
    overrides: Tuple[str, ...]


class Plan:
    """Raises UserError where a system cannot be: a wrong key of ``set``, a value out of range, sparsity of a dense
    role, a cache where the variant compares whole logits.  Nothing on the disk but file and preset is looked at."""

    def __init__(self, experiment: Experiment, places: Places):
        self.experiment, self.places = experiment, places
        self.recipe = load_recipe(places.preset)
        self.dir = places.exp_dir / "experiments" / experiment.name
        teacher = System(name=TEACHER, role=TEACHER, seeds=(places.teacher_seed,))
        self.systems = {TEACHER: teacher, **experiment.systems}  # of the table
        self._configs: Dict[str, SystemConfig] = {}
        for system in experiment.systems.values():
            self._check(system)

    @property
    def search(self) -> str:
        return self.recipe.decoding.search

    def jobs(self) -> Iterator[Job]:
        """Every system and seed of the file, teachers of other systems first."""
        systems = self.experiment.systems
        teachers = {system.teacher for system in systems.values()}
        for name in sorted(systems, key=lambda name: name not in teachers):  # stable: else in the file's order
            yield from self.jobs_of(name)

    def jobs_of(self, name: str) -> List[Job]:
        return [(name, seed) for seed in self.systems[name].seeds]

    def system_dir(self, job: Job) -> Path:
        name, seed = job
        return self.places.exp_dir / TEACHER if name == TEACHER else self.dir / name / f"seed{seed}"

    def decode_dir(self, job: Job, test_set: str) -> Path:
        return self.system_dir(job) / f"decode_{test_set}_{self.search}"

    def teacher_of(self, job: Job) -> Optional[Job]:
        """The job that makes the teacher; None for the preset's, and where none is needed."""
        name = self.systems[job[0]].teacher
        return None if name == TEACHER or not self._needs_teacher(job) else (name, self._teacher_seed(name))

    def teacher_dir(self, job: Job) -> Optional[Path]:
        """None where the system needs no teacher."""
        if not self._needs_teacher(job):
            return None
        own = self.teacher_of(job)
        return self.places.exp_dir / TEACHER if own is None else self.system_dir(own)

    def config(self, job: Job) -> SystemConfig:
        """As bin.train composes it; what tokenizer and teacher decide is not filled in."""
        name, seed = job
        if name not in self._configs:  # reading a preset takes a third of a second
            self._configs[name] = self._composed(self.systems[name])
        return dataclasses.replace(self._configs[name], seed=seed)

    def cache(self, job: Job) -> Optional[Cache]:
        """What the system distils from; None where it distils from no cache."""
        config = self.config(job)
        if config.kd is None or config.kd.ranges != "teacher":
            return None
        preset = self.recipe.sparse_student.training
        students = [part for part in ROLES[1:] if getattr(self.recipe, part) is not None]
        teacher = self.systems[job[0]].teacher
        names, overrides = ([] if teacher == TEACHER else [teacher]), []
        for name, key in (("range", "prune_range"), ("", "rnnt_type")):
            value = getattr(config.training, key)
            if value != getattr(preset, key):
                names.append(f"{name}{value}")
                overrides += [f"{part}.training.{key}={value}" for part in students]  # all must agree
        if config.kd.temperature != self.recipe.kd.temperature:
            names.append(f"temperature{config.kd.temperature:g}")
            overrides.append(f"kd.temperature={config.kd.temperature:g}")
        folder = self.dir / "kd_caches" / "_".join(names) if names else self.places.exp_dir / "kd_cache"
        teacher_dir = self.teacher_dir(job)
        assert teacher_dir is not None, job
        return Cache(folder, teacher_dir, tuple(overrides))

    def train_command(self, job: Job) -> List[str]:
        system, places, cache = self.systems[job[0]], self.places, self.cache(job)
        command = _module("train", "--config", places.preset, *_settings(self._overrides(system)))
        command += ["--train-cuts", places.train_cuts, "--dev-cuts", places.dev_cuts, "--bpe-dir", places.bpe_dir]
        command += ["--seed", job[1], "--role", system.role, "--name", system.name, "--exp-dir", self.system_dir(job)]
        if system.sparsity:
            command += ["--sparsity", system.sparsity]
        if system.structure is not None:
            command += ["--structure", system.structure]
        if self.teacher_dir(job) is not None:
            command += ["--teacher-dir", self.teacher_dir(job)]
        if system.kd is not None:
            command.append("--kd")
            for key in OWN_OPTIONS:
                command += [f"--kd-{key}", system.kd[key]] if key in system.kd else []
        command += ["--kd-cache", cache.folder] if cache else []
        return [str(word) for word in [*command, *self.places.machine]]

    def cache_command(self, cache: Cache) -> List[str]:
        command = _module("cache_teacher", "--config", self.places.preset, *_settings(cache.overrides))
        command += ["--teacher-dir", cache.teacher_dir, "--cuts", self.places.train_cuts]
        command += ["--bpe-dir", self.places.bpe_dir, "--cache-dir", cache.folder]
        return [str(word) for word in [*command, *self.places.machine]]

    def decode_command(self, job: Job, test_set: str) -> List[str]:
        decoding, places = self.recipe.decoding, self.places
        command = _module("decode", "--system-dir", self.system_dir(job), "--cuts", places.cuts(test_set))
        command += ["--bpe-dir", places.bpe_dir, "--test-set", test_set, "--search", decoding.search]
        command += ["--beam", decoding.beam, "--batch-seconds", decoding.batch_seconds]
        command += ["--out-dir", self.decode_dir(job, test_set)]
        return [str(word) for word in [*command, *places.decoding_machine]]

    def score_arguments(self, job: Job, test_set: str, baseline: Optional[Job]) -> List[str]:
        """Of bin.score."""
        words: List[Any] = ["--decode-dir", self.decode_dir(job, test_set), "--test-set", test_set]
        words += ["--data-dir", self.places.test_sets[test_set]]
        words += ["--baseline-decode-dir", self.decode_dir(baseline, test_set)] if baseline else []
        return [str(word) for word in words]

    def _composed(self, system: System) -> SystemConfig:
        own = {key: value for key, value in (system.kd or {}).items() if key in OWN_OPTIONS}
        return compose(
            self._recipe(system),
            role=system.role,
            name=system.name,
            seed=system.seeds[0],
            sparsity=system.sparsity,
            structure=system.structure,
            with_kd=system.kd is not None,
            kd_options=own,
        )

    def _recipe(self, system: System) -> RecipeConfig:
        return load_recipe(self.places.preset, self._overrides(system))

    def _overrides(self, system: System) -> List[str]:
        values = dict(system.overrides)
        values.update({f"kd.{key}": value for key, value in (system.kd or {}).items() if key not in OWN_OPTIONS})
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    def _needs_teacher(self, job: Job) -> bool:
        system = self.systems[job[0]]
        return system.role in ("sparse_student", "streaming_student") or system.kd is not None

    def _teacher_seed(self, name: str) -> int:
        return self.systems[name].seeds[0]

    def _check(self, system: System) -> None:
        job = (system.name, system.seeds[0])
        try:
            check_config(self.config(job), "cuda")
            self.cache(job)
        except UserError as error:
            where = f"{self.experiment.path}: system {system.name}: {error.where}"
            raise UserError(where, error.found, error.expected, error.next_step) from None


def _module(name: str, *words: Any) -> List[Any]:
    return ["-m", f"rnnt_kd.bin.{name}", *words]


def _settings(overrides) -> List[str]:
    return [word for override in overrides for word in ("--set", override)]

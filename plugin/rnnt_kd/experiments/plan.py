"""What an experiment's systems are on disk, and the commands that make them.

EXP_DIR/cuts  EXP_DIR/bpe                        stages 1 and 2; all experiments share them
EXP_DIR/data/<test set>_far                      far sets of stage 1, where the preset wants them
EXP_DIR/<experiment>/<system>/seed<N>/           a system as bin.train makes it, decodings in it
EXP_DIR/<experiment>/<teacher>/seed<N>/kd_cache  its cache; kd_cache_temperature2 ... for students that want another
EXP_DIR/cuts/with_unlabelled.<experiment>.<teacher>.<N>.jsonl.gz   what its students train on, with unlabelled audio
EXP_DIR/<experiment>/export/<system>/            its first seed, for a device

With folds (data.folds) each is such an EXP_DIR, EXP_DIR/fold<K>of<N>; tables and exports lie in EXP_DIR/<experiment>.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from rnnt_kd.config import KdConfig, RecipeConfig, SystemConfig, TrainingConfig
from rnnt_kd.config_io import load_recipe, merged
from rnnt_kd.data import folds
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.definition import TEACHER, Experiment, System, read_experiment
from rnnt_kd.experiments.pseudo_labels import Sources
from rnnt_kd.record import json_digest
from rnnt_kd.systems import store
from rnnt_kd.systems.compose import compose
from rnnt_kd.systems.experiment_folder import GREEDY
from rnnt_kd.text.normalization import FORMS
from rnnt_kd.training import setup

Job = Tuple[str, int]  # system, seed
UNLABELLED = "unlabelled"  # name of the cuts of features.unlabelled_dir
OWN_BONUS = "own token bonus"  # a way to decode: the preset's search with the bonus that is best on the dev set
OLD_LAYOUT = ("teacher", "students", "experiments", "kd_cache")  # of EXP_DIR before version 0.2
CACHE_NAMES = {"prune_range": "range", "rnnt_type": "", "min_seconds": "min", "max_seconds": "max"}  # of what differs
CACHE_NAMES["temperature"] = "temperature"


@dataclass(frozen=True)
class Places:
    """Where inputs are and results go: the same for every system.

    Attributes:
      preset:    file that the experiment is relative to.
      train_dir, dev_dir, test_sets: Kaldi data directories; the last by the names of the sets.
      bpe_model: to take in the place of one that is made of the text.
      given_cuts: a source of cuts to train on (a manifest, a folder in Shar format) in the place of ``train_dir``.
      overrides: ``--set`` of the command line.
      device, lattice, pipes, ranks: options that say how to compute and do not change what a system is.
      decode_device: of decoding, if another.
    """

    preset: Path
    exp_dir: Path
    dev_set: str
    test_sets: Mapping[str, Path]
    train_dir: Optional[Path] = None
    dev_dir: Optional[Path] = None
    overrides: Tuple[str, ...] = ()
    device: Tuple[str, ...] = ()
    decode_device: Tuple[str, ...] = ()
    lattice: Tuple[str, ...] = ()
    pipes: Tuple[str, ...] = ()
    ranks: Tuple[str, ...] = ()
    given_cuts: Optional[Path] = None
    bpe_model: Optional[Path] = None

    @property
    def bpe_dir(self) -> Path:
        return self.exp_dir / "bpe"

    @property
    def train_cuts(self) -> Path:
        return self.given_cuts or self.cuts("train")

    @property
    def train_text(self) -> Path:
        """Of which the BPE model is made."""
        if self.given_cuts is not None:
            return self.exp_dir / "cuts" / "train.text"
        assert self.train_dir is not None
        return self.train_dir / "text"

    @property
    def dev_cuts(self) -> Path:
        return self.cuts(self.dev_set)

    def cuts(self, name: str) -> Path:
        return self.exp_dir / "cuts" / f"{name}.jsonl.gz"


@dataclass(frozen=True)
class Cache:
    """One teacher cache: where, of which systems and cuts, and the options of bin.cache_teacher that make it."""

    folder: Path
    teachers: Tuple[Job, ...]
    cuts: Path
    options: Tuple[str, ...]


class Plan:
    """Raises UserError where a system cannot be: a value out of range, a missing teacher, a cache where the variant
    compares whole logits, systems of an older layout in the folder.  Weights and data are not looked at.

    ``folder``: of tables and exports, where it is not EXP_DIR/<experiment>."""

    def __init__(self, file: Path, places: Places, folder: Optional[Path] = None):
        sections = [section.name for section in dataclasses.fields(RecipeConfig)]
        self.experiment: Experiment = read_experiment(file, places.overrides, sections)
        self.recipe = load_recipe(places.preset, self.experiment.preset)
        self._clean = {places.dev_set: places.dev_dir, **places.test_sets}
        self.places = places = _with_far_sets(places) if self.recipe.features.far_sets else places
        self.dir = folder or places.exp_dir / self.experiment.name
        _refuse_old_layout(places.exp_dir, self.experiment.name)
        self.systems: Dict[str, System] = {}
        self._configs: Dict[str, SystemConfig] = {}
        for system in self.experiment.systems.values():
            self._add(system)
        self.systems = {name: self._like_with_like(system) for name, system in self.systems.items()}
        for job in self.first_jobs():
            self.cache(job)
        needs_audio = [key for key in ("far_copies", "far_sets") if getattr(self.recipe.features, key)]
        if places.given_cuts is not None and (needs_audio or self.experiment.folds):
            what = f"features.{needs_audio[0]}" if needs_audio else f"{file}: folds"
            raise UserError("--train-cuts", f"{what} needs audio and speakers", "--train-dir, a Kaldi data directory")
        if self.experiment.tune_token_bonus and self.search != "modified_beam_search":
            problem = f"given with decoding.search {self.search}"
            raise UserError(f"{file}: tune_token_bonus", problem, "modified_beam_search, which takes a bonus")
        if self.unlabelled_dir is not None:
            self._check_unlabelled()
        if self.experiment.labelled is not None and 1.0 not in self.recipe.features.speed_perturb:
            speeds = f"features.speed_perturb {self.recipe.features.speed_perturb}"
            raise UserError(f"{file}: labelled", f"given with {speeds}", "1.0 among them: the teacher hears that speed")

    @property
    def unlabelled_set(self) -> str:
        """Name of the cuts without labels, those of ``unlabelled_dir`` or of a part of each fold; "": none."""
        if self.experiment.labelled is not None:
            return folds.unlabelled(self.experiment.labelled)
        return "" if self.unlabelled_dir is None else UNLABELLED

    @property
    def unlabelled_dir(self) -> Optional[Path]:
        folder = self.recipe.features.unlabelled_dir
        return None if folder is None else Path(folder)

    @property
    def search(self) -> str:
        return self.recipe.decoding.search

    @property
    def ways(self) -> List[str]:
        """In which every system is decoded: by the preset's search, which stands first, greedily, ``OWN_BONUS``."""
        tuned = [OWN_BONUS] if self.experiment.tune_token_bonus else []
        return list(dict.fromkeys([self.search, GREEDY, *tuned]))

    def jobs(self) -> Iterator[Job]:
        """Every training, system and seed of the file, teachers first, else in the file's order."""
        systems = self.experiment.systems
        for name in sorted(systems, key=lambda name: systems[name].role != TEACHER):
            yield from self.jobs_of(name)

    def made_by(self, job: Job) -> List[Job]:
        """The systems that a training makes: of a family, its members, the densest first."""
        return [(name, job[1]) for name, one in self.systems.items() if job[0] in (name, one.family)]

    def made(self) -> Iterator[Job]:
        """Every system and seed that there will be."""
        return (system for job in self.jobs() for system in self.made_by(job))

    def training_of(self, job: Job) -> Job:
        """Which training makes it: of a sparser member of a family, that of the family."""
        return self.systems[job[0]].family or job[0], job[1]

    def jobs_of(self, name: str) -> List[Job]:
        return [(name, seed) for seed in self.systems[name].seeds]

    def first_jobs(self) -> List[Job]:
        """One of each system: what is exported and pictured."""
        return [self.jobs_of(name)[0] for name in self.systems]

    def system_dir(self, job: Job) -> Path:
        name, seed = self.training_of(job)
        config = self._configs[name]
        places = dict(zip((one.name for one in store.members(config)), store.member_dirs(config)))
        return self.places.exp_dir / self.systems[name].experiment / name / f"seed{seed}" / places[job[0]]

    def decode_dir(self, job: Job, test_set: str, way: str = "") -> Path:
        """``way``: one of ``ways``; "": the first."""
        if way == OWN_BONUS:
            return self.system_dir(job) / "token_bonus" / test_set
        return self.system_dir(job) / f"decode_{test_set}_{way or self.search}"

    def export_dir(self, job: Job) -> Path:
        return self.dir / "export" / job[0]

    def teacher_of(self, job: Job) -> Optional[Job]:
        """The job that makes the teacher it starts or learns from; None where none is needed."""
        system, config = self.systems[job[0]], self._configs[job[0]]
        starts_there = system.role in ("sparse_student", "streaming_student")
        if not starts_there and config.kd is None and not (self.needs_words and self.is_pseudo_labelled(job)):
            return None
        if system.teacher is None:
            where = f"{self.experiment.path}: system {system.name}"
            raise UserError(where, "needs a teacher, and the file has none", "a system teacher: {role: teacher}")
        return self.jobs_of(system.teacher)[0]

    def teachers_of(self, job: Job) -> List[Job]:
        """``teacher_of`` first, then those that are in the mean with it, where it distils from any."""
        teacher, others = self.teacher_of(job), self.systems[job[0]].others if self._configs[job[0]].kd else ()
        return [] if teacher is None else [teacher, *(self.jobs_of(name)[0] for name in others)]

    def teacher_dir(self, job: Job) -> Optional[Path]:
        teacher = self.teacher_of(job)
        return None if teacher is None else self.system_dir(teacher)

    def is_pseudo_labelled(self, job: Job) -> bool:
        """Does it learn from unlabelled audio, too?"""
        is_student = self.systems[job[0]].role != TEACHER
        return is_student and self._has_unlabelled(job) and self._configs[job[0]].training.unlabelled

    def _has_unlabelled(self, job: Job) -> bool:
        """Is there unlabelled audio beside its labels?  Not for a system of another experiment with all labels."""
        is_own = self.systems[job[0]].experiment == self.experiment.name
        return self.unlabelled_dir is not None or self.experiment.labelled is not None and is_own

    def labelled_cuts(self, job: Job) -> Path:
        """Of those that it is trained on."""
        if self.experiment.labelled is None or not self._has_unlabelled(job):
            return self.places.train_cuts
        return self.places.cuts(folds.labelled(self.experiment.labelled))

    def train_cuts(self, job: Job) -> Path:
        """What it is trained on."""
        if not self.is_pseudo_labelled(job):
            return self.labelled_cuts(job)
        teacher, names = self.teacher_of(job) if self.needs_words else None, [f"with_{self.unlabelled_set}"]
        if teacher is not None:
            names += [self.systems[teacher[0]].experiment, teacher[0], str(teacher[1])]
        return self.places.cuts(".".join(names))

    def pseudo_labels(self, job: Job) -> Sources:
        """What ``train_cuts`` of a job with unlabelled audio is made of."""
        teacher, name = self.teacher_of(job) if self.needs_words else None, self.unlabelled_set
        words = None if teacher is None else self.decode_dir(teacher, name) / f"recogs-{name}.txt"
        return Sources(self.labelled_cuts(job), self.places.cuts(name), words)

    def baseline_of(self, job: Job) -> Optional[Job]:
        """The same seed of the system's baseline; None where there is none."""
        baseline = self.systems[job[0]].baseline
        return (baseline, job[1]) if baseline is not None and job[1] in self.systems[baseline].seeds else None

    def config(self, job: Job) -> SystemConfig:
        """What tokenizer and teacher decide is not filled in."""
        return dataclasses.replace(self._configs[job[0]], seed=job[1])

    def is_streaming(self, job: Job) -> bool:
        return self.systems[job[0]].role == "streaming_student"

    def cache(self, job: Job) -> Optional[Cache]:
        """What the system distils from; None where it distils from no cache."""
        config, teachers = self.config(job), self.teachers_of(job)
        if config.kd is not None and config.kd.ranges != "teacher" and len(teachers) > 1:
            where = f"{self.experiment.path}: system {job[0]}"
            raise UserError(
                where, "several teachers, and kd.ranges student", "one that runs online, or kd.ranges teacher"
            )
        if config.kd is None or config.kd.ranges != "teacher" or not teachers:
            return None
        own, usual = {**vars(config.training), **vars(config.kd)}, {**vars(TrainingConfig()), **vars(KdConfig())}
        changed = {name: own[key] for key, name in CACHE_NAMES.items() if own[key] != usual[key]}
        names = [f"{name}{value:g}" if name else str(value) for name, value in changed.items()]
        names += [self.unlabelled_set] if self.is_pseudo_labelled(job) else []
        if len(teachers) > 1:
            members = [(self.systems[name].experiment, name, seed) for name, seed in teachers]
            names.append(f"mean-{json_digest(members)[:8]}")
        options = [word for key in CACHE_NAMES for word in (f"--{key.replace('_', '-')}", str(own[key]))]
        folder = self.system_dir(teachers[0]) / "_".join(["kd_cache", *names])
        return Cache(folder, tuple(teachers), self.train_cuts(job), tuple(options))

    def cache_to_make(self, job: Job) -> Optional[Cache]:
        """``cache``; None where its training cuts carry their teacher.  UserError: these cannot be read."""
        cache, cuts, kd = self.cache(job), self.train_cuts(job), self._configs[job[0]].kd
        hears_them = kd is not None and kd.hears != "original"
        return None if hears_them and cuts.exists() and open_source(cuts).teacher_cuts else cache

    # Commands: what stands after "python".

    def features_commands(self) -> Dict[str, List[str]]:
        places = self.places
        assert places.dev_dir is not None
        clean = {name: self._features_command(name, folder) for name, folder in self._clean.items()}
        if places.given_cuts is not None:
            return clean
        folders = {"train": places.train_dir, **({UNLABELLED: self.unlabelled_dir} if self.unlabelled_dir else {})}
        copies = ["--speed-perturb", *map(str, self.recipe.features.speed_perturb), *self._far_copies()]
        train = {name: self._features_command(name, folder) + copies for name, folder in folders.items()}
        if self.unlabelled_dir is not None:
            train[UNLABELLED].append("--unlabelled")
        return {**train, **clean, **self.far_commands()}

    def far_commands(self) -> Dict[str, List[str]]:
        """Far sets from the clean ones: data directories, and their cuts."""
        places, commands = self.places, {}
        for name, folder in self._clean.items() if self.recipe.features.far_sets else ():
            far = _far_dir(places, name)
            audio = _module("far_data", "--data-dir", folder, "--train-dir", places.train_dir, "--out-dir", far)
            commands[f"{far.name}, audio"] = [*audio, *self._surroundings(), *places.pipes]
            commands[far.name] = self._features_command(far.name, far)
        return commands

    def _features_command(self, name: str, folder: Optional[Path]) -> List[str]:
        command = _module("compute_features", "--data-dir", folder, "--out-dir", self.places.exp_dir / "cuts")
        return [*command, "--name", name, *self._normalization(), *self.places.pipes]

    def _far_copies(self) -> List[str]:
        copies, number = self.recipe.features.far_copies, self.experiment.folds
        words = ["--far-copies", str(copies)]
        return [*words, *(["--folds", str(number)] if number else []), *self._surroundings()] if copies else []

    def _surroundings(self) -> List[str]:
        features = self.recipe.features
        folders = {"--noise-dir": features.noise_dir, "--rir-dir": features.rir_dir}
        named = [word for option, folder in folders.items() if folder is not None for word in (option, folder)]
        return ["--keep-apart", *map(str, self._clean.values()), "--snr-db", *map(str, features.snr_db), *named]

    def bpe_command(self) -> List[str]:
        text, places = self.recipe.text, self.places
        if places.bpe_model is not None:
            return _module("train_bpe", "--bpe-model", places.bpe_model, "--out-dir", places.bpe_dir)
        command = _module("train_bpe", "--text", places.train_text, "--out-dir", places.bpe_dir)
        command += ["--vocab-size", str(text.vocab_size), "--model-type", text.model_type, *self._normalization()]
        flags = ("shrink_to_fit", "enlarge_to_fit", "byte_fallback", "keep_events")
        return command + [f"--{flag.replace('_', '-')}" for flag in flags if getattr(text, flag)]

    def train_command(self, job: Job) -> List[str]:
        return _module("train", *self.job_options(job), *self.places.device, *self.places.lattice, *self.places.ranks)

    def cache_command(self, cache: Cache) -> List[str]:
        places = self.places
        folders = map(self.system_dir, cache.teachers)
        command = _module("cache_teacher", "--teacher-dir", *folders, "--cuts", cache.cuts)
        command += ["--bpe-dir", str(places.bpe_dir), "--cache-dir", str(cache.folder), *cache.options]
        return [*command, *places.device, *places.lattice]

    def decode_command(self, job: Job, test_set: str, search: str = "") -> List[str]:
        decoding, places = self.recipe.decoding, self.places
        command = _module("decode", "--system-dir", self.system_dir(job), "--cuts", places.cuts(test_set))
        command += ["--bpe-dir", str(places.bpe_dir), "--test-set", test_set, "--search", search or self.search]
        command += ["--beam", str(decoding.beam), "--batch-seconds", str(decoding.batch_seconds)]
        command += ["--out-dir", str(self.decode_dir(job, test_set, search)), *self._normalization()]
        command += ["--originals"] if test_set == self.unlabelled_set else []
        return [*command, *(places.decode_device or places.device)]

    def pseudo_label_command(self, job: Job) -> List[str]:
        """Makes ``train_cuts`` of a job with unlabelled audio."""
        labelled, unlabelled, words = self.pseudo_labels(job)
        command = _module("pseudo_label", "--cuts", labelled, "--unlabelled-cuts", unlabelled)
        return [*command, *(["--words", str(words)] if words else []), "--out", str(self.train_cuts(job))]

    @property
    def needs_words(self) -> bool:
        """Has the unlabelled audio no text of its own?"""
        has_text = self.unlabelled_dir is not None and (self.unlabelled_dir / "text").exists()
        return bool(self.unlabelled_set) and not has_text

    def tune_command(self, job: Job) -> List[str]:
        decoding, places = self.recipe.decoding, self.places
        command = _module("tune_token_bonus", "--system-dir", self.system_dir(job), "--bpe-dir", places.bpe_dir)
        command += ["--dev-cuts", str(places.dev_cuts), "--test-cuts", *map(str, map(places.cuts, places.test_sets))]
        command += ["--out-dir", str(self.system_dir(job) / "token_bonus"), "--beam", str(decoding.beam)]
        command += ["--batch-seconds", str(decoding.batch_seconds), *self._normalization()]
        return [*command, *(places.decode_device or places.device), *self._events()]

    def score_arguments(self, job: Job, test_set: str, way: str, baseline: Optional[Job]) -> List[str]:
        """Of bin.score."""
        words: List[Any] = ["--decode-dir", self.decode_dir(job, test_set, way), "--test-set", test_set]
        words += ["--data-dir", self.places.test_sets[test_set]]
        words += ["--baseline-decode-dir", self.decode_dir(baseline, test_set, way)] if baseline else []
        return [str(word) for word in words] + self._events()

    def export_command(self, job: Job) -> List[str]:
        check_dir = next(iter(self.places.test_sets.values()))
        command = _module(
            "export", self.system_dir(job), "--bpe-dir", self.places.bpe_dir, "--out", self.export_dir(job)
        )
        command += ["--check-data-dir", str(check_dir), *self.places.pipes, *self._events()]
        command += ["--dev-cuts", str(self.places.dev_cuts)]
        if bits := self.config(job).training.weight_bits:
            command += ["--format", f"int{bits}+sparse"]
        return command + (["--streaming"] if self.is_streaming(job) else [])

    def job_options(self, job: Job) -> List[str]:
        """Of bin.train: which system of which file, and where."""
        places, words = self.places, []
        words += ["--config", places.preset, "--experiment", self.experiment.path, "--system", job[0], "--seed", job[1]]
        words += ["--exp-dir", places.exp_dir, "--dev-set", places.dev_set]
        words += ["--train-cuts", places.given_cuts] if places.given_cuts else []
        words += [word for override in places.overrides for word in ("--set", override)]
        return [str(word) for word in words]

    def _events(self) -> List[str]:
        return [] if self.recipe.text.score_events else ["--ignore-events"]

    def _normalization(self) -> List[str]:
        form = self.recipe.text.normalization
        return [] if form == FORMS[0] else ["--normalization", form]

    def _check_unlabelled(self) -> None:
        where = "features.unlabelled_dir (--unlabelled-dir)"
        if self.places.given_cuts is not None or self.experiment.folds:
            problem = f"given with {'--train-cuts' if self.places.given_cuts is not None else 'folds'}"
            raise UserError(where, problem, "--train-dir or a corpus, and an experiment without folds")
        if UNLABELLED in (self.places.dev_set, *self.places.test_sets):
            raise UserError(where, f"a set has the name {UNLABELLED}", "another name", "rename the folder")

    def _add(self, system: System) -> None:
        """A system of the file; of a family, its sparser members as well, which are decoded and shown as any other."""
        config = self._composed(system)
        self.systems[system.name], self._configs[system.name] = system, config
        for member in store.members(config)[1:]:
            if member.name in self.experiment.systems:
                problem = f"names one as the member of {system.name} with that sparsity"
                raise UserError(f"{self.experiment.path}: system {member.name}", problem, "another name")
            self.systems[member.name] = dataclasses.replace(system, name=member.name, family=system.name)
            self._configs[member.name] = member

    def _like_with_like(self, system: System) -> System:
        """A member whose baseline is a family is compared with the member of its own sparsity, if there is one."""
        if system.family is None or system.baseline is None:
            return system
        family = [name for name, one in self.systems.items() if system.baseline in (name, one.family)]
        if len(family) < 2:
            return system
        zeros = self._configs[system.name].zeros
        same = next((name for name in family if self._configs[name].zeros == zeros), None)
        return dataclasses.replace(system, baseline=same)

    def _composed(self, system: System) -> SystemConfig:
        try:
            values = system.values
            if system.role == "sparse_student" and system.teacher is not None:  # it starts from its teacher's weights
                teacher = self.experiment.systems[system.teacher].values
                values = {**values, "model": merged(teacher.get("model", {}), values.get("model", {}))}
            config = compose(self.recipe, name=system.name, role=system.role, seed=system.seeds[0], values=values)
            setup.check_names(config)
            return config
        except UserError as error:
            where = ": ".join(filter(None, (f"{self.experiment.path}: system {system.name}", str(error.where))))
            raise UserError(where, error.problem, error.expected, error.next_step) from None


def _far_dir(places: Places, name: str) -> Path:
    return places.exp_dir / "data" / f"{name}_far"


def _with_far_sets(places: Places) -> Places:
    """UserError: a set has the name of another's far one."""
    far = {folder.name: folder for folder in (_far_dir(places, name) for name in places.test_sets)}
    same = sorted({*far} & {places.dev_set, *places.test_sets})
    if same:
        raise UserError("features.far_sets", f"makes {same[0]}, and there is one", "another name", "rename the folder")
    return dataclasses.replace(places, test_sets={**places.test_sets, **far})


def _refuse_old_layout(exp_dir: Path, experiment: str) -> None:
    found = [name for name in OLD_LAYOUT if name != experiment and (exp_dir / name).is_dir()]
    if found and not (exp_dir / TEACHER / "experiment.json").exists():
        raise UserError(
            exp_dir,
            f"holds systems in the layout of version 0.1 ({', '.join(found)})",
            "<experiment>/<system>/seed<N>",
            "choose another --exp-dir, or move them as CHANGELOG.md says; nothing was touched",
        )


def _module(name: str, *words: Any) -> List[str]:
    return ["-m", f"rnnt_kd.bin.{name}", *map(str, words)]

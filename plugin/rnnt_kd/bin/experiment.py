"""Make what is missing of an experiment: a file that names systems and seeds (rnnt_kd.experiments.definition).

run.sh calls this for its stages 1 to 9, each a step; stage 0 must have made the data directories:
  features  bpe           cuts and the BPE model, EXP_DIR/cuts and EXP_DIR/bpe; all experiments share them
  teacher  cache  train   teachers, what distillation needs of them, students: EXP_DIR/<experiment>/<system>/seed<N>
  decode  score           recogs and word error rates in each system's folder; then the table:
                          EXP_DIR/<experiment>/summary.md, summary.json (a row a system and test set),
                          results.json (an object a system, seed and test set)
  export                  the first seed of each system, for sherpa-onnx; sizes.md, sizes.json
  report                  lattice pictures, and the page: report/index.html

A finished part is skipped, an interrupted one goes on where it stopped; a job that fails stops no other.  With
--print-jobs, a line for each system and seed that is not trained and decoded goes to stdout: a command that can be run
anywhere and in any order (what it needs, it makes; who comes second, waits), and nothing else is done.

An experiment with folds (cross-validation by speaker, rnnt_kd.data.folds) does all of this in each fold,
EXP_DIR/fold<K>of<N>, side by side, and makes one table of all in EXP_DIR/<experiment>; --fold K makes one fold alone.
"""

import contextlib
import inspect
import io
import json
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from filelock import FileLock

from rnnt_kd import atomic, choices, files
from rnnt_kd.bin import delay, options, score
from rnnt_kd.bin.entry import command
from rnnt_kd.children import Commands, run_side_by_side
from rnnt_kd.data import folds
from rnnt_kd.data.kaldi_dir import read_table
from rnnt_kd.decoding.lookup import available_searches
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import endpoint, fold_table, results, table
from rnnt_kd.experiments.definition import TEACHER, System
from rnnt_kd.experiments.plan import Cache, Job, Places, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.text.coverage import coverage
from rnnt_kd.text.normalization import normalized
from rnnt_kd.training.system_dir import RECORD

# part of a printed command
ENVIRONMENT = ("PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", files.DATA_ROOTS)


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    options.add_experiment(parser)
    parser.add_argument("--train-dir", type=Path, help="Kaldi data directory, for the steps features and bpe")
    parser.add_argument("--dev-dir", type=Path, required=True, help="Kaldi data directory")
    parser.add_argument("--test-dirs", nargs="+", required=True, help="Kaldi data directories of the test sets")
    parser.add_argument("--corpus", help="name of the corpus, for the table; the folder's name where it is not given")
    parser.add_argument("--nj", type=int, default=1, help="jobs side by side")
    parser.add_argument("--steps", default=" ".join(STEPS), help='some of the steps above, or "" to check the options')
    parser.add_argument("--print-jobs", action="store_true", help="a command line for each missing system and seed")
    parser.add_argument("--job", metavar="SYSTEM/SEED", help="this one only, for example sparse90/2; no table")
    parser.add_argument(
        "--fold", type=int, metavar="K", help="of an experiment with folds: this one only, and no table"
    )
    parser.add_argument("--allow-pipes", action="store_true", help="run the shell pipes of wav.scp")
    options.add_data_root(parser)
    options.add_lattice_backend(parser)
    options.add_device(parser)
    options.add_ranks(parser)
    options.add_bootstrap(parser)
    args = parser.parse_args(argv)
    options.check_bootstrap(args)
    options.check_positive(args, "nj", "num_threads", "nproc", "num_nodes")
    steps = [choices.check(step, list(STEPS), "--steps") for step in args.steps.split()]
    run = Run(_parts(args), args, options.command_line("rnnt_kd.bin.experiment", argv))
    choices.check(run.first.search, available_searches(), f"{args.config}: decoding.search")
    files.allow([folds.union_dir(args.exp_dir, run.folds) / "cuts"] * bool(run.folds))
    for part in run.parts:  # what the user named here, links and all, the files of the experiment may name, too
        places = part.plan.places
        named = [places.exp_dir / "cuts", places.bpe_dir, *places.test_sets.values()]
        files.allow([*named, *(part.plan.system_dir(job) for job in part.plan.jobs())])
    if args.print_jobs:
        for part in run.parts:
            for job in part.plan.jobs():
                if part.progress.why_not_finished(job):
                    print(_printed(args, part.fold, job))
    elif args.job is not None:
        run.one(args.job)
    else:
        failed = [name for step in steps for name in STEPS[step](run)]
        if failed and run.most_at_once == 1:
            sys.exit(1)  # its own line is the last one
        if failed:
            problem = f"{len(failed)} failed: {', '.join(failed)}"
            raise UserError(
                args.experiment, problem, "", "see their lines above; correct it and run the same command again"
            )


@dataclass(frozen=True)
class Part:
    """The experiment; one fold of it where it has folds."""

    plan: Plan
    progress: Progress
    fold: int = 0

    def name(self, job: Optional[Job] = None) -> str:
        words = [f"fold{self.fold}"] * bool(self.fold) + ([_name(job)] if job else [])
        return " ".join(words)


class Run:
    """The steps.  Each makes what is missing of its part and returns the names of what failed.

    ``parts``: those that are worked on; ``all_parts``: those that the table is of.
    """

    def __init__(self, all_parts: List[Part], args, typed: str):
        self.all_parts, self.args, self.typed = all_parts, args, typed
        self.parts = [part for part in all_parts if args.fold in (None, part.fold)]
        self.first = all_parts[0].plan  # what is exported and pictured
        self.folds = self.first.experiment.folds
        self.most_at_once = 0

    def features(self) -> List[str]:
        if self.folds:
            return self._features_of_folds()
        commands = self.first.features_commands()
        return self._run({f"cuts {name}": command for name, command in commands.items()}, at_once=1)

    def _features_of_folds(self) -> List[str]:
        """Once for all folds, which select from them."""
        args, union, recipe = self.args, folds.union_dir(self.args.exp_dir, self.folds), self.first.recipe
        union.mkdir(parents=True, exist_ok=True)
        with FileLock(str(union / ".lock")):  # another fold may be made beside this one
            sources = [args.train_dir, args.dev_dir, *map(Path, args.test_dirs)]
            folds.make_data(args.exp_dir, self.folds, sources, self._say, args.allow_pipes, recipe.text.normalization)
            places = replace(self.first.places, exp_dir=union, train_dir=union / "data", dev_dir=union / "data")
            of_union = Plan(args.experiment, replace(places, test_sets={}), self.first.dir)
            failed = self._run({"cuts of all folds": of_union.features_commands()["train"]})
            for part in self.parts if not failed else []:
                data = part.plan.places.exp_dir / "data"
                folds.select_cuts(
                    args.exp_dir, part.fold, self.folds, {name: ("train", data / name) for name in folds.SETS}
                )
                far = {f"{part.name()} cuts {name}": words for name, words in part.plan.far_commands().items()}
                failed += self._run(far, at_once=1)
        return failed

    def bpe(self) -> List[str]:
        failed = self._run({f"{part.name()} bpe".strip(): part.plan.bpe_command() for part in self.parts})
        for part in self.parts if not failed else []:
            places = part.plan.places
            for name, folder in {"train": places.train_dir, places.dev_set: places.dev_dir, **places.test_sets}.items():
                self._say_what_can_be_written(part, name, folder)
        return failed

    def teacher(self) -> List[str]:
        return self._train(lambda system: system.role == TEACHER)

    def cache(self) -> List[str]:
        commands = {}
        for part in self.parts:
            plan, progress = part.plan, part.progress
            users: Dict[Cache, List[Job]] = {}
            for job in plan.jobs():
                cache = plan.cache(job)
                if cache is not None:
                    users.setdefault(cache, []).append(job)
            for cache, jobs in sorted(users.items(), key=lambda item: str(item[0].folder)):
                _must_be_trained(part, cache.teacher)
                if not any(progress.why_not_trained(job) or progress.why_no_cache(job) for job in jobs):
                    self._say(f"{cache.folder}: nobody waits for it, skipped")
                    continue
                for number, words in enumerate(plan.cache_commands(cache, self.args.nj), 1):
                    commands[f"{cache.folder.name} of {part.name(cache.teacher)}, job {number}"] = words
        return self._run(commands)

    def train(self) -> List[str]:
        return self._train(lambda system: system.role != TEACHER)

    def decode(self) -> List[str]:
        commands = {}
        for part in self.parts:
            jobs = [job for job in part.plan.jobs() if self._is_trained(part, job)]
            sets = [(job, name) for job in jobs for name in part.plan.places.test_sets]
            missing = [(job, name) for job, name in sets if part.progress.why_not_decoded(job, name)]
            commands.update({f"{part.name(job)} {name}": part.plan.decode_command(job, name) for job, name in missing})
            for job in jobs if part.plan.experiment.tune_token_bonus else ():
                if part.progress.why_not_tuned(job):
                    commands[f"{part.name(job)} token bonus"] = part.plan.tune_command(job)
        return self._run(commands)

    def score(self) -> List[str]:
        """Every decoding; those that are scored already stay as they are.  Then the table."""
        for part in self.parts:
            for job in part.plan.jobs():
                for test_set in part.plan.places.test_sets:
                    if _is_decoded(part, job, test_set):
                        self._score(part, job, test_set)
                    if self._is_tuned(part, job):
                        self._score_own_bonus(part, job, test_set)
        self._table()
        return []

    def _score(self, part: Part, job: Job, test_set: str) -> None:
        plan = part.plan
        bootstrap = self._bootstrap()
        baseline = plan.baseline_of(job)
        baseline = baseline if baseline and _is_decoded(part, baseline, test_set) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            inspect.unwrap(score.main)([*plan.score_arguments(job, test_set, baseline), *bootstrap])
            teacher = plan.teacher_of(job)
            if plan.is_streaming(job) and teacher and _is_decoded(part, teacher, test_set):
                folders: List[object] = ["--decode-dir", plan.decode_dir(job, test_set)]
                folders += ["--baseline-decode-dir", plan.decode_dir(teacher, test_set)]
                inspect.unwrap(delay.main)([*map(str, folders), *bootstrap])
        for line in printed.getvalue().splitlines():
            if line.startswith(("%WER", "%CER", score.NOTE)):
                self._say(f"{line} {plan.decode_dir(job, test_set)}")

    def _is_tuned(self, part: Part, job: Job) -> bool:
        is_asked_for = part.plan.experiment.tune_token_bonus
        return is_asked_for and not (part.progress.why_not_trained(job) or part.progress.why_not_tuned(job))

    def _score_own_bonus(self, part: Part, job: Job, test_set: str) -> None:
        baseline = part.plan.baseline_of(job)
        baseline = baseline if baseline and self._is_tuned(part, baseline) else None
        words = part.plan.score_arguments(job, test_set, baseline, own_bonus=True)
        with contextlib.redirect_stdout(io.StringIO()):
            inspect.unwrap(score.main)([*words, *self._bootstrap()])

    def _bootstrap(self) -> List[str]:
        return ["--replications", str(self.args.replications), "--seed", str(self.args.seed)]

    def export(self) -> List[str]:
        results.write_experiment(self.first, self._corpus())
        part = self.all_parts[0]
        jobs = [job for job in self.first.first_jobs() if self._is_trained(part, job)]
        failed = self._run({f"export {_name(job)}": self.first.export_command(job) for job in jobs})
        return failed + self._of_folder("size_table", *self.first.places.pipes)

    def report(self) -> List[str]:
        places = self.first.places
        results.write_experiment(self.first, self._corpus())
        failed = self._of_folder("dump_lattices", *places.device, *places.lattice, *places.pipes)
        return failed + self._of_folder("report")

    def one(self, name: str) -> None:
        """A job of a queue: it may find nothing but cuts and BPE model, and others beside it that need the same."""
        if len(self.parts) != 1:
            raise UserError("--job", f"given for an experiment with {self.folds} folds", "--fold K as well")
        (part,) = self.parts
        plan, progress = part.plan, part.progress
        jobs = {_name(job): job for job in plan.jobs()}
        job = jobs[choices.check(name, list(jobs), "--job")]
        if not progress.why_not_finished(job):
            print(f"{name}: finished already, skipped ({plan.system_dir(job)})", file=sys.stderr)
            return
        self._record_endpoint()
        teacher, cache = plan.teacher_of(job), plan.cache(job)
        if teacher is not None:
            folder = plan.system_dir(teacher)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder.parent / f".{folder.name}.job.lock")):  # its other students wait here
                if progress.why_not_trained(teacher):
                    self._must({part.name(teacher): plan.train_command(teacher)})
        if progress.why_not_trained(job):
            if cache is not None and progress.why_no_cache(job):
                self._must({f"cache {cache.folder.name}": plan.cache_commands(cache)[0]})
            self._must({part.name(job): plan.train_command(job)})
        for test_set in plan.places.test_sets:
            self._must({f"{part.name(job)} {test_set}": plan.decode_command(job, test_set)})
        if plan.experiment.tune_token_bonus:
            self._must({f"{part.name(job)} token bonus": plan.tune_command(job)})

    def _say_what_can_be_written(self, part: Part, name: str, folder: Optional[Path]) -> None:
        """One line, before hours of training: text in another case than that of the training set is 100 % wrong."""
        if folder is None or not (folder / "text").is_file():
            return
        form, tokenizer = part.plan.recipe.text.normalization, part.progress.tokenizer()
        table = read_table(folder / "text", value_may_be_empty=True)
        texts = {key: normalized(value, form) for key, (value, _) in table.items()}
        self._say(f"{part.name()} {coverage(texts, tokenizer.encode, tokenizer.unk_id).sentence(name)}".strip())

    def _train(self, wanted: Callable[[System], bool]) -> List[str]:
        commands: Dict[str, List[str]] = {}
        for part in self.parts:
            for job in part.plan.jobs():
                if not wanted(part.plan.systems[job[0]]):
                    continue
                teacher = part.plan.teacher_of(job)
                if teacher is not None:
                    _must_be_trained(part, teacher)
                if part.progress.why_not_trained(job):
                    commands[part.name(job)] = part.plan.train_command(job)
                else:
                    self._say(f"{part.name(job)}: finished already, skipped ({part.plan.system_dir(job)})")
        if commands:
            self._record_endpoint()
        return self._run(commands, at_once=max(1, self.args.nj // (self.args.nproc * self.args.num_nodes)))

    def _record_endpoint(self) -> None:
        if not self.folds:
            return
        asked = self.first.experiment.endpoint or {}
        jobs = [(part, job) for part in self.all_parts for job in part.plan.jobs()]
        two = [pair for pair in jobs if pair[1][0] in (asked.get("system"), asked.get("baseline"))]
        endpoint.record_endpoint(self.first, any((part.plan.system_dir(job) / RECORD).exists() for part, job in two))

    def _is_trained(self, part: Part, job: Job) -> bool:
        why = part.progress.why_not_trained(job)
        if why:
            self._say(f"{part.name(job)}: {why}; left out")
        return not why

    def _of_folder(self, module: str, *words: str) -> List[str]:
        return self._run({module: ["-m", f"rnnt_kd.bin.{module}", "--experiment-dir", str(self.first.dir), *words]})

    def _run(self, commands: Dict[str, List[str]], at_once: Optional[int] = None) -> List[str]:
        """Side by side; one alone keeps the terminal to itself.  Returns the names of those that failed."""
        jobs = [Commands(name, [words]) for name, words in commands.items()]
        self.most_at_once = max(self.most_at_once, len(jobs))
        return [name for name, _ in run_side_by_side(jobs, min(at_once or self.args.nj, len(jobs)))]

    def _must(self, commands: Dict[str, List[str]]) -> None:
        for name in self._run(commands):
            raise UserError(name, "failed", "", "see the lines above")

    def _table(self) -> None:
        plan, corpus = self.first, self._corpus()
        title = f"Corpus {corpus}, experiment {plan.experiment.name}"
        bootstrap = {"replications": self.args.replications, "seed": self.args.seed}
        jobs = [job for name in plan.systems for job in plan.jobs_of(name)]
        collected = {part.fold: results.collect(part.plan, part.progress, jobs) for part in self.all_parts}
        commands = [word for found, _ in collected.values() for word in results.commands(found)] + [self.typed]
        if self.folds:
            folds_found = {}
            for part in self.all_parts:
                is_tuned = plan.experiment.tune_token_bonus
                own = results.collect(part.plan, part.progress, jobs, own_bonus=True)[0] if is_tuned else {}
                folds_found[part.fold] = fold_table.Fold(part.plan, *collected[part.fold], own)
            declared, why_not = endpoint.read_endpoint(plan), endpoint.why_not_declared(plan)
            listed = fold_table.listed(folds_found, declared, why_not)
            rows = fold_table.rows(folds_found, declared, why_not, **bootstrap)
            text = fold_table.markdown(rows, title, self.folds, declared)
            full = fold_table.markdown(rows, title, self.folds, declared, [self.typed])
            atomic.write_text(plan.dir / "pooled.json", _json(fold_table.pooled(rows, corpus)))
        else:
            found, reasons = collected[0]
            listed, rows = results.as_list(plan, found), table.rows(plan, found, reasons, **bootstrap)
            known = table.known_spread(self.args.experiment.parent / ".." / ".." / "results.json")  # egs/<corpus>
            text = table.markdown(rows, title, by_seed=known)
            full = table.markdown(rows, title, commands, known)
        results.write_experiment(plan, corpus)
        atomic.write_text(plan.dir / "results.json", _json(listed))
        atomic.write_text(plan.dir / "summary.json", _json(rows))
        atomic.write_text(plan.dir / "summary.md", full)
        print(text, end="")

    def _corpus(self) -> str:
        return self.args.corpus or self.args.exp_dir.resolve().name

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


STEPS: Dict[str, Callable[[Run], List[str]]] = {
    "features": Run.features,
    "bpe": Run.bpe,
    "teacher": Run.teacher,
    "cache": Run.cache,
    "train": Run.train,
    "decode": Run.decode,
    "score": Run.score,
    "export": Run.export,
    "report": Run.report,
}


def _must_be_trained(part: Part, job: Job) -> None:
    why = part.progress.why_not_trained(job)
    if why:
        raise UserError(part.plan.system_dir(job), why, "a trained teacher", "run stage 3 first")


def _is_decoded(part: Part, job: Job, test_set: str) -> bool:
    return not (part.progress.why_not_trained(job) or part.progress.why_not_decoded(job, test_set))


def _parts(args) -> List[Part]:
    places = _places(args)
    plan = Plan(args.experiment, places)
    number = plan.experiment.folds
    if args.fold is not None and not 1 <= args.fold <= number:
        raise UserError("--fold", str(args.fold), f"1 .. {number}" if number else "an experiment with folds")
    plans = [Plan(args.experiment, _of_fold(places, fold, number), plan.dir) for fold in range(1, number + 1)]
    parts = [Part(plan, Progress(plan), fold) for fold, plan in enumerate(plans, 1)] or [Part(plan, Progress(plan))]
    endpoint.read_endpoint(parts[0].plan)  # wrong ones end here
    return parts


def _of_fold(places: Places, fold: int, number: int) -> Places:
    folder = folds.fold_dir(places.exp_dir, fold, number)
    train, dev, test = (folder / "data" / name for name in folds.SETS)
    return replace(places, exp_dir=folder, train_dir=train, dev_set=dev.name, dev_dir=dev, test_sets={test.name: test})


def _places(args) -> Places:
    test_sets = {_set_name(Path(folder)): Path(folder) for folder in args.test_dirs}
    _check_names(args, test_sets)
    return Places(
        preset=args.config,
        exp_dir=args.exp_dir,
        dev_set=_set_name(args.dev_dir),
        test_sets=test_sets,
        train_dir=args.train_dir,
        dev_dir=args.dev_dir,
        overrides=tuple(args.overrides),
        device=_words(args, "device", "num_threads"),
        lattice=("--lattice-backend", args.lattice_backend),
        pipes=("--allow-pipes",) if args.allow_pipes else (),
        ranks=() if args.nproc * args.num_nodes == 1 else _words(args, "nproc", "num_nodes"),
    )


def _set_name(folder: Path) -> str:
    """The last part of its path; of "." and "..", that of the folder they lead to."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def _check_names(args, test_sets: Dict[str, Path]) -> None:
    """A folder's name stands for the set in file names."""
    folders = [Path(folder) for folder in dict.fromkeys(args.test_dirs)]
    for path in (args.dev_dir, *folders):
        if _set_name(path)[:1] in ("", ".", "-"):
            problem = f"'{path}' gives a set no name, or one that begins with a dot or a hyphen"
            raise UserError("--dev-dir, --test-dirs", problem, "a path that ends in the set's name", "rename it")
    others = {"train": None, _set_name(args.dev_dir): args.dev_dir}
    for folder in folders:
        name = _set_name(folder)
        if test_sets[name] != folder or others.get(name, folder) != folder:
            problem = f"two directories have the name '{name}'"
            raise UserError("--test-dirs", problem, "different last parts", "rename one or link to it")


def _words(args, *names: str) -> Tuple[str, ...]:
    """These options as they are given on."""
    return tuple(word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name))))


def _json(values: list) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _printed(args, fold: int, job: Job) -> str:
    """One line that runs ``job`` from any folder, in this environment."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if "PYTHONPATH" in environment:
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in folders)
    words = ["env", *(f"{name}={value}" for name, value in environment.items())]
    words += [sys.executable, "-m", "rnnt_kd.bin.experiment", "--job", _name(job)]
    words += ["--fold", str(fold)] if fold else []
    for name in ("experiment", "config", "exp_dir", "dev_dir"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name).resolve())]
    words += ["--test-dirs", *(str(Path(folder).resolve()) for folder in args.test_dirs)]
    words += _words(args, "device", "num_threads", "lattice_backend", "nproc", "num_nodes")
    return shlex.join(words + [word for override in args.overrides for word in ("--set", override)])


def _name(job: Job) -> str:
    return f"{job[0]}/{job[1]}"


if __name__ == "__main__":
    main()

"""Make what is missing of an experiment: a file that names systems and seeds (rnnt_kd.experiments.definition).

run.sh calls this for its stages 1 to 9, each a step; stage 0 must have made the data directories:
  features  bpe           cuts and the BPE model, EXP_DIR/cuts and EXP_DIR/bpe; all experiments share them
  teacher  cache  train   teachers, what distillation needs of them, students: EXP_DIR/<experiment>/<system>/seed<N>
  decode  score           recogs and word error rates in each system's folder; then the table:
                          EXP_DIR/<experiment>/summary.md, summary.json (a row a system and test set),
                          results.json (an object a system, seed and test set)
  export                  the first seed of each system, for sherpa-onnx; sizes.md, sizes.json
  report                  lattice pictures, and the page: report/index.html

A finished part is skipped, an interrupted one goes on where it stopped; a job that fails stops no other, and is named
with the end of its log, in EXP_DIR/log or EXP_DIR/<experiment>/log.  Jobs run on this machine, --nj at a time, or by a
cluster's --cmd, which is called as Kaldi's run.pl is:

  $cmd [--gpu 1] [--num-threads 2] JOB=1:N log/x.JOB.log command ... --job JOB --nj N

features and each cache are such an array of --nj jobs, each decoding one of --decode-nj, each training and export is a
job; the rest is done here.

With --print-jobs nothing is done.  The commands of the missing jobs of --steps go to stdout, a line each, to be run
anywhere: those below one comment in any order, after those before it.  Without --steps it is a line for each system and
seed that is not trained and decoded, in any order (what it needs, it makes; who comes second, waits).

An experiment with folds (cross-validation by speaker, rnnt_kd.data.folds) does all of this in each fold,
EXP_DIR/fold<K>of<N>, side by side, and makes one table of all in EXP_DIR/<experiment>; --fold K makes one fold alone.
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from filelock import FileLock

from rnnt_kd import atomic, choices, files
from rnnt_kd.bin import compute_features, delay, export, options, score
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data import folds
from rnnt_kd.data.features import num_parts
from rnnt_kd.data.kaldi_dir import read_table
from rnnt_kd.data.source import open_source
from rnnt_kd.decoding.lookup import available_searches
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import endpoint, fold_table, results, table
from rnnt_kd.experiments.definition import TEACHER, System
from rnnt_kd.experiments.plan import Cache, Job, Places, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.jobs import JOB, Jobs, portable, read_cmd, run_side_by_side
from rnnt_kd.parts import are_left
from rnnt_kd.text.coverage import coverage
from rnnt_kd.text.normalization import normalized
from rnnt_kd.training.system_dir import RECORD


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    options.add_experiment(parser)
    parser.add_argument("--train-dir", type=Path, help="Kaldi data directory, for the steps features and bpe")
    options.add_train_cuts(parser)
    parser.add_argument("--dev-dir", type=Path, required=True, help="Kaldi data directory")
    parser.add_argument("--test-dirs", nargs="+", required=True, help="Kaldi data directories of the test sets")
    parser.add_argument("--corpus", help="name of the corpus, for the table; the folder's name where it is not given")
    parser.add_argument("--nj", type=int, default=1, help="jobs side by side; with --cmd, of features and of a cache")
    parser.add_argument("--decode-nj", type=int, default=1, help="jobs that share a decoding")
    parser.add_argument("--cmd", default="", help="what runs the jobs, and its options (default: this process)")
    parser.add_argument("--gpu-inference", choices=["true", "false"], default="true", help="decode where it is trained")
    parser.add_argument("--steps", help='some of the steps above, or "" to check the options (default: all)')
    parser.add_argument("--print-jobs", action="store_true", help="print the commands of the jobs that are missing")
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
    options.check_positive(args, "nj", "decode_nj", "num_threads", "nproc", "num_nodes")
    asked = list(STEPS) if args.steps is None else args.steps.split()
    steps = [choices.check(step, list(STEPS), "--steps") for step in asked]
    run = Run(_parts(args), args, sys.argv[1:] if argv is None else argv)
    choices.check(run.first.search, available_searches(), f"{args.config}: decoding.search")
    files.allow([folds.union_dir(args.exp_dir, run.folds) / "cuts"] * bool(run.folds))
    for part in run.parts:  # what the user named here, links and all, the files of the experiment may name, too
        places = part.plan.places
        named = [places.exp_dir / "cuts", places.train_cuts, places.bpe_dir, *places.test_sets.values()]
        files.allow([*named, *(part.plan.system_dir(job) for job in part.plan.jobs())])
    if args.print_jobs and args.steps is None:
        for part in run.parts:
            for job in part.plan.jobs():
                if part.progress.why_not_finished(job):
                    print(_printed(_of_queue(args, part.fold, job)))
    elif args.job is not None:
        run.one(args.job)
    else:
        failed = []
        for step in steps:
            if args.print_jobs:
                print(f"# {step}")
            failed += STEPS[step](run)
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

    def name(self, job: Optional[Job] = None, what: str = "") -> str:
        """For people: fold, job and what is done, as far as there are."""
        words = [f"fold{self.fold}" if self.fold else "", _name(job) if job else "", what]
        return " ".join(filter(None, words))

    def log(self, what: str, job: Optional[Job] = None, more: str = "") -> Path:
        """What its logs begin with."""
        words = [what, f"fold{self.fold}" if self.fold else "", f"{job[0]}.{job[1]}" if job else "", more]
        return self.plan.dir / "log" / ".".join(filter(None, words))


class Run:
    """The steps.  Each makes what is missing of its part and returns the names of what failed.

    ``parts``: those that are worked on; ``all_parts``: those that the table is of.
    """

    def __init__(self, all_parts: List[Part], args, argv: Sequence[str]):
        self.all_parts, self.args, self.argv = all_parts, args, argv
        self.typed = options.command_line("rnnt_kd.bin.experiment", argv)
        self.cmd = read_cmd(args.cmd) if args.cmd else []
        self.parts = [part for part in all_parts if args.fold in (None, part.fold)]
        self.first = all_parts[0].plan  # what is exported and pictured
        self.folds = self.first.experiment.folds
        self.most_at_once = 0

    def features(self) -> List[str]:
        if self.folds:
            return self._features_of_folds()
        return self._make_cuts(self.first, self.first.features_commands())

    def _features_of_folds(self) -> List[str]:
        """Once for all folds, which select from them."""
        if self.args.print_jobs:
            return self._print_step("features")
        args, union, recipe = self.args, folds.union_dir(self.args.exp_dir, self.folds), self.first.recipe
        union.mkdir(parents=True, exist_ok=True)
        with FileLock(str(union / ".lock")):  # another fold may be made beside this one
            sources = [args.train_dir, args.dev_dir, *map(Path, args.test_dirs)]
            folds.make_data(args.exp_dir, self.folds, sources, self._say, args.allow_pipes, recipe.text.normalization)
            places = replace(self.first.places, exp_dir=union, train_dir=union / "data", dev_dir=union / "data")
            of_union = Plan(args.experiment, replace(places, test_sets={}), self.first.dir)
            failed = self._make_cuts(of_union, {"train": of_union.features_commands()["train"]}, "cuts of all folds")
            for part in self.parts if not failed else []:
                data = part.plan.places.exp_dir / "data"
                folds.select_cuts(
                    args.exp_dir, part.fold, self.folds, {name: ("train", data / name) for name in folds.SETS}
                )
                failed += self._make_cuts(part.plan, part.plan.far_commands(), f"{part.name()} cuts {{}}")
        return failed

    def _make_cuts(self, plan: Plan, commands: Dict[str, List[str]], called: str = "cuts {}") -> List[str]:
        """Far audio first, then the cuts of all sets."""
        cuts, logs = plan.places.exp_dir / "cuts", plan.places.exp_dir / "log"
        named = {called.format(name): (name, words) for name, words in commands.items()}
        audio = [name for name, (_, words) in named.items() if "rnnt_kd.bin.far_data" in words]
        failed = self._run([Jobs(name, named[name][1], logs / named[name][0].replace(", ", ".")) for name in audio])
        if audio and self.args.print_jobs:
            print("# then")
        arrays = []
        for name in [name for name in named if name not in audio and f"{name}, audio" not in failed]:
            set_name, words = named[name]
            given = compute_features.arguments(words[2:])
            if self._is_made(lambda args: compute_features.make_stage(args)[0], given):
                continue
            nj = min(self.args.nj, _parts_of(given.data_dir) or self.args.nj)
            arrays.append(self._array(name, words, logs / f"features.{set_name}", nj, gpus=0))
        return failed + self._run_arrays(arrays, lambda one: are_left(cuts, f"features_{named[one.name][0]}"))

    def bpe(self) -> List[str]:
        if self.args.print_jobs:
            return self._print_step("bpe")
        jobs = []
        for part in self.parts:
            if part.plan.places.given_cuts is not None:
                _write_text(part.plan.places.given_cuts, part.plan.places.train_text)
            log = part.plan.places.exp_dir / "log" / "bpe"
            jobs.append(Jobs(part.name(what="bpe"), part.plan.bpe_command(), log))
        failed = self._run_here(jobs)
        for part in self.parts if not failed else []:
            places = part.plan.places
            for name, folder in {"train": places.train_dir, places.dev_set: places.dev_dir, **places.test_sets}.items():
                self._say_what_can_be_written(part, name, folder)
        return failed

    def teacher(self) -> List[str]:
        return self._train(lambda system: system.role == TEACHER)

    def cache(self) -> List[str]:
        made = []
        for part in self.parts:
            plan, progress = part.plan, part.progress
            users: Dict[Cache, List[Job]] = {}
            for job in plan.jobs():
                cache = plan.cache_to_make(job)
                if cache is not None:
                    users.setdefault(cache, []).append(job)
                elif plan.cache(job) is not None:
                    self._say(f"{part.name(job)}: {plan.places.train_cuts} carry its teacher, so no cache is made")
            for cache, jobs in sorted(users.items(), key=lambda item: str(item[0].folder)):
                self._must_be_trained(part, cache.teacher)
                if not any(progress.why_not_trained(job) or progress.why_no_cache(job) for job in jobs):
                    self._say(f"{cache.folder}: nobody waits for it, skipped")
                    continue
                log = part.log("cache", cache.teacher, cache.folder.name)
                name = f"{cache.folder.name} of {part.name(cache.teacher)}"
                made.append(self._array(name, plan.cache_command(cache), log, self.args.nj, self._gpus()))
        return self._run(made)

    def train(self) -> List[str]:
        return self._train(lambda system: system.role != TEACHER)

    def decode(self) -> List[str]:
        gpus = self._gpus() if self.args.gpu_inference == "true" else 0
        arrays: Dict[str, Tuple[Jobs, Path, str]] = {}
        tunings = []
        for part in self.parts:
            for job in [job for job in part.plan.jobs() if self._is_trained(part, job)]:
                for test_set in part.plan.places.test_sets:
                    if part.progress.why_not_decoded(job, test_set):
                        words, log = part.plan.decode_command(job, test_set), part.log("decode", job, test_set)
                        one = self._array(part.name(job, test_set), words, log, self.args.decode_nj, gpus)
                        arrays[one.name] = one, part.plan.decode_dir(job, test_set), test_set
                if part.plan.experiment.tune_token_bonus and part.progress.why_not_tuned(job):
                    name, words = part.name(job, "token bonus"), part.plan.tune_command(job)
                    log = part.log("token_bonus", job)
                    tunings.append(Jobs(name, words, log, gpus=gpus, threads=self.args.num_threads))

        def is_late(one: Jobs) -> bool:
            _, folder, test_set = arrays[one.name]
            return are_left(folder, f"decode-{test_set}")

        return self._run_arrays([one for one, _, _ in arrays.values()], is_late, tunings)

    def score(self) -> List[str]:
        """Every decoding; those that are scored already stay as they are.  Then the table."""
        if self.args.print_jobs:
            return self._print_step("score")
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
        part, jobs = self.all_parts[0], []
        for job in filter(lambda job: self._is_trained(part, job), self.first.first_jobs()):
            words = self.first.export_command(job)
            if not self._is_made(export.make_stage, export.arguments(words[2:])):
                jobs.append(Jobs(f"export {_name(job)}", words, part.log("export", job)))
        if self.args.print_jobs:
            self._run(jobs)
            print("# then")
            return self._print_step("export")
        results.write_experiment(self.first, self._corpus())
        failed = self._run(jobs)
        return failed + self._of_folder("size_table", *self.first.places.pipes)

    def report(self) -> List[str]:
        if self.args.print_jobs:
            return self._print_step("report")
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
        teacher, cache = plan.teacher_of(job), plan.cache_to_make(job)
        if teacher is not None:
            folder = plan.system_dir(teacher)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder.parent / f".{folder.name}.job.lock")):  # its other students wait here
                if progress.why_not_trained(teacher):
                    self._must(part.name(teacher), plan.train_command(teacher), part.log("job", job, "teacher"))
        if progress.why_not_trained(job):
            if cache is not None and progress.why_no_cache(job):
                self._must(f"cache {cache.folder.name}", plan.cache_command(cache), part.log("job", job, "cache"))
            self._must(part.name(job), plan.train_command(job), part.log("job", job, "train"))
        for test_set in plan.places.test_sets:
            words, log = plan.decode_command(job, test_set), part.log("job", job, f"decode.{test_set}")
            self._must(part.name(job, test_set), words, log)
        if plan.experiment.tune_token_bonus:
            self._must(part.name(job, "token bonus"), plan.tune_command(job), part.log("job", job, "token_bonus"))

    def _say_what_can_be_written(self, part: Part, name: str, folder: Optional[Path]) -> None:
        """One line, before hours of training: text in another case than that of the training set is 100 % wrong."""
        if folder is None or not (folder / "text").is_file():
            return
        form, tokenizer = part.plan.recipe.text.normalization, part.progress.tokenizer()
        table = read_table(folder / "text", value_may_be_empty=True)
        texts = {key: normalized(value, form) for key, (value, _) in table.items()}
        self._say(part.name(what=coverage(texts, tokenizer.encode, tokenizer.unk_id).sentence(name)))

    def _train(self, wanted: Callable[[System], bool]) -> List[str]:
        jobs, nproc = [], self.args.nproc
        for part in self.parts:
            for job in part.plan.jobs():
                if not wanted(part.plan.systems[job[0]]):
                    continue
                teacher = part.plan.teacher_of(job)
                if teacher is not None:
                    self._must_be_trained(part, teacher)
                if part.progress.why_not_trained(job):
                    words, threads = part.plan.train_command(job), nproc * self.args.num_threads
                    jobs.append(
                        Jobs(part.name(job), words, part.log("train", job), None, nproc * self._gpus(), threads)
                    )
                else:
                    self._say(f"{part.name(job)}: finished already, skipped ({part.plan.system_dir(job)})")
        if jobs and not self.args.print_jobs:
            self._record_endpoint()
        return self._run(jobs, at_once=max(1, self.args.nj // (nproc * self.args.num_nodes)))

    def _must_be_trained(self, part: Part, job: Job) -> None:
        why = part.progress.why_not_trained(job)
        if why and not self.args.print_jobs:
            raise UserError(part.plan.system_dir(job), why, "a trained teacher", "run stage 3 first")

    def _record_endpoint(self) -> None:
        if not self.folds:
            return
        asked = self.first.experiment.endpoint or {}
        jobs = [(part, job) for part in self.all_parts for job in part.plan.jobs()]
        two = [pair for pair in jobs if pair[1][0] in (asked.get("system"), asked.get("baseline"))]
        endpoint.record_endpoint(self.first, any((part.plan.system_dir(job) / RECORD).exists() for part, job in two))

    def _is_trained(self, part: Part, job: Job) -> bool:
        why = part.progress.why_not_trained(job)
        if why and not self.args.print_jobs:
            self._say(f"{part.name(job)}: {why}; left out")
        return not why or self.args.print_jobs

    def _is_made(self, make_stage: Callable[[argparse.Namespace], Stage], args: argparse.Namespace) -> bool:
        said = contextlib.redirect_stdout(sys.stderr) if self.args.print_jobs else contextlib.nullcontext()
        with contextlib.suppress(UserError), said:  # of an error, the job says it
            return make_stage(args).is_finished()
        return False

    def _of_folder(self, module: str, *words: str) -> List[str]:
        words = ("-m", f"rnnt_kd.bin.{module}", "--experiment-dir", str(self.first.dir), *words)
        return self._run_here([Jobs(module, words, self.first.dir / "log" / module)])

    def _array(self, name: str, words: List[str], log: Path, nj: int, gpus: int) -> Jobs:
        return Jobs(name, [*words, "--job", JOB, "--nj", str(nj)], log, nj, gpus, self.args.num_threads)

    def _run(self, jobs: Sequence[Jobs], cmd: Optional[List[str]] = None, at_once: Optional[int] = None) -> List[str]:
        """Returns the names of those that failed."""
        if self.args.print_jobs:
            for one in jobs:
                for number in one.numbers:
                    print(_printed(one.words_of(number)))
            return []
        self.most_at_once = max(self.most_at_once, sum(len(one.numbers) for one in jobs))
        return run_side_by_side(jobs, at_once or self.args.nj, self.cmd if cmd is None else cmd) if jobs else []

    def _run_arrays(
        self, arrays: Sequence[Jobs], is_late: Callable[[Jobs], bool], others: Sequence[Jobs] = ()
    ) -> List[str]:
        """``is_late``: its last job did not see, on a slow file system, that it was the last one."""
        failed = self._run([*arrays, *others])
        late = [] if failed or self.args.print_jobs else [one for one in arrays if is_late(one)]
        return failed + self._run([replace(one, words=options.without_job(one.words), count=1) for one in late])

    def _run_here(self, jobs: Sequence[Jobs]) -> List[str]:
        return self._run(jobs, cmd=[])

    def _must(self, name: str, words: List[str], log: Path) -> None:
        if self._run_here([Jobs(name, words, log)]):
            raise UserError(name, "failed", "", "see the lines above")

    def _print_step(self, step: str) -> List[str]:
        """A step that has no jobs of its own: this command does it."""
        words = [word for word in self.argv if word != "--print-jobs"]
        if "--steps" in words:
            del words[words.index("--steps") : words.index("--steps") + 2]
        print(_printed(["-m", "rnnt_kd.bin.experiment", *words, "--steps", step]))
        return []

    def _gpus(self) -> int:
        return int(options.chosen_device(self.args.device) == "cuda")

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
    if args.train_cuts is not None and args.train_dir is not None:
        raise UserError("--train-dir, --train-cuts", "both given", "one of them")
    test_sets = {_set_name(Path(folder)): Path(folder) for folder in args.test_dirs}
    _check_names(args, test_sets)
    return Places(
        preset=args.config,
        exp_dir=args.exp_dir,
        dev_set=_set_name(args.dev_dir),
        test_sets=test_sets,
        train_dir=args.train_dir,
        given_cuts=args.train_cuts,
        dev_dir=args.dev_dir,
        overrides=tuple(args.overrides),
        device=_words(args, "device", "num_threads"),
        lattice=("--lattice-backend", args.lattice_backend),
        pipes=("--allow-pipes",) if args.allow_pipes else (),
        decode_device=()
        if args.gpu_inference == "true"
        else ("--device", "cpu", "--num-threads", str(args.num_threads)),
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


def _printed(words: Sequence[str]) -> str:
    """One line that runs ``python`` with these words from any folder, in this environment."""
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(portable(words))}"


def _of_queue(args, fold: int, job: Job) -> List[str]:
    """This command, for one system and seed alone."""
    words = ["-m", "rnnt_kd.bin.experiment", "--job", _name(job), *(["--fold", str(fold)] if fold else [])]
    words += ["--test-dirs", *map(str, args.test_dirs)]
    words += _words(args, "experiment", "config", "exp_dir", "dev_dir")
    words += _words(args, "train_cuts") if args.train_cuts else ()
    words += _words(args, "device", "num_threads", "lattice_backend", "nproc", "num_nodes")
    return words + [word for override in args.overrides for word in ("--set", override)]


def _write_text(cuts: Path, out: Path) -> None:
    """As in a Kaldi data directory."""
    lines = [f"{info.id} {' '.join(info.text.split())}\n" for info in open_source(cuts).infos()]
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out, "".join(lines))


def _parts_of(data_dir: Path) -> int:
    """That its features are divided into, at most; 0 where nobody knows yet."""
    try:
        with open(data_dir / "wav.scp", "rb") as lines:
            return num_parts(sum(1 for _ in lines))
    except OSError:
        return 0


def _name(job: Job) -> str:
    return f"{job[0]}/{job[1]}"


if __name__ == "__main__":
    main()

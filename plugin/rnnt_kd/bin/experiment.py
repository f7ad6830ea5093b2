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
"""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from filelock import FileLock

from rnnt_kd import atomic, choices, files
from rnnt_kd.bin import compute_features, delay, options, score
from rnnt_kd.bin.entry import command
from rnnt_kd.data.features import num_parts
from rnnt_kd.data.kaldi_dir import read_table
from rnnt_kd.decoding.lookup import available_searches
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import results, table
from rnnt_kd.experiments.definition import TEACHER
from rnnt_kd.experiments.plan import Cache, Job, Places, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.jobs import JOB, Jobs, check_cmd, portable, run_side_by_side
from rnnt_kd.parts import are_left
from rnnt_kd.text.coverage import coverage
from rnnt_kd.text.normalization import normalized


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    options.add_experiment(parser)
    parser.add_argument("--train-dir", type=Path, help="Kaldi data directory, for the steps features and bpe")
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
    parser.add_argument("--allow-pipes", action="store_true", help="run the shell pipes of wav.scp")
    options.add_data_root(parser)
    options.add_lattice_backend(parser)
    options.add_device(parser)
    options.add_bootstrap(parser)
    args = parser.parse_args(argv)
    options.check_bootstrap(args)
    options.check_positive(args, "nj", "decode_nj", "num_threads")
    asked = list(STEPS) if args.steps is None else args.steps.split()
    steps = [choices.check(step, list(STEPS), "--steps") for step in asked]
    run = Run(Plan(args.experiment, _places(args)), args, sys.argv[1:] if argv is None else argv)
    choices.check(run.plan.search, available_searches(), f"{args.config}: decoding.search")
    places = run.plan.places  # what the user named here, links and all, the files of the experiment may name, too
    named = [places.exp_dir / "cuts", places.bpe_dir, *places.test_sets.values()]
    files.allow([*named, *(run.plan.system_dir(job) for job in run.plan.jobs())])
    if args.print_jobs and args.steps is None:
        for job in run.plan.jobs():
            if run.progress.why_not_finished(job):
                print(_printed(_of_queue(args, job)))
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


class Run:
    """The steps.  Each makes what is missing of its part and returns the names of what failed."""

    def __init__(self, plan: Plan, args, argv: Sequence[str]):
        self.plan, self.args, self.argv = plan, args, argv
        self.typed = options.command_line("rnnt_kd.bin.experiment", argv)
        self.cmd = shlex.split(args.cmd)
        if args.cmd:
            check_cmd(self.cmd)
        self.progress = Progress(plan)
        self.most_at_once = 0
        self.logs = plan.dir / "log"

    def features(self) -> List[str]:
        cuts, jobs = self.plan.places.exp_dir / "cuts", []
        for name, words in self.plan.features_commands().items():
            given = compute_features.arguments(words[2:])
            said = contextlib.redirect_stdout(sys.stderr) if self.args.print_jobs else contextlib.nullcontext()
            with contextlib.suppress(UserError), said:  # of an error, the job says it
                if compute_features.make_stage(given).is_finished():
                    continue
            nj = min(self.args.nj, _parts_of(given.data_dir) or self.args.nj)
            jobs.append(self._array(f"cuts {name}", words, f"features.{name}", nj, gpus=0, folder=cuts.parent / "log"))
        return self._run_arrays(jobs, lambda one: are_left(cuts, f"features_{one.name[5:]}"))

    def bpe(self) -> List[str]:
        if self.args.print_jobs:
            return self._print_step("bpe")
        failed = self._run_here("bpe", self.plan.bpe_command(), self.plan.places.exp_dir / "log")
        if not failed:
            places = self.plan.places
            for name, folder in {"train": places.train_dir, places.dev_set: places.dev_dir, **places.test_sets}.items():
                self._say_what_can_be_written(name, folder)
        return failed

    def teacher(self) -> List[str]:
        return self._train(lambda job: self.plan.systems[job[0]].role == TEACHER)

    def cache(self) -> List[str]:
        users: Dict[Cache, List[Job]] = {}
        for job in self.plan.jobs():
            cache = self.plan.cache(job)
            if cache is not None:
                users.setdefault(cache, []).append(job)
        jobs = []
        for cache, students in sorted(users.items(), key=lambda item: str(item[0].folder)):
            self._must_be_trained(cache.teacher)
            if not any(self.progress.why_not_trained(job) or self.progress.why_no_cache(job) for job in students):
                self._say(f"{cache.folder}: nobody waits for it, skipped")
                continue
            name, log = f"{cache.folder.name} of {_name(cache.teacher)}", f"cache.{_file(cache.teacher)}"
            words = self.plan.cache_command(cache)
            jobs.append(self._array(name, words, f"{log}.{cache.folder.name}", self.args.nj, self._gpus()))
        return self._run(jobs)

    def train(self) -> List[str]:
        return self._train(lambda job: self.plan.systems[job[0]].role != TEACHER)

    def decode(self) -> List[str]:
        gpus = self._gpus() if self.args.gpu_inference == "true" else 0
        missing = {}
        for job in filter(self._is_trained, self.plan.jobs()):
            for test_set in self.plan.places.test_sets:
                if self.progress.why_not_decoded(job, test_set):
                    missing[f"{_name(job)} {test_set}"] = job, test_set
        jobs = []
        for name, (job, test_set) in missing.items():
            words, log = self.plan.decode_command(job, test_set), f"decode.{_file(job)}.{test_set}"
            jobs.append(self._array(name, words, log, self.args.decode_nj, gpus))

        def is_late(one: Jobs) -> bool:
            job, test_set = missing[one.name]
            return are_left(self.plan.decode_dir(job, test_set), f"decode-{test_set}")

        return self._run_arrays(jobs, is_late)

    def score(self) -> List[str]:
        """Every decoding; those that are scored already stay as they are.  Then the table."""
        if self.args.print_jobs:
            return self._print_step("score")
        bootstrap = ["--replications", str(self.args.replications), "--seed", str(self.args.seed)]
        for job in self.plan.jobs():
            for test_set in self.plan.places.test_sets:
                if not self._is_decoded(job, test_set):
                    continue
                baseline = self.plan.baseline_of(job)
                baseline = baseline if baseline and self._is_decoded(baseline, test_set) else None
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    inspect.unwrap(score.main)([*self.plan.score_arguments(job, test_set, baseline), *bootstrap])
                    teacher = self.plan.teacher_of(job)
                    if self.plan.is_streaming(job) and teacher and self._is_decoded(teacher, test_set):
                        folders: List[object] = ["--decode-dir", self.plan.decode_dir(job, test_set)]
                        folders += ["--baseline-decode-dir", self.plan.decode_dir(teacher, test_set)]
                        inspect.unwrap(delay.main)([*map(str, folders), *bootstrap])
                for line in printed.getvalue().splitlines():
                    if line.startswith(("%WER", "%CER", score.NOTE)):
                        self._say(f"{line} {self.plan.decode_dir(job, test_set)}")
        self._table()
        return []

    def export(self) -> List[str]:
        jobs = []
        for job in filter(self._is_trained, self.plan.first_jobs()):
            jobs.append(Jobs(f"export {_name(job)}", self.plan.export_command(job), self.logs / f"export.{_file(job)}"))
        if self.args.print_jobs:
            self._run(jobs)
            print("# then")
            return self._print_step("export")
        results.write_experiment(self.plan, self._corpus())
        failed = self._run(jobs)
        return failed + self._of_folder("size_table", *self.plan.places.pipes)

    def report(self) -> List[str]:
        if self.args.print_jobs:
            return self._print_step("report")
        places = self.plan.places
        results.write_experiment(self.plan, self._corpus())
        failed = self._of_folder("dump_lattices", *places.device, *places.lattice, *places.pipes)
        return failed + self._of_folder("report")

    def one(self, name: str) -> None:
        """A job of a queue: it may find nothing but cuts and BPE model, and others beside it that need the same."""
        jobs = {_name(job): job for job in self.plan.jobs()}
        job = jobs[choices.check(name, list(jobs), "--job")]
        if not self.progress.why_not_finished(job):
            print(f"{name}: finished already, skipped ({self.plan.system_dir(job)})", file=sys.stderr)
            return
        teacher, cache, own = self.plan.teacher_of(job), self.plan.cache(job), f"job.{_file(job)}"
        if teacher is not None:
            folder = self.plan.system_dir(teacher)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder.parent / f".{folder.name}.job.lock")):  # its other students wait here
                if self.progress.why_not_trained(teacher):
                    self._must(_name(teacher), self.plan.train_command(teacher), f"{own}.teacher")
        if self.progress.why_not_trained(job):
            if cache is not None and self.progress.why_no_cache(job):
                self._must(f"cache {cache.folder.name}", self.plan.cache_command(cache), f"{own}.cache")
            self._must(name, self.plan.train_command(job), f"{own}.train")
        for test_set in self.plan.places.test_sets:
            self._must(f"{name} {test_set}", self.plan.decode_command(job, test_set), f"{own}.decode.{test_set}")

    def _say_what_can_be_written(self, name: str, folder: Optional[Path]) -> None:
        """One line, before hours of training: text in another case than that of the training set is 100 % wrong."""
        if folder is None or not (folder / "text").is_file():
            return
        form, tokenizer = self.plan.recipe.text.normalization, self.progress.tokenizer()
        table = read_table(folder / "text", value_may_be_empty=True)
        texts = {key: normalized(value, form) for key, (value, _) in table.items()}
        self._say(coverage(texts, tokenizer.encode, tokenizer.unk_id).sentence(name))

    def _train(self, wanted: Callable[[Job], bool]) -> List[str]:
        jobs = []
        for job in filter(wanted, self.plan.jobs()):
            teacher = self.plan.teacher_of(job)
            if teacher is not None:
                self._must_be_trained(teacher)
            if self.progress.why_not_trained(job):
                words, log = self.plan.train_command(job), self.logs / f"train.{_file(job)}"
                jobs.append(Jobs(_name(job), words, log, gpus=self._gpus(), threads=self.args.num_threads))
            else:
                self._say(f"{_name(job)}: finished already, skipped ({self.plan.system_dir(job)})")
        return self._run(jobs)

    def _must_be_trained(self, job: Job) -> None:
        why = self.progress.why_not_trained(job)
        if why and not self.args.print_jobs:
            raise UserError(self.plan.system_dir(job), why, "a trained teacher", "run stage 3 first")

    def _is_trained(self, job: Job) -> bool:
        why = self.progress.why_not_trained(job)
        if why and not self.args.print_jobs:
            self._say(f"{_name(job)}: {why}; left out")
        return not why or self.args.print_jobs

    def _is_decoded(self, job: Job, test_set: str) -> bool:
        return not (self.progress.why_not_trained(job) or self.progress.why_not_decoded(job, test_set))

    def _of_folder(self, module: str, *words: str) -> List[str]:
        return self._run_here(module, ["-m", f"rnnt_kd.bin.{module}", "--experiment-dir", str(self.plan.dir), *words])

    def _array(self, name: str, words: List[str], log: str, nj: int, gpus: int, folder: Optional[Path] = None) -> Jobs:
        words = [*words, "--job", JOB, "--nj", str(nj)]
        return Jobs(name, words, (folder or self.logs) / log, nj, gpus, self.args.num_threads)

    def _run(self, jobs: Sequence[Jobs], cmd: Optional[List[str]] = None) -> List[str]:
        """Returns the names of those that failed."""
        if self.args.print_jobs:
            for one in jobs:
                for number in one.numbers:
                    print(_printed(one.words_of(number)))
            return []
        self.most_at_once = max(self.most_at_once, sum(len(one.numbers) for one in jobs))
        return run_side_by_side(jobs, self.args.nj, self.cmd if cmd is None else cmd) if jobs else []

    def _run_arrays(self, jobs: Sequence[Jobs], is_late: Callable[[Jobs], bool]) -> List[str]:
        """``is_late``: its last job did not see, on a slow file system, that it was the last one."""
        failed = self._run(jobs)
        late = [] if failed or self.args.print_jobs else [one for one in jobs if is_late(one)]
        return failed + self._run(
            [dataclasses.replace(one, words=options.without_job(one.words), count=1) for one in late]
        )

    def _run_here(self, name: str, words: List[str], folder: Optional[Path] = None) -> List[str]:
        return self._run([Jobs(name, words, (folder or self.logs) / name)], cmd=[])

    def _must(self, name: str, words: List[str], log: str) -> None:
        if self._run([Jobs(name, words, self.logs / log)], cmd=[]):
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
        plan = self.plan
        jobs = [job for name in plan.systems for job in plan.jobs_of(name)]
        found, reasons = results.collect(plan, self.progress, jobs)
        rows = table.rows(plan, found, reasons, replications=self.args.replications, seed=self.args.seed)
        title = f"Corpus {self._corpus()}, experiment {plan.experiment.name}"
        results.write_experiment(plan, self._corpus())
        atomic.write_text(plan.dir / "results.json", _json(results.as_list(plan, found)))
        atomic.write_text(plan.dir / "summary.json", _json(rows))
        atomic.write_text(plan.dir / "summary.md", table.markdown(rows, title, results.commands(found) + [self.typed]))
        print(table.markdown(rows, title), end="")

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
        device=("--device", args.device, "--num-threads", str(args.num_threads)),
        lattice=("--lattice-backend", args.lattice_backend),
        pipes=("--allow-pipes",) if args.allow_pipes else (),
        decode_device=()
        if args.gpu_inference == "true"
        else ("--device", "cpu", "--num-threads", str(args.num_threads)),
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


def _json(values: list) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _printed(words: Sequence[str]) -> str:
    """One line that runs ``python`` with these words from any folder, in this environment."""
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(portable(words))}"


def _of_queue(args, job: Job) -> List[str]:
    """This command, for one system and seed alone."""
    words = ["-m", "rnnt_kd.bin.experiment", "--job", _name(job), "--test-dirs", *map(str, args.test_dirs)]
    for name in ("experiment", "config", "exp_dir", "dev_dir", "device", "num_threads", "lattice_backend"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return words + [word for override in args.overrides for word in ("--set", override)]


def _parts_of(data_dir: Path) -> int:
    """That its features are divided into, at most; 0 where nobody knows yet."""
    try:
        with open(data_dir / "wav.scp", "rb") as lines:
            return num_parts(sum(1 for _ in lines))
    except OSError:
        return 0


def _file(job: Job) -> str:
    """Part of a log's name."""
    return f"{job[0]}.{job[1]}"


def _name(job: Job) -> str:
    return f"{job[0]}/{job[1]}"


if __name__ == "__main__":
    main()

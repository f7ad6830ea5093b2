"""Run what is missing of an experiment: a file that names systems and seeds (rnnt_kd.experiments.definition).

Stages 0 to 4 must have been run in EXP_DIR.  Trains, decodes and scores every system and seed of the file that is not
finished, JOBS at once, and makes one table of all.  The same command again goes on where it stopped; when all is
finished, it prints the table.  Writes to EXP_DIR/experiments/<experiment>
  <system>/seed<N>/     the systems, as rnnt_kd.bin.train makes them, their decodings in them
  kd_caches/            teacher caches other than EXP_DIR/kd_cache
  summary.md            the table: mean and spread over seeds, comparison with the baseline
  summary.json          the same, a list of objects, one a system and test set
  results.json          every seed: a list of objects, one a system, seed and test set

With --print-jobs, a line for each system and seed that is missing goes to stdout, a command that can be run anywhere
and in any order (what it needs, it makes; who comes second, waits), and no other work is done.
"""

import contextlib
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Iterable, List, Optional

from filelock import FileLock

from rnnt_kd import atomic
from rnnt_kd.bin import options, score
from rnnt_kd.bin.entry import command
from rnnt_kd.children import Commands, run_side_by_side
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import results, table
from rnnt_kd.experiments.definition import TEACHER, close_match, read_experiment
from rnnt_kd.experiments.plan import Job, Places, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.lattice import available_backends

STEPS = ("train", "decode", "score")
ENVIRONMENT = ("PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")  # part of a printed command


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--experiment", type=Path, required=True, help="file, egs/<corpus>/conf/experiments/<experiment>.yaml"
    )
    parser.add_argument("--config", type=Path, required=True, help="preset that the file is relative to")
    parser.add_argument("--exp-dir", type=Path, required=True, help="where stages 1 to 4 wrote")
    parser.add_argument("--dev-set", required=True, help="name of the development set")
    parser.add_argument("--test-dirs", required=True, help='Kaldi data directories of the test sets, "DIR DIR"')
    parser.add_argument("--corpus", help="name of the corpus, for the table; the folder's name where it is not given")
    parser.add_argument("--jobs", type=int, default=1, help="systems that are trained side by side")
    parser.add_argument("--steps", default=" ".join(STEPS), help=f"some of: {' '.join(STEPS)} (with the table)")
    parser.add_argument("--print-jobs", action="store_true", help="a command line for each missing system and seed")
    parser.add_argument("--job", metavar="SYSTEM/SEED", help="this one only, for example sparse90/2; no table")
    parser.add_argument("--teacher-seed", type=int, default=1, help="of the preset's teacher, for the table")
    parser.add_argument(
        "--lattice-backend", choices=["auto", *available_backends()], default="auto", help="auto: k2 where installed"
    )
    options.add_device(parser)
    options.add_bootstrap(parser)
    args = parser.parse_args(argv)
    steps = args.steps.split()
    _check(args, steps)
    plan = Plan(read_experiment(args.experiment), _places(args))
    progress = Progress(plan)

    if args.print_jobs:
        for job in plan.jobs():
            if progress.why_not_finished(job):
                print(_printed(args, job))
        return
    if args.job is not None:
        _run_one(plan, progress, _named(plan, args.job), steps)
        return
    failed = _run_missing(plan, progress, steps, args.jobs)
    if "score" in steps:
        _score(plan, progress, args.replications, args.seed)
        _table(plan, progress, args, options.command_line("rnnt_kd.bin.experiment", argv))
    if failed:
        names = options.join(failed)
        found = f"{len(failed)} failed: {names}"
        raise UserError(args.experiment, found, "", "see their lines above; mend it and run the same command again")


def _check(args, steps: List[str]) -> None:
    options.check_bootstrap(args)
    for key in ("jobs", "num_threads"):
        if getattr(args, key) < 1:
            raise UserError(f"--{key.replace('_', '-')}", str(getattr(args, key)), "1 or more")
    if not steps or not set(steps) <= set(STEPS):
        raise UserError("--steps", f"'{args.steps}'", f"some of: {' '.join(STEPS)}")
    if not args.test_dirs.split():
        raise UserError("--test-dirs", "empty", "at least one directory")
    if args.print_jobs and args.job is not None:
        raise UserError("--print-jobs", "given with --job", "one of the two")


def _places(args) -> Places:
    machine = ("--device", args.device, "--num-threads", str(args.num_threads))
    return Places(
        preset=args.config,
        exp_dir=args.exp_dir,
        dev_set=args.dev_set,
        test_sets={Path(folder).name: Path(folder) for folder in args.test_dirs.split()},
        teacher_seed=args.teacher_seed,
        machine=(*machine, "--lattice-backend", args.lattice_backend),
        decoding_machine=machine,
    )


def _run_missing(plan: Plan, progress: Progress, steps: List[str], at_once: int) -> List[str]:
    """Teachers of the file, then caches, then all others.  Returns the names of what failed."""
    failed: List[str] = []
    teachers = {plan.teacher_of(job) for job in plan.jobs()} - {None}
    first = [job for job in plan.jobs() if job in teachers]
    others = [job for job in plan.jobs() if job not in teachers]
    own_teacher = (TEACHER, plan.places.teacher_seed)
    for jobs, ready in (([own_teacher, *first], False), (others, True)):
        missing = [job for job in jobs if _missing(progress, job, steps)]
        if ready and "train" in steps:
            failed += _run_all(_caches(plan, progress, missing), at_once)
        failed += _run_all([Commands(_name(job), _commands(plan, progress, job, steps)) for job in missing], at_once)
    return failed


def _run_all(jobs: List[Commands], at_once: int) -> List[str]:
    jobs = [job for job in jobs if job.steps]
    if jobs:
        names = ", ".join(job.name for job in jobs)
        print(f"{len(jobs)} to do, {min(at_once, len(jobs))} at once: {names}", file=sys.stderr, flush=True)
    return [name for name, _ in run_side_by_side(jobs, at_once)]


def _missing(progress: Progress, job: Job, steps: Iterable[str]) -> bool:
    if "train" in steps and job[0] != TEACHER and progress.why_not_trained(job):
        return True
    return "decode" in steps and bool(progress.why_not_finished(job))


def _commands(plan: Plan, progress: Progress, job: Job, steps: Iterable[str]) -> List[List[str]]:
    """Training where it is not finished, and all decodings: each skips what it has finished."""
    trained = not progress.why_not_trained(job)
    commands = []
    if not trained and job[0] == TEACHER:
        folder = plan.system_dir(job)
        raise UserError(folder, progress.why_not_trained(job), "the preset's teacher", "run stages 0 to 4 first")
    if not trained and "train" in steps:
        commands.append(plan.train_command(job))
    if "decode" in steps and (trained or commands):
        commands += [plan.decode_command(job, name) for name in plan.places.test_sets]
    return commands


def _caches(plan: Plan, progress: Progress, jobs: List[Job]) -> List[Commands]:
    """Of these systems, each once, those that are not whole."""
    caches = {plan.cache(job) for job in jobs if progress.why_not_trained(job) and progress.why_no_cache(job)} - {None}
    ordered = sorted(caches, key=lambda cache: str(cache.folder))
    return [Commands(f"cache {cache.folder.name}", [plan.cache_command(cache)]) for cache in ordered]


def _run_one(plan: Plan, progress: Progress, job: Job, steps: List[str]) -> None:
    """A job of a queue: it may find nothing but what stages 0 to 4 made, and others beside it that need the same."""
    if not progress.why_not_finished(job):
        print(f"{_name(job)}: finished already, skipped ({plan.system_dir(job)})", file=sys.stderr)
        return
    teacher = plan.teacher_of(job)
    if teacher is not None and "train" in steps:
        folder = plan.system_dir(teacher)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder.parent / f".{folder.name}.job.lock")):  # its other students wait here
            if progress.why_not_trained(teacher):
                _must(run_side_by_side([Commands(_name(teacher), [plan.train_command(teacher)])], 1), job)
    if "train" in steps and progress.why_not_trained(job) and progress.why_no_cache(job):
        cache = plan.cache(job)
        assert cache is not None, job
        _must(run_side_by_side([Commands("cache", [plan.cache_command(cache)])], 1), job)
    _must(run_side_by_side([Commands(_name(job), _commands(plan, progress, job, steps))], 1), job)


def _must(failed: list, job: Job) -> None:
    if failed:
        raise UserError(_name(job), f"{failed[0][0]} failed", "", "see the lines above")


def _score(plan: Plan, progress: Progress, replications: int, seed: int) -> None:
    """Every decoding; those that are scored already stay as they are."""
    bootstrap = ["--replications", str(replications), "--seed", str(seed)]
    for name in plan.systems:
        for job in plan.jobs_of(name):
            for test_set in plan.places.test_sets:
                if progress.why_not_trained(job) or progress.why_not_decoded(job, test_set):
                    continue
                baseline = results.baseline_of(plan, job)
                if baseline and (progress.why_not_trained(baseline) or progress.why_not_decoded(baseline, test_set)):
                    baseline = None
                with contextlib.redirect_stdout(io.StringIO()):
                    score.main.__wrapped__([*plan.score_arguments(job, test_set, baseline), *bootstrap])


def _table(plan: Plan, progress: Progress, args, typed: str) -> None:
    jobs = [job for name in plan.systems for job in plan.jobs_of(name)]
    found, reasons = results.collect(plan, progress, jobs)
    summary = table.rows(plan, found, reasons, replications=args.replications, seed=args.seed)
    corpus = args.corpus or args.exp_dir.resolve().name
    title = f"Corpus {corpus}, experiment {plan.experiment.name}"
    plan.dir.mkdir(parents=True, exist_ok=True)
    atomic.write_text(plan.dir / "results.json", _json(results.as_list(plan, found)))
    atomic.write_text(plan.dir / "summary.json", _json(summary))
    atomic.write_text(plan.dir / "summary.md", table.markdown(summary, title, typed))
    print(table.markdown(summary, title), end="")


def _json(values: list) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def _printed(args, job: Job) -> str:
    """One line that runs ``job`` from any folder, in this environment."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if "PYTHONPATH" in environment:
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in folders)
    words = ["env", *(f"{name}={value}" for name, value in environment.items())]
    words += [sys.executable, "-m", "rnnt_kd.bin.experiment", "--job", _name(job)]
    for name in ("experiment", "config", "exp_dir"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name).resolve())]
    words += ["--test-dirs", " ".join(str(Path(folder).resolve()) for folder in args.test_dirs.split())]
    for name in ("dev_set", "device", "num_threads", "lattice_backend"):
        words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return shlex.join(words)


def _named(plan: Plan, text: str) -> Job:
    jobs = {_name(job): job for job in plan.jobs()}
    if text not in jobs:
        raise UserError("--job", f"there is no '{text}'", "SYSTEM/SEED of the experiment", close_match(text, jobs))
    return jobs[text]


def _name(job: Job) -> str:
    return f"{job[0]}/{job[1]}"


if __name__ == "__main__":
    main()

"""The steps of bin.experiment: each makes what is missing of its part, or prints the commands that would."""

import argparse
import contextlib
import inspect
import io
import itertools
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from filelock import FileLock

from rnnt_kd import atomic, choices
from rnnt_kd.bin import compute_features, delay, export, options, score
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data import folds
from rnnt_kd.data.features import num_parts
from rnnt_kd.data.kaldi_dir import read_table
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import endpoint, results, summary
from rnnt_kd.experiments.definition import TEACHER, System
from rnnt_kd.experiments.plan import OWN_BONUS, Cache, Job, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.experiments.pseudo_labels import check_apart
from rnnt_kd.jobs import JOB, Jobs, portable, read_cmd, run_side_by_side
from rnnt_kd.parts import are_left
from rnnt_kd.text.coverage import coverage
from rnnt_kd.text.normalization import normalized
from rnnt_kd.training.system_dir import RECORD


@dataclass(frozen=True)
class Part:
    """The experiment; one fold of it where it has folds."""

    plan: Plan
    progress: Progress
    fold: int = 0

    def name(self, job: Optional[Job] = None, what: str = "") -> str:
        """For people: fold, job and what is done, as far as there are."""
        words = [f"fold{self.fold}" if self.fold else "", name_of(job) if job else "", what]
        return " ".join(filter(None, words))

    def decodings(self) -> List[Tuple[str, str]]:
        """Test set and search of each decoding that bin.decode makes of a system."""
        searches = [way for way in self.plan.ways if way != OWN_BONUS]
        return list(itertools.product(self.plan.places.test_sets, searches))

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
        if self.first.unlabelled_dir is not None and not self.args.print_jobs:
            places = self.first.places
            check_apart(self.first.unlabelled_dir, [places.train_dir, places.dev_dir, *places.test_sets.values()])
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
                if self.first.experiment.labelled is not None:
                    folds.take_labels_away(data.parent / "cuts", self.first.experiment.labelled)
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

    def pseudo_label(self) -> List[str]:
        """The words of unlabelled audio, by each teacher that has students which learn from it."""
        wanted, students, jobs = [], [], []
        for part in self.parts:
            plan = part.plan
            own = {plan.train_cuts(job): job for job in plan.jobs() if plan.is_pseudo_labelled(job)}
            students += [(part, cuts, job) for cuts, job in own.items()]
            for teacher in [plan.teacher_of(job) for job in own.values()] if plan.needs_words else []:
                if teacher is not None:
                    self._must_be_trained(part, teacher)
                    wanted.append((part, teacher, plan.unlabelled_set, plan.search))
        failed = self._run_decodings(wanted)
        if wanted and self.args.print_jobs:
            print("# then")
        for part, cuts, job in students if not failed else []:
            if part.progress.why_no_pseudo_labels(job):
                log = part.log("pseudo_label", part.plan.teacher_of(job))
                name = part.name(what=f"pseudo-labels {cuts.name}")
                jobs.append(Jobs(name, part.plan.pseudo_label_command(job), log))
        return failed + self._run_here(jobs)

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
                    self._say(f"{part.name(job)}: {plan.train_cuts(job)} carry its teacher, so no cache is made")
            for cache, jobs in sorted(users.items(), key=lambda item: str(item[0].folder)):
                for teacher in cache.teachers:
                    self._must_be_trained(part, teacher)
                if not any(progress.why_not_trained(job) or progress.why_no_cache(job) for job in jobs):
                    self._say(f"{cache.folder}: nobody waits for it, skipped")
                    continue
                log = part.log("cache", cache.teachers[0], cache.folder.name)
                name = f"{cache.folder.name} of {part.name(cache.teachers[0])}"
                made.append(self._array(name, plan.cache_command(cache), log, self.args.nj, self._gpus()))
        return self._run(made)

    def train(self) -> List[str]:
        return self._train(lambda system: system.role != TEACHER)

    def decode(self) -> List[str]:
        wanted, tunings = [], []
        for part in self.parts:
            for job in [job for job in part.plan.made() if self._is_trained(part, job)]:
                wanted += [(part, job, *decoding) for decoding in part.decodings()]
                if OWN_BONUS in part.plan.ways and part.progress.why_not_tuned(job):
                    name, words = part.name(job, "token bonus"), part.plan.tune_command(job)
                    log = part.log("token_bonus", job)
                    tunings.append(Jobs(name, words, log, gpus=self._decode_gpus(), threads=self.args.num_threads))
        return self._run_decodings(wanted, tunings)

    def _run_decodings(self, wanted: Sequence[Tuple[Part, Job, str, str]], others: Sequence[Jobs] = ()) -> List[str]:
        """Those that are missing of ``wanted``, (part, job, test set, way) each; beside them ``others``."""
        arrays: Dict[str, Tuple[Jobs, Path, str]] = {}
        for part, job, test_set, way in wanted:
            if part.progress.why_not_decoded(job, test_set, way):
                words = part.plan.decode_command(job, test_set, way)
                name, log = part.name(job, f"{test_set}, {way}"), part.log("decode", job, f"{test_set}.{way}")
                one = self._array(name, words, log, self.args.decode_nj, self._decode_gpus())
                arrays[one.name] = one, part.plan.decode_dir(job, test_set, way), test_set

        def is_late(one: Jobs) -> bool:
            _, folder, test_set = arrays[one.name]
            return are_left(folder, f"decode-{test_set}")

        return self._run_arrays([one for one, _, _ in arrays.values()], is_late, others)

    def score(self) -> List[str]:
        """Every decoding; those that are scored already stay as they are.  Then the table."""
        if self.args.print_jobs:
            return self._print_step("score")
        for part in self.parts:
            for job in part.plan.made():
                for test_set, way in itertools.product(part.plan.places.test_sets, part.plan.ways):
                    if _is_decoded(part, job, test_set, way):
                        self._score(part, job, test_set, way)
        self._table()
        return []

    def _score(self, part: Part, job: Job, test_set: str, way: str) -> None:
        plan = part.plan
        bootstrap = ["--replications", str(self.args.replications), "--seed", str(self.args.seed)]
        baseline = plan.baseline_of(job)
        baseline = baseline if baseline and _is_decoded(part, baseline, test_set, way) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            inspect.unwrap(score.main)([*plan.score_arguments(job, test_set, way, baseline), *bootstrap])
            teacher = plan.teacher_of(job)
            if plan.is_streaming(job) and teacher and _is_decoded(part, teacher, test_set, way):
                folders: List[object] = ["--decode-dir", plan.decode_dir(job, test_set, way)]
                folders += ["--baseline-decode-dir", plan.decode_dir(teacher, test_set, way)]
                inspect.unwrap(delay.main)([*map(str, folders), *bootstrap])
        for line in printed.getvalue().splitlines():
            if line.startswith(("%WER", "%CER", score.NOTE)):
                self._say(f"{line} {plan.decode_dir(job, test_set, way)}")

    def _first_is_elsewhere(self, what: str) -> bool:
        """Exports, pictures and page are of the first fold, which another machine may have; jobs are printed before."""
        part = self.all_parts[0]
        is_here = (
            self.args.print_jobs or not part.fold or any(self._is_trained(part, job) for job in self.first.first_jobs())
        )
        if not is_here:
            self._say(f"{what} of fold {part.fold}, and none of its systems is here: run this stage where they are")
        return not is_here

    def export(self) -> List[str]:
        part, jobs = self.all_parts[0], []
        if self._first_is_elsewhere("exports are"):
            return []
        for job in filter(lambda job: self._is_trained(part, job), self.first.first_jobs()):
            words = self.first.export_command(job)
            if not self._is_made(export.make_stage, export.arguments(words[2:])):
                jobs.append(Jobs(f"export {name_of(job)}", words, part.log("export", job)))
        if self.args.print_jobs:
            self._run(jobs)
            print("# then")
            return self._print_step("export")
        results.write_experiment(self.first, self._corpus())
        failed = self._run(jobs)
        return failed + self._of_folder("size_table", *self.first.places.pipes)

    def report(self) -> List[str]:
        if self._first_is_elsewhere("the page is"):
            return []
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
        jobs = {name_of(job): job for job in plan.jobs()}
        job = jobs[choices.check(name, list(jobs), "--job")]
        if not progress.why_not_finished(job):
            print(f"{name}: finished already, skipped ({plan.system_dir(job)})", file=sys.stderr)
            return
        self._record_endpoint()
        cache = plan.cache_to_make(job)
        for teacher in plan.teachers_of(job):
            folder = plan.system_dir(teacher)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(folder.parent / f".{folder.name}.job.lock")):  # its other students wait here
                if progress.why_not_trained(teacher):
                    self._must(part.name(teacher), plan.train_command(teacher), part.log("job", job, "teacher"))
        if progress.why_not_trained(job):
            if progress.why_no_pseudo_labels(job):
                first, rest = plan.teacher_of(job), plan.unlabelled_set
                with FileLock(str(plan.train_cuts(job)) + ".lock"):
                    if first is not None and plan.needs_words and progress.why_not_decoded(first, rest):
                        words = plan.decode_command(first, rest)
                        self._must(part.name(first, rest), words, part.log("job", job, f"decode.{rest}"))
                    words, log = plan.pseudo_label_command(job), part.log("job", job, "pseudo_label")
                    self._must("pseudo-labels", words, log)
            if cache is not None and progress.why_no_cache(job):
                self._must(f"cache {cache.folder.name}", plan.cache_command(cache), part.log("job", job, "cache"))
            self._must(part.name(job), plan.train_command(job), part.log("job", job, "train"))
        for system in plan.made_by(job):
            for test_set, way in part.decodings():
                words = plan.decode_command(system, test_set, way)
                log = part.log("job", system, f"decode.{test_set}.{way}")
                self._must(part.name(system, f"{test_set}, {way}"), words, log)
            if OWN_BONUS in plan.ways:
                words, log = plan.tune_command(system), part.log("job", system, "token_bonus")
                self._must(part.name(system, "token bonus"), words, log)

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
                for teacher in part.plan.teachers_of(job):
                    self._must_be_trained(part, teacher)
                stale = part.progress.why_no_pseudo_labels(job)
                if stale and not self.args.print_jobs:
                    raise UserError(
                        part.plan.train_cuts(job), stale, "made of today's cuts and words", "run stage 4 first"
                    )
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
        names = asked.get("system"), asked.get("baseline")
        jobs = [(part.plan, job) for part in self.all_parts for job in part.plan.made()]
        two = [(plan, plan.training_of(job)) for plan, job in jobs if job[0] in names]
        endpoint.record_endpoint(self.first, any((plan.system_dir(job) / RECORD).exists() for plan, job in two))

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
                    print(printed(one.words_of(number)))
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
        print(self.again("--steps", step))
        return []

    def again(self, *more: str) -> str:
        """A line that runs this command for ``more`` alone."""
        words = [word for word in self.argv if word != "--print-jobs"]
        if "--steps" in words:
            del words[words.index("--steps") : words.index("--steps") + 2]
        return printed(["-m", "rnnt_kd.bin.experiment", *words, *more])

    def _decode_gpus(self) -> int:
        return self._gpus() if self.args.gpu_inference == "true" else 0

    def _gpus(self) -> int:
        return int(options.chosen_device(self.args.device) == "cuda")

    def _table(self) -> None:
        parts = {part.fold: (part.plan, part.progress) for part in self.all_parts}
        known = self.args.experiment.parent / ".." / ".." / "results.json"  # egs/<corpus>
        bootstrap = {"replications": self.args.replications, "seed": self.args.seed}
        print(summary.write_summary(parts, self._corpus(), self.typed, known, bootstrap), end="")

    def _corpus(self) -> str:
        return self.args.corpus or self.args.exp_dir.resolve().name

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


STEPS: Dict[str, Callable[[Run], List[str]]] = {
    "features": Run.features,
    "bpe": Run.bpe,
    "teacher": Run.teacher,
    "pseudo_label": Run.pseudo_label,
    "cache": Run.cache,
    "train": Run.train,
    "decode": Run.decode,
    "score": Run.score,
    "export": Run.export,
    "report": Run.report,
}


def name_of(job: Job) -> str:
    """For people and ``--job``: SYSTEM/SEED."""
    return f"{job[0]}/{job[1]}"


def printed(words: Sequence[str]) -> str:
    """One line that runs ``python`` with these words from any folder, in this environment."""
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(portable(words))}"


def _is_decoded(part: Part, job: Job, test_set: str, way: str) -> bool:
    return not (part.progress.why_not_trained(job) or part.progress.why_not_decoded(job, test_set, way))


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

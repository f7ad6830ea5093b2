"""Make what is missing of an experiment: a file that names systems and seeds (rnnt_kd.experiments.definition).

run.sh calls this for its stages 1 to 9, each a step; stage 0 must have made the data directories:
  features  bpe           cuts and the BPE model, EXP_DIR/cuts and EXP_DIR/bpe; all experiments share them
  teacher  train          teachers, students: EXP_DIR/<experiment>/<system>/seed<N>
  pseudo_label  cache     what students need of teachers: the words of unlabelled audio, posteriors for distillation
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

import sys
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from rnnt_kd import choices, files
from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.experiment_steps import STEPS, Part, Run, name_of
from rnnt_kd.data import folds
from rnnt_kd.decoding.lookup import available_searches
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import endpoint
from rnnt_kd.experiments.plan import Places, Plan
from rnnt_kd.experiments.progress import Progress


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    options.add_experiment(parser)
    parser.add_argument("--train-dir", type=Path, help="Kaldi data directory, for the steps features and bpe")
    options.add_train_cuts(parser)
    parser.add_argument("--bpe-model", type=Path, help="of icefall or of another run; else one is made of the text")
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
        "--fold", type=int, metavar="K", help="of an experiment with folds: this one only; the table is of all"
    )
    options.add_allow_pipes(parser)
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
                    fold = ["--fold", str(part.fold)] if part.fold else []
                    print(run.again(*["--cmd="] * bool(args.cmd), "--job", name_of(job), *fold))  # no queue's queue
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
        bpe_model=args.bpe_model,
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
    if _set_name(args.dev_dir) == "train":
        problem = f"'{args.dev_dir}' has the name of the training set's files"
        raise UserError("--dev-dir", problem, "another last part than train", "rename it or link to it")
    others = {"train": None, _set_name(args.dev_dir): args.dev_dir}
    for folder in folders:
        name = _set_name(folder)
        if test_sets[name] != folder or others.get(name, folder) != folder:
            problem = f"two directories have the name '{name}'"
            raise UserError("--test-dirs", problem, "different last parts", "rename one or link to it")


def _words(args, *names: str) -> Tuple[str, ...]:
    """These options as they are given on."""
    return tuple(word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name))))


if __name__ == "__main__":
    main()

"""Stage 9, before the report: what teacher, student and its twin without distillation say on the teacher's lattice.

For each distilled system (its twin is the system that it is compared with; the first seed of each): the utterances
of a test set whose words distillation changed, those that gained most and those that lost most.  Each is run through
the three models, and

  EXPERIMENT_DIR/lattices/<system>/<test set>/<utterance>.{json,npz,mp3}

hold what report/lattice_data.py describes.  With --figures also

  EXPERIMENT_DIR/lattices/<system>/<test set>-figures.json

says over the whole test set where on the lattice the students differ from the teacher.

A system that is not trained or decoded yet is named and omitted.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.stage import Stage
from rnnt_kd.errors import UserError
from rnnt_kd.report.lattice_choice import decodings
from rnnt_kd.report.lattice_data import MODELS, lattices_dir, write_lattice
from rnnt_kd.report.read import twin_of
from rnnt_kd.systems import experiment_folder
from rnnt_kd.systems.experiment_folder import EvaluationSet, ExperimentFolder, ListedSystem
from rnnt_kd.systems.store import weights_file

Trio = Dict[str, ListedSystem]  # keys: MODELS


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--experiment-dir", type=Path, required=True, help="EXP_DIR/EXPERIMENT")
    parser.add_argument("--systems", help="distilled systems; default: all that hear a whole utterance")
    parser.add_argument("--test-set", help="default: the experiment's first")
    parser.add_argument("--search", help="whose decodings are compared; default: the experiment's")
    parser.add_argument("--max-utterances", type=int, default=6, help="pictures of a system")
    parser.add_argument("--max-seconds", type=float, default=12.0, help="longer utterances get no picture")
    parser.add_argument("--figures", action="store_true", help="also figures over all utterances of the test set")
    options.add_allow_pipes(parser)
    options.add_data_root(parser)
    options.add_lattice_backend(parser)
    options.add_device(parser)
    args = parser.parse_args(argv)
    options.check_positive(args, "max_utterances", "num_threads")
    options.check_above_zero(args, "max_seconds")
    about = experiment_folder.read(args.experiment_dir)
    args.test_set, test_set = about.test_set(args.test_set)
    args.search, args.score_events = args.search or about.search, about.score_events

    args.data_dir = _data_dir(args.experiment_dir, test_set)

    import torch

    torch.set_num_threads(args.num_threads)
    for trio in _trios(about, args.systems):
        reason = _why_not(args, trio)
        if reason:
            print(f"lattices of {trio['student'].name} on {args.test_set}: omitted, {reason}", flush=True)
        else:
            _dump(args, trio, test_set.cuts, about.bpe_dir)
            if args.figures:
                _figures(args, trio, test_set.cuts, about.bpe_dir)


def _data_dir(experiment_dir: Path, test_set: EvaluationSet) -> Optional[Path]:
    """Where the audio is that can be heard in the page; None, and a line that says so, where it may not be read."""
    try:
        return experiment_folder.data_dir(experiment_dir, test_set)
    except UserError as error:
        print(f"lattices without sound: {error}", flush=True)
        return None


def _trios(about: ExperimentFolder, wanted: Optional[str]) -> List[Trio]:
    """The distilled systems with their twins and teachers."""
    if wanted is None:
        students = [one for one in about.systems if twin_of(about, one) and one.role != "streaming_student"]
    else:
        students = [about.system(name) for name in dict.fromkeys(wanted.split())]
        if not students:
            raise UserError("--systems", "empty", "at least one name")
    trios = []
    for student in students:
        twin = twin_of(about, student)
        if not twin or student.teacher is None:
            problem = f"'{student.name}' is not compared with a system without distillation"
            raise UserError("--systems", problem, "distilled systems")
        trios.append({"teacher": about.system(student.teacher), "twin": about.system(twin), "student": student})
    return trios


def _why_not(args: argparse.Namespace, trio: Trio) -> str:
    """Why there can be no pictures (yet); "" if there can."""
    for system in trio.values():
        if not system.first.is_dir():
            return f"there is no {system.first}"
        if not weights_file(system.first).exists():
            return f"{system.name} is not trained to the end"
        if args.search not in decodings(system.first, args.test_set):
            return f"{system.name} has not decoded {args.test_set} with {args.search}"
    return ""


def _dump(args: argparse.Namespace, trio: Trio, cuts: Path, bpe_dir: Path) -> None:
    from rnnt_kd.report.make_lattices import make_lattices

    name = trio["student"].name
    recogs = {key: decodings(trio[key].first, args.test_set)[args.search] for key in MODELS}
    folder = lattices_dir(args.experiment_dir, name, args.test_set)
    keys = ("search", "max_utterances", "max_seconds", "allow_pipes", "lattice_backend")
    inputs = [*recogs.values(), bpe_dir / "bpe.model"]
    for system in trio.values():
        inputs += [system.first / "config.yaml", weights_file(system.first)]
    settings = {**{key: getattr(args, key) for key in keys}, **({} if args.score_events else {"events": False})}
    inputs += [] if args.data_dir is None else [args.data_dir / "wav.scp"]
    stage = Stage(folder, f"lattices-{name}-{args.test_set}", settings, inputs, [], [cuts])
    if stage.is_finished():
        return
    items = make_lattices(
        {key: system.first for key, system in trio.items()},
        {key: system.name for key, system in trio.items()},
        recogs,
        cuts,
        bpe_dir,
        test_set=args.test_set,
        search=args.search,
        max_utterances=args.max_utterances,
        max_seconds=args.max_seconds,
        score_events=args.score_events,
        data_dir=args.data_dir,
        allow_pipes=args.allow_pipes,
        device=options.chosen_device(args.device),
        backend_name=args.lattice_backend,
        say=lambda line: print(line, flush=True),
    )
    stage.start()
    for stale in folder.glob("[!.]*"):
        stale.unlink()
    stage.finish([made for item in items for made in write_lattice(folder, item)])
    kinds = [item.chosen for item in items]
    figures = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no word was changed"
    print(f"lattices of {name} on {args.test_set}: {len(items)} utterances ({figures}) -> {folder}", flush=True)


def _figures(args: argparse.Namespace, trio: Trio, cuts: Path, bpe_dir: Path) -> None:
    from rnnt_kd.report.lattice_figures import REGIONS, lattice_figures

    folders = {key: system.first for key, system in trio.items()}
    found = lattice_figures(folders, cuts, bpe_dir, options.chosen_device(args.device), args.lattice_backend)
    folder = lattices_dir(args.experiment_dir, trio["student"].name, args.test_set)
    path = folder.with_name(f"{args.test_set}-figures.json")
    names = {f"name_of_{key}": system.name for key, system in trio.items()}
    atomic.write_json(path, {**names, **found})
    share = found["nodes"]["off"] / max(1, sum(found["nodes"].values()))
    print(f"{found['utterances']} utterances, {share:.0%} of the nodes off the teacher's paths -> {path}")
    for key in ("twin", "student"):
        mine = found[key]
        means = ", ".join(f"{mine['mean_kl'][region]:.3f} {region}" for region in REGIONS)
        blank = f"p(blank) {mine['blank_at_emission']:.3f} where the teacher emits"
        print(f"  {trio[key].name}: KL a node {means}; {blank}", flush=True)


if __name__ == "__main__":
    main()

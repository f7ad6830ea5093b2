"""Stage 1: a Kaldi data directory -> cuts with 80-bin log-mel features.

With --job K, K from 1 to --nj, one of several jobs, here or on other machines, in any order; the last one to end writes
the cuts.  The files do not depend on how many there are; who has nothing to do ends at once.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import (
    add_allow_pipes,
    add_job,
    add_normalization,
    add_surroundings,
    add_unlabelled,
    check_job,
    parser,
    recorded,
    surroundings_of,
)
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data import folds
from rnnt_kd.data.far import Surroundings, surroundings
from rnnt_kd.data.features import archive_digest, compute_features
from rnnt_kd.data.kaldi_dir import TABLES, read_data_dir
from rnnt_kd.data.utterance_audio import MAX_BAD_FRACTION
from rnnt_kd.errors import UserError
from rnnt_kd.text.normalization import FORMS


class FeaturesStage(Stage):
    """The digest of a .lca file is that of the digests of its cuts."""

    def digest(self, name: str) -> str:
        path = self.place(name)
        cuts = self.place(self.outputs[0])
        return archive_digest(cuts, path) if path.suffix == ".lca" else super().digest(name)


def arguments(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """The options."""
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, required=True, help="Kaldi data directory")
    options.add_argument("--out-dir", type=Path, required=True, help="the cuts go to OUT_DIR/NAME.jsonl.gz")
    options.add_argument("--name", required=True, help="train, dev, test ...")
    options.add_argument(
        "--speed-perturb", type=float, nargs="+", default=[1.0], metavar="SPEED", help="one copy for each speed"
    )
    add_job(options, "processes; with --job, of how many jobs this is one")
    add_allow_pipes(options)
    add_unlabelled(options)
    options.add_argument("--far-copies", type=int, default=0, help="of each cut, heard across a room and in noise")
    options.add_argument("--folds", type=int, default=0, help="only speakers of one's own fold babble in far copies")
    add_surroundings(options)
    add_max_bad_fraction(options)
    add_normalization(options)
    args = options.parse_args(argv)
    check_job(args)
    if args.name in ("", ".", "..") or "/" in args.name:
        raise UserError("--name", repr(args.name), "a name without /: the cuts go to OUT_DIR/NAME.jsonl.gz")
    for name in ("far_copies", "folds"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')}", str(getattr(args, name)), "0 or more")
    return args


def make_stage(args: argparse.Namespace) -> Tuple[FeaturesStage, Optional[Surroundings]]:
    """UserError: a defect of the data directory, or of the folders of rooms and noise."""
    data, place = read_data_dir(args.data_dir, args.allow_pipes, unlabelled=args.unlabelled), None
    settings: Dict[str, Any] = {
        name: getattr(args, name) for name in ("speed_perturb", "max_bad_fraction", "normalization")
    }
    if args.far_copies:
        asked = surroundings_of(args)
        settings["far"] = {"copies": args.far_copies, "folds": args.folds, **recorded(asked)}
        groups = folds.divide(folds.count_words(data.utterances), args.folds) if args.folds else []
        place = surroundings(talkers=data, groups=groups, allow_pipes=args.allow_pipes, **asked)
    sources = {entry.id: entry.file[0] for entry in data.recordings.values() if not entry.is_pipe}
    if place is not None:
        sources.update(place.sources())
    stage = FeaturesStage(
        args.out_dir,
        f"features_{args.name}",
        {"data_dir": str(args.data_dir), **settings},
        [args.data_dir / name for name in TABLES],
        [f"{args.name}.jsonl.gz", f"{args.name}_feats", f"{args.name}.left_out.json"],
        sources=sources,
        defaults={"normalization": FORMS[0]},
    )
    return stage, place


@command
def main(argv: Optional[List[str]] = None) -> None:
    args = arguments(argv)
    stage, place = make_stage(args)
    if stage.is_finished():
        return
    summary = compute_features(
        args.data_dir,
        args.out_dir,
        args.name,
        args.speed_perturb,
        args.nj,
        args.allow_pipes,
        args.max_bad_fraction,
        args.normalization,
        surroundings=place,
        far_copies=args.far_copies,
        unlabelled=args.unlabelled,
        job=args.job,
        record=stage,
    )
    if summary is None:
        print(f"features of {args.name}: job {args.job} of {args.nj} has done its part")
        return
    counts = f"{summary.num_cuts} cuts of {summary.num_utterances} utterances"
    print(f"{summary.cuts_path}: {counts}, {summary.hours:.2f} hours")
    if summary.left_out:
        where = args.out_dir / f"{args.name}.left_out.json"
        print(f"left out {len(summary.left_out)} utterances: {shortened(summary.left_out)}; all in {where}")
    if summary.short:
        count, names = len(summary.short), ", ".join(summary.short[:5])
        print(f"{count} recordings end some milliseconds before their headers say, and are taken as they are: {names}")
    for line in summary.large:
        print(f"left out {line}")


def add_max_bad_fraction(options: argparse.ArgumentParser) -> None:
    """``--max-bad-fraction``, for the commands that open audio."""
    text = "more utterances with bad audio than this fraction are an error; fewer are left out"
    options.add_argument("--max-bad-fraction", type=_fraction, default=MAX_BAD_FRACTION, metavar="X", help=text)


def _fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}; expected 0 to 1: 0.05 is 5 %")
    return float(text)


def shortened(reasons: Mapping[str, str]) -> str:
    """The first five of {utterance id: reason}, in words."""
    shown = ", ".join(f"{key} ({reason})" for key, reason in list(reasons.items())[:5])
    return shown + (", ..." if len(reasons) > 5 else "")


if __name__ == "__main__":
    main()

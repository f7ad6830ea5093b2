"""Options that several commands share, and the look of their ``--help``."""

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from rnnt_kd import choices, files
from rnnt_kd.errors import UserError
from rnnt_kd.text.normalization import FORMS


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown where there are any, paragraphs of the description kept."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A wrong option is one line and status 1, as all that a user can put right."""

    def error(self, message):
        self.exit(1, f"error: {message}; see --help\n")


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that takes no abbreviations: a mistyped option is an error.  NaN and infinity are no ``float``."""
    made = _Parser(description=description, formatter_class=_Formatter, allow_abbrev=False)
    made.register("type", float, _finite)
    return made


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def add_train_cuts(target: argparse.ArgumentParser) -> None:
    target.add_argument("--train-cuts", type=Path, help="of Lhotse or in a Shar folder, in the place of stage 1's")


def add_format(target: argparse.ArgumentParser) -> None:
    """``--format``: as ``form``."""
    help = 'of the ONNX files, steps joined by "+": float16, int8 or int4 (rounded), sparse (no zeros): int4+sparse'
    target.add_argument("--format", dest="form", default="float32", metavar="STEPS", help=help)


def add_experiment(target: argparse.ArgumentParser) -> None:
    """``--config --experiment --exp-dir --set``: what says all of a system but its name and seed."""
    target.add_argument("--config", type=Path, required=True, help="preset, egs/<corpus>/conf/<preset>.yaml")
    target.add_argument(
        "--experiment", type=Path, required=True, help="file, egs/<corpus>/conf/experiments/<experiment>.yaml"
    )
    target.add_argument("--exp-dir", type=Path, required=True, help="with cuts/ and bpe/; systems are made there")
    target.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SYSTEM.KEY=VALUE",
        help="a value of the experiment's file, for example sparse90_kd.kd.scale=2; or of the preset: decoding.beam=8",
    )


def add_data_root(target: argparse.ArgumentParser) -> None:
    """``--data-root``: from then on files may name what lies there.  ``--allow-storage``: what Lhotse opens."""

    class Allow(argparse.Action):
        def __call__(self, parser, namespace, value, option_string=None):
            if not value.is_dir():
                raise UserError("--data-root", f"{value} is no folder", "a folder")
            files.allow([value])

    class AllowStorage(argparse.Action):
        def __call__(self, parser, namespace, value, option_string=None):
            files.allow_storage(value)

    target.add_argument(
        "--data-root",
        type=Path,
        action=Allow,
        metavar="DIR",
        help="files (cuts, experiment.json) may name what lies below DIR, too; may be given several times",
    )
    target.add_argument(
        "--allow-storage",
        action=AllowStorage,
        metavar="NAME",
        help="trust the cuts' features of this storage of Lhotse (lilcom_url, kaldiio): it opens the pipes and URLs "
        "that they name; may be given several times",
    )


def add_lattice_backend(target: argparse.ArgumentParser) -> None:
    """``--lattice-backend``."""
    known = ["auto", *choices.names("rnnt_kd.lattice", "_backend")]
    target.add_argument("--lattice-backend", choices=known, default="auto", help="auto: k2 where installed")


def add_device(target: argparse.ArgumentParser) -> None:
    """``--device auto|cpu|cuda`` and ``--num-threads``."""
    target.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one"
    )
    target.add_argument("--num-threads", type=int, default=1, help="CPU threads of one process")


def add_ranks(target: argparse.ArgumentParser) -> None:
    """``--nproc`` and ``--num-nodes``; check them with ``check_positive``."""
    target.add_argument("--nproc", type=int, default=1, help="processes that train a system together, one for each GPU")
    target.add_argument("--num-nodes", type=int, default=1, help="machines with so many processes each, under Slurm")


def add_normalization(target: argparse.ArgumentParser) -> None:
    """``--normalization``."""
    text = "of all texts: Unicode's NFC, or as they are (text.normalization of the preset)"
    target.add_argument("--normalization", choices=FORMS, default=FORMS[0], help=text)


def add_surroundings(target: argparse.ArgumentParser) -> None:
    """``--noise-dir --rir-dir --snr-db --far-seed --keep-apart``: where far speech is heard."""
    target.add_argument("--noise-dir", type=Path, help="Kaldi data directory or tree of audio; else pink and babble")
    target.add_argument("--rir-dir", type=Path, help="the same, of room responses; else rooms are drawn")
    target.add_argument(
        "--snr-db", type=float, nargs=2, default=[2.0, 15.0], metavar=("LOW", "HIGH"), help="of far speech above noise"
    )
    target.add_argument("--far-seed", type=int, default=1, help="of rooms, noise and levels, beside the ids")
    target.add_argument(
        "--keep-apart", type=Path, nargs="*", default=[], metavar="DIR", help="who is tested: not in --noise-dir"
    )


def surroundings_of(args: argparse.Namespace) -> Dict[str, Any]:
    """What these options say, for ``data.far.surroundings``."""
    given = {"noise_dir": args.noise_dir, "rir_dir": args.rir_dir, "apart": args.keep_apart}
    return {"seed": args.far_seed, "snr_db": tuple(args.snr_db), **given}


def recorded(surroundings: Mapping[str, Any]) -> Dict[str, str]:
    """For a record: folders by what is in them, which its sources say; what is kept apart changes nothing."""
    given = {key: "given" if isinstance(value, Path) else str(value) for key, value in surroundings.items()}
    return {key: value for key, value in given.items() if key != "apart"}


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """UserError: a number below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}", str(getattr(args, name)), "1 or more")


def check_above_zero(args: argparse.Namespace, *names: str) -> None:
    """UserError: 0, a number below, or none."""
    for name in names:
        if not getattr(args, name) > 0:
            raise UserError(f"--{name.replace('_', '-')}", str(getattr(args, name)), "a positive number")


def add_batch_seconds(target: argparse.ArgumentParser) -> None:
    """``--batch-seconds``; check it with ``check_above_zero``."""
    target.add_argument("--batch-seconds", type=float, default=120.0, help="audio a batch, padding included")


def add_allow_pipes(target: argparse.ArgumentParser) -> None:
    """``--allow-pipes``."""
    target.add_argument("--allow-pipes", action="store_true", help="run the shell pipes of wav.scp")


def add_unlabelled(target: argparse.ArgumentParser) -> None:
    """``--unlabelled``."""
    target.add_argument("--unlabelled", action="store_true", help="there may be no text")


def add_job(target: argparse.ArgumentParser, nj: str) -> None:
    """``--job`` and ``--nj``; check them with ``check_job``."""
    target.add_argument("--job", type=int, metavar="K", help="make part K of the work, from 1 to --nj")
    target.add_argument("--nj", type=int, default=1, help=nj)


def check_job(args: argparse.Namespace) -> None:
    """UserError: no jobs, or another job than there are."""
    check_positive(args, "nj")
    if args.job is not None and not 1 <= args.job <= args.nj:
        raise UserError("--job", str(args.job), f"1 to {args.nj}, the number of jobs (--nj)")


def without_job(argv: Optional[Sequence[str]]) -> Sequence[str]:
    """``argv`` as ``main`` got it, of the command that does all of the work."""
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith(("--job=", "--nj="))]
    for option in ("--job", "--nj"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return words


def add_bootstrap(target: argparse.ArgumentParser) -> None:
    """``--replications`` and ``--seed``; check them with ``check_bootstrap``."""
    target.add_argument("--replications", type=int, default=10000, help="bootstrap draws")
    target.add_argument("--seed", type=int, default=0, help="of the bootstrap")


def add_ignore_events(target: argparse.ArgumentParser) -> None:
    help = "words in brackets, such as <unk> and [noise], do not count"
    target.add_argument("--ignore-events", action="store_true", help=help)


def check_bootstrap(args: argparse.Namespace) -> None:
    """UserError: no draws, a negative seed, or one of them beyond 32 bits."""
    if not 1 <= args.replications < 2**31 or not 0 <= args.seed < 2**31:
        raise UserError("--replications, --seed", f"{args.replications}, {args.seed}", "at least 1 and 0, below 2^31")


def chosen_device(name: str) -> str:
    """What ``--device`` means on this machine: "cpu" or "cuda".  UserError: cuda without a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", "torch finds no GPU", "a CUDA device", "choose --device cpu")
    return name


def command_line(module: str, argv: Optional[Sequence[str]]) -> str:
    """The command as a user would type it, for the records of a run.  ``argv`` as ``main`` got it."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])

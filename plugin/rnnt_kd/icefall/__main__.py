"""icefall's own train.py, unedited, with a teacher; and what goes with that.

    python -m rnnt_kd.icefall zipformer/train.py --kd-teacher zipformer/exp-large --kd-teacher-epoch 50 \\
        --kd-teacher-avg 26 --kd-scale 1 ...       every other option is train.py's: --world-size 4 --use-fp16 1
    python -m rnnt_kd.icefall cache --help         what a teacher says of the training set, stored once
    python -m rnnt_kd.icefall average --help       the averaged model of a sparse training, with its zeros

To be called where train.py is called, in the environment that icefall runs in.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError


@command
def main(argv: Optional[List[str]] = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["cache"]:
        return _cache(words[1:])
    if words[:1] == ["average"]:
        return _average(words[1:])
    parser = options.parser(__doc__)
    parser.add_argument("train", help="train.py of a recipe, such as zipformer/train.py")
    _add_teacher(parser)
    parser.add_argument("--kd-cache", help="folder made by the command cache, in the place of a teacher")
    parser.add_argument("--kd-missing", choices=["error", "skip"], default="error", help="cuts that it does not have")
    parser.add_argument("--kd-scale", type=float, default=1.0, help="of the distillation term")
    parser.add_argument("--kd-weighting", help="which nodes of the lattice count: docs/method.md")
    parser.add_argument("--kd-variant", default="collapsed", help="what is compared on a node: docs/method.md")
    parser.add_argument("--kd-temperature", type=float, default=1.0)
    parser.add_argument("--kd-shift", type=int, default=0, help="frames by which the teacher's lattice is moved later")
    parser.add_argument(
        "--kd-align", choices=["strict", "crop-pad"], default="strict", help="crop-pad: up to two frames may differ"
    )
    parser.add_argument(
        "--alignment-entropy", type=float, help="scale of the term for greedy search, such as 0.3: docs/method.md"
    )
    parser.add_argument("--sparsity", type=float, help="share of the weights that are 0 in the end, such as 0.9")
    parser.add_argument("--sparsity-ramp", type=int, nargs=2, metavar=("BEGIN", "END"), help="steps of the optimizer")
    parser.add_argument("--sparsity-structure", default="unstructured", help="or blocks: 16x1, 2:4 (docs/sparse.md)")
    parser.add_argument(
        "--sparsity-scope", choices=["per-layer", "global"], default="per-layer", help="global: all matrices compete"
    )
    own, rest = parser.parse_known_args(words)
    if wrong := [word for word in rest if word.startswith(("--kd-", "--sparsity"))]:
        raise UserError(wrong[0], "unknown option", "one of --help")

    _refuse_idle(own, parser)

    from rnnt_kd.icefall.launch import Settings, launch

    names = ("scale", "weighting", "variant", "temperature", "shift", "align", "missing")
    kd = {name: value for name in names if (value := getattr(own, f"kd_{name}")) is not None}
    if own.alignment_entropy:
        kd["alignment_entropy"] = own.alignment_entropy
    sparsity: Optional[Dict[str, Any]] = None
    if own.sparsity is not None:
        if own.sparsity_ramp is None:
            raise UserError("--sparsity", "without a ramp", "--sparsity-ramp BEGIN END", "END is its last step")
        begin, end = own.sparsity_ramp
        sparsity = dict(
            target=own.sparsity, begin=begin, end=end, structure=own.sparsity_structure, scope=own.sparsity_scope
        )
    launch(Settings(own.train, _teacher(own), own.kd_cache, kd, sparsity), rest)


def _refuse_idle(own: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises UserError: an option that does nothing, as the one that it belongs to is not given."""
    for masters, name in (
        (["sparsity"], "sparsity_"), (["kd_teacher"], "kd_teacher_"), (["kd_cache"], "kd_missing"),
        (["kd_teacher", "kd_cache"], "kd_"),
    ):  # fmt: skip
        if all(getattr(own, master) is None for master in masters):
            for given, value in vars(own).items():
                if given.startswith(name) and value != parser.get_default(given):
                    option, missing = (f"--{one.replace('_', '-')}" for one in (given, masters[0]))
                    raise UserError(option, f"does nothing without {missing}", "both, or neither")


def _average(words: List[str]) -> None:
    parser = _parser("average", "The model that decode.py would average, with the zeros of a sparse training.")
    parser.add_argument("exp_dir", type=Path, help="with epoch-N.pt")
    parser.add_argument("--epoch", type=int)
    parser.add_argument("--iter", type=int, help="of checkpoint-N.pt, in the place of --epoch")
    parser.add_argument("--avg", type=int, required=True, help="as for decode.py")
    parser.add_argument("--use-averaged-model", type=_flag, default=True, metavar="BOOL", help="as for decode.py")
    parser.add_argument("--out", type=Path, required=True, help="such as exp-sparse/epoch-99.pt")
    own = parser.parse_args(words)

    from rnnt_kd.icefall.average import write_average

    write_average(own.exp_dir, own.epoch, own.avg, own.iter, own.use_averaged_model, own.out, print)


def _cache(words: List[str]) -> None:
    parser = _parser("cache", "What a teacher says of every utterance, for students that then run no teacher.")
    _add_teacher(parser)
    parser.add_argument("--cuts", type=Path, required=True, help="of icefall's data/fbank, for training")
    parser.add_argument("--bpe-model", type=Path, required=True, help="of teacher and students")
    parser.add_argument("--cache-dir", type=Path, required=True, help="made where it is missing")
    parser.add_argument("--prune-range", type=int, default=5, help="that of the students")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the students' --kd-temperature")
    parser.add_argument("--min-seconds", type=float, default=0.1, help="shorter utterances are left out")
    parser.add_argument("--max-seconds", type=float, default=35.0, help="longer ones, too")
    options.add_job(parser, "jobs that fill the cache together; without --job, this is the first")
    parser.add_argument("--shard-utterances", type=int, default=2000, help="cuts a file")
    options.add_batch_seconds(parser)
    options.add_device(parser)
    options.add_data_root(parser)
    own = parser.parse_args(words)
    options.check_job(own)
    options.check_positive(own, "shard_utterances", "num_threads")
    options.check_above_zero(own, "temperature", "batch_seconds")
    teacher = _teacher(own)
    if teacher is None:
        raise UserError("--kd-teacher", "not given", "a folder of checkpoints, or jit_script.pt")

    from rnnt_kd.icefall.cache import fill_cache

    fill_cache(teacher, own, options.chosen_device(own.device))


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = options.parser(description)
    parser.prog = f"python -m rnnt_kd.icefall {name}"
    return parser


def _add_teacher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kd-teacher", help="folder with its epoch-N.pt, one such file, or jit_script.pt")
    parser.add_argument("--kd-teacher-epoch", type=int)
    parser.add_argument("--kd-teacher-iter", type=int, help="of checkpoint-N.pt, in the place of an epoch")
    parser.add_argument("--kd-teacher-avg", type=int, help="as --avg of decode.py, 1; 0: that checkpoint alone")
    parser.add_argument(
        "--kd-teacher-use-averaged-model", type=_flag, default=True, metavar="BOOL", help="as for decode.py"
    )
    parser.add_argument("--kd-teacher-recipe", help="folder with its train.py, if not the one above its folder")
    parser.add_argument("--kd-teacher-tokens", help="its bpe.model or tokens.txt, if not the one of its checkpoint")
    parser.add_argument(
        "--kd-teacher-set", type=_pair, action="append", default=[], metavar="NAME=VALUE",
        help="an option of its model, in the place of its checkpoint's: chunk_size=32",
    )  # fmt: skip


def _teacher(own: argparse.Namespace):
    from rnnt_kd.icefall.launch import TeacherSettings

    if own.kd_teacher is None:
        return None
    return TeacherSettings(
        own.kd_teacher, own.kd_teacher_epoch, own.kd_teacher_avg, own.kd_teacher_iter,
        own.kd_teacher_use_averaged_model, own.kd_teacher_recipe, dict(own.kd_teacher_set), own.kd_teacher_tokens,
    )  # fmt: skip


def _flag(text: str) -> bool:
    if text.lower() not in ("1", "0", "true", "false"):
        raise UserError("--use-averaged-model", text, "1 or 0")
    return text.lower() in ("1", "true")


def _pair(text: str) -> Tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError("--kd-teacher-set", text, "NAME=VALUE")
    return name, value


if __name__ == "__main__":
    main()

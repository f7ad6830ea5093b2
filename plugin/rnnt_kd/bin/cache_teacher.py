"""Stage 4: what distillation needs of the teacher, computed once for every training utterance.

Runs the teacher over clean features and writes, for each frame, where its pruned lattice starts
and, for each kept node, its posteriors of blank, label and rest (4 * prune_range + 2 bytes a
frame).  Students that read this cache run no teacher.

Prune range, rnnt_type and temperature are those of the students.  The same command again makes what is missing or
damaged; another teacher, BPE model or corpus makes everything anew.
"""

import functools
import sys
from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.config import RNNT_TYPES, TrainingConfig
from rnnt_kd.errors import UserError


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--teacher-dir",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        help="a trained system; of several, their mean posteriors",
    )
    parser.add_argument("--cuts", type=Path, required=True, help="for training: of stage 1, of Lhotse, or Shar")
    parser.add_argument("--bpe-dir", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--cache-dir", type=Path, required=True, help="made where it is missing")
    usual = TrainingConfig()
    parser.add_argument("--prune-range", type=int, default=usual.prune_range, help="kept symbol positions a frame")
    parser.add_argument("--rnnt-type", choices=RNNT_TYPES, default=usual.rnnt_type)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the posteriors")
    parser.add_argument("--min-seconds", type=float, default=usual.min_seconds, help="shorter utterances are left out")
    parser.add_argument("--max-seconds", type=float, default=usual.max_seconds, help="longer ones, too")
    options.add_job(
        parser, "jobs that fill the cache together, also at the same time; without --job, this is the first"
    )
    parser.add_argument("--shard-utterances", type=int, default=2000, help="cuts a file")
    options.add_batch_seconds(parser)
    options.add_lattice_backend(parser)
    options.add_device(parser)
    options.add_data_root(parser)
    arguments = parser.parse_args(argv)
    _check(arguments)

    import torch

    from rnnt_kd.teachers.cache_teacher import CacheSettings, cache_teacher, our_teachers
    from rnnt_kd.text.tokenizer import Tokenizer

    torch.set_num_threads(arguments.num_threads)
    shared = ("prune_range", "rnnt_type", "temperature", "min_seconds", "max_seconds")
    tokenizer, device = Tokenizer.load(arguments.bpe_dir), options.chosen_device(arguments.device)
    cache_teacher(
        our_teachers(arguments.teacher_dir, tokenizer, device),
        arguments.cuts,
        tokenizer,
        arguments.cache_dir,
        CacheSettings(**{name: getattr(arguments, name) for name in shared}),
        shard_utterances=arguments.shard_utterances,
        batch_seconds=arguments.batch_seconds,
        job=arguments.job or 1,
        num_jobs=arguments.nj,
        device=device,
        backend_name=arguments.lattice_backend,
        say=functools.partial(print, file=sys.stderr, flush=True),
    )


def _check(arguments) -> None:
    options.check_job(arguments)
    options.check_positive(arguments, "shard_utterances", "num_threads")
    if arguments.prune_range < 2:
        raise UserError("--prune-range", str(arguments.prune_range), "a whole number >= 2")
    options.check_above_zero(arguments, "temperature", "batch_seconds")
    if not arguments.min_seconds <= arguments.max_seconds:
        raise UserError(
            "--min-seconds", f"{arguments.min_seconds} > {arguments.max_seconds} (--max-seconds)", "at most that"
        )


if __name__ == "__main__":
    main()

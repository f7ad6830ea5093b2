"""ESPnet2's ``asr_transducer`` training with a teacher; and the cache of one.

    python -m rnnt_kd.espnet --config train.yaml --kd_conf teacher_model=exp/teacher/valid.loss.best.pth ...
    python -m rnnt_kd.espnet cache --help        what a teacher says of the training set, stored once

All options of the first but --kd_conf are ESPnet's.  Other tasks and asr.sh: ``rnnt_kd.espnet.run``.
"""

import sys
from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command


@command
def main(argv: Optional[List[str]] = None) -> None:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["cache"]:
        return _cache(words[1:])
    from rnnt_kd.espnet.tasks import KdTransducerTask

    KdTransducerTask.main(cmd=words)


def _cache(words: List[str]) -> None:
    parser = options.parser("What a teacher says of every utterance, for students that then run no teacher.")
    parser.prog = "python -m rnnt_kd.espnet cache"
    parser.add_argument(
        "--teacher-model", required=True, help="of asr_transducer with use_k2_pruned_loss, or with heads"
    )
    parser.add_argument("--teacher-config", default="", help="its config.yaml, where that is not beside it")
    parser.add_argument(
        "--data-path-and-name-and-type", action="append", default=[], metavar="PATH,NAME,TYPE",
        help="twice, as for training: .../wav.scp,speech,sound and .../text,text,text",
    )  # fmt: skip
    parser.add_argument("--cache-dir", type=Path, required=True, help="made where it is missing")
    parser.add_argument("--prune-range", type=int, default=5, help="that of the students")
    parser.add_argument("--temperature", type=float, default=1.0, help="that of the students' kd_conf")
    parser.add_argument("--batch-size", type=int, default=16, help="utterances")
    options.add_job(parser, "parts of the work; without --job, this makes all")
    options.add_device(parser)
    own = parser.parse_args(words)
    options.check_job(own)
    options.check_positive(own, "prune_range", "batch_size", "num_threads")
    options.check_above_zero(own, "temperature")

    from rnnt_kd.espnet.cache import fill_cache

    for job in [own.job] if own.job else range(1, own.nj + 1):
        made = fill_cache(
            own.teacher_model, own.teacher_config, own.data_path_and_name_and_type, own.cache_dir,
            prune_range=own.prune_range, temperature=own.temperature, batch_size=own.batch_size,
            job=job, num_jobs=own.nj, device=options.chosen_device(own.device), num_threads=own.num_threads,
        )  # fmt: skip
        what = "done" if made else "finished already, skipped"
        sys.stderr.write(f"{own.cache_dir}, part {job} of {own.nj}: {what}\n")


if __name__ == "__main__":
    main()

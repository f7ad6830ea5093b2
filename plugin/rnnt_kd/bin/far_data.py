"""A Kaldi data directory like another one, heard across a room and in noise: a far set to test on.

The speakers are those of --data-dir, the ids its own; babble is of the speakers of --train-dir.  The audio (16-bit WAV)
goes to OUT_DIR_audio; the SHA-256 of each file is recorded beside it.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.compute_features import add_max_bad_fraction, shortened
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data import far
from rnnt_kd.data.kaldi_dir import TABLES, read_data_dir


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="Kaldi data directory of clean speech")
    parser.add_argument("--train-dir", type=Path, required=True, help="the one whose speakers babble")
    parser.add_argument("--out-dir", type=Path, required=True, help="made here")
    parser.add_argument("--nj", type=int, default=1, help="processes")
    options.add_allow_pipes(parser)
    add_max_bad_fraction(parser)
    options.add_surroundings(parser)
    args = parser.parse_args(argv)

    data, train = (read_data_dir(folder, args.allow_pipes) for folder in (args.data_dir, args.train_dir))
    asked = options.surroundings_of(args)
    place = far.surroundings(talkers=train, allow_pipes=args.allow_pipes, **asked)
    out_dir, name = args.out_dir.parent, args.out_dir.name
    audio = [*data.recordings.values(), *train.recordings.values()]
    stage = Stage(
        out_dir,
        f"far_{name}",
        {"max_bad_fraction": args.max_bad_fraction, **options.recorded(asked)},
        [folder / name for folder in (args.data_dir, args.train_dir) for name in TABLES],
        [name, f"{name}_audio"],
        sources={**{one.where: one.file[0] for one in audio if not one.is_pipe}, **place.sources()},
    )
    if stage.is_finished():
        return
    stage.start()
    left_out = far.write_far_dir(args.data_dir, args.out_dir, place, args.nj, args.allow_pipes, args.max_bad_fraction)
    stage.finish()
    print(f"{args.out_dir}: {len(data.utterances) - len(left_out)} utterances")
    if left_out:
        print(f"left out {len(left_out)} utterances: {shortened(left_out)}")


if __name__ == "__main__":
    main()

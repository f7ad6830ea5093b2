"""Check Kaldi data directories: ids, order, speakers, segments, and the headers of the audio."""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.compute_features import add_max_bad_fraction, shortened
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_unlabelled, parser
from rnnt_kd.data.check_audio import check_audio
from rnnt_kd.data.kaldi_dir import read_data_dir


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("data_dir", type=Path, nargs="+", metavar="DIR", help="with wav.scp, text, utt2spk")
    options.add_argument(
        "--allow-pipes", action="store_true", help="take shell pipes in wav.scp; they are not run here"
    )
    add_unlabelled(options)
    options.add_argument("--no-audio", action="store_true", help="do not open the audio files")
    add_max_bad_fraction(options)
    args = options.parse_args(argv)
    for path in args.data_dir:
        data = read_data_dir(path, args.allow_pipes, unlabelled=args.unlabelled)
        counts = f"{len(data.utterances)} utterances, {len(data.speakers)} speakers"
        if not args.no_audio:
            check = check_audio(data, args.max_bad_fraction)
            counts += f", {check.seconds / 3600:.2f} hours"
            if check.bad:
                print(
                    f"{path}: {len(check.bad)} utterances have bad audio and will be left out: {shortened(check.bad)}"
                )
        print(f"{path}: {counts}: valid")


if __name__ == "__main__":
    main()

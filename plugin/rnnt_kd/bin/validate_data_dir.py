"""Check Kaldi data directories: ids, order, speakers, segments, and the headers of the audio."""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.data.check_audio import check_audio
from rnnt_kd.data.kaldi_dir import read_data_dir


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("data_dir", type=Path, nargs="+", metavar="DIR", help="with wav.scp, text, utt2spk")
    options.add_argument(
        "--allow-pipes", action="store_true", help="take shell pipes in wav.scp; they are not run here"
    )
    options.add_argument("--no-audio", action="store_true", help="do not open the audio files")
    args = options.parse_args(argv)
    for path in args.data_dir:
        data = read_data_dir(path, args.allow_pipes)
        hours = "" if args.no_audio else f", {check_audio(data) / 3600:.2f} hours"
        print(f"{path}: {len(data.utterances)} utterances, {len(data.speakers)} speakers{hours}: valid")


if __name__ == "__main__":
    main()

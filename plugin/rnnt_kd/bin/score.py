"""Stage 7: word error rates of one decoding.

Reads DECODE_DIR/recogs-<test set>.txt and writes beside it
  errs-<test set>.txt   every utterance with its errors, and the errors sorted by number
  wer-<test set>.txt    the %WER line, the interval, the comparison, the table of speakers
  wer-<test set>.json   the same figures, for programs

With --data-dir the references are held against DATA_DIR/text, and speakers come from its utt2spk
(else from the cuts that were decoded).
With --baseline-decode-dir the same test set, decoded by another system, is compared utterance by
utterance (two-sided p-value, paired bootstrap).
"""

import json
from pathlib import Path
from typing import List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_bootstrap, check_bootstrap, command_line, join, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.error_report import format_errors
from rnnt_kd.scoring.recognitions import check_against_text, check_same_references, read_recogs
from rnnt_kd.scoring.results import describe, read_json, score


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--decode-dir", type=Path, required=True, help="holds recogs-<test set>.txt")
    options.add_argument("--data-dir", type=Path, help="the Kaldi data directory that was decoded")
    options.add_argument(
        "--baseline-decode-dir", type=Path, help="the same test set, decoded by the system to compare with"
    )
    options.add_argument("--test-set", help="which recogs file (needed where there are several)")
    add_bootstrap(options)
    args = options.parse_args(argv)
    check_bootstrap(args)

    recogs = recogs_path(args.decode_dir, args.test_set)
    test_set = recogs.stem[len("recogs-") :]
    baseline_recogs = args.baseline_decode_dir and recogs_path(args.baseline_decode_dir, test_set)
    outputs = [f"errs-{test_set}.txt", f"wer-{test_set}.txt", f"wer-{test_set}.json"]
    kaldi_files = [args.data_dir / name for name in ("text", "utt2spk")] if args.data_dir else []
    decoding = [args.decode_dir / name for name in ("decode.json", f"speakers-{test_set}.json")]
    inputs = [recogs, *([baseline_recogs] if baseline_recogs else []), *kaldi_files, *decoding]
    settings = {"replications": args.replications, "seed": args.seed}
    stage = Stage(args.decode_dir, f"score-{test_set}", settings, inputs, outputs)
    if not stage.is_finished():
        stage.start()
        _score(args, recogs, baseline_recogs, test_set, command_line("rnnt_kd.bin.score", argv))
        stage.finish()
    print((args.decode_dir / f"wer-{test_set}.txt").read_text(encoding="utf-8"), end="")


def _score(args, recogs: Path, baseline_recogs: Optional[Path], test_set: str, typed: str) -> None:
    recognitions = read_recogs(recogs)
    if not any(item.ref for item in recognitions):
        raise UserError(recogs, "no reference holds a word", "at least one", "check the transcripts")
    decode = read_json(args.decode_dir / "decode.json", default={})
    not_decoded: List[str] = []
    utt2spk = read_json(args.decode_dir / f"speakers-{test_set}.json", default={})
    if args.data_dir:
        utterances = read_data_dir(args.data_dir, allow_pipes=True).utterances  # pipes are not run here
        text = {item.id: item.text for item in utterances}
        left_out = decode.get("left_out", {})
        not_decoded = check_against_text(recognitions, text, left_out, recogs, args.data_dir / "text")
        utt2spk = {item.id: item.speaker for item in utterances}
    baseline = read_recogs(baseline_recogs) if baseline_recogs else None
    if baseline:
        check_same_references(recognitions, baseline, recogs, baseline_recogs)
    result = {
        "test_set": test_set,
        "search": decode.get("search"),
        "beam": decode.get("beam"),
        **score(recognitions, utt2spk=utt2spk, baseline=baseline, replications=args.replications, seed=args.seed),
        "baseline": str(args.baseline_decode_dir) if baseline else None,
        "not_decoded": not_decoded,
        "command": typed,
    }
    atomic.write_text(args.decode_dir / f"errs-{test_set}.txt", format_errors(recognitions))
    atomic.write_text(args.decode_dir / f"wer-{test_set}.txt", describe(result))
    atomic.write_text(args.decode_dir / f"wer-{test_set}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def recogs_path(decode_dir: Path, test_set: Optional[str]) -> Path:
    """The recogs file of a folder, the only one where ``test_set`` does not say which."""
    found = sorted(Path(decode_dir).glob("recogs-*.txt"))
    sets = [path.stem[len("recogs-") :] for path in found]
    if test_set in sets:
        return found[sets.index(test_set)]
    if not found:
        raise UserError(decode_dir, "holds no recogs-*.txt", "a folder that decode wrote", "decode first")
    if test_set or len(found) > 1:
        found_text = f"no test set '{test_set}'" if test_set else f"{len(found)} test sets"
        raise UserError(decode_dir, found_text, f"--test-set with one of: {join(sets)}")
    return found[0]


if __name__ == "__main__":
    main()

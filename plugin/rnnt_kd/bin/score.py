"""Stage 7: word error rates of one decoding, or of any recogniser's hypotheses.

Reads DECODE_DIR/recogs-<test set>.txt and writes beside it
  errs-<test set>.txt   every utterance with its errors, and the errors sorted by number
  wer-<test set>.txt    the %WER line, the interval, the comparison, the table of speakers; %CER as well for
                        Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese; and a line "note: ..." where the
                        text is the reason: another case, letters that the BPE model cannot write
  wer-<test set>.json   the same figures, for programs
  wer_0_0.0, scoring_kaldi/{best_wer,wer_details/{per_utt,per_spk,ops}}   in Kaldi's form

In the place of DECODE_DIR, a file of hypotheses may be given: Kaldi's text ("<id> words"), icefall's recogs or
NIST's trn ("words (<id>)").  Then everything is written to the folder <file>.score, the references are those of
DATA_DIR/text, and the test set has DATA_DIR's name.

With --data-dir the references are compared with DATA_DIR/text, and speakers come from its utt2spk
(else from the cuts that were decoded).
With --baseline-decode-dir the same test set, decoded by another system, is compared utterance by
utterance (two-sided p-value, paired bootstrap).  Fewer than 20 utterances, or one speaker alone, have no
interval and no p-value, and a test set without words (noise) has insertions and no rate.
"""

from pathlib import Path
from typing import Dict, List, Optional, Tuple

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_bootstrap, add_ignore_events, check_bootstrap, command_line, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.kaldi_dir import read_table
from rnnt_kd.errors import UserError
from rnnt_kd.scoring import kaldi_files
from rnnt_kd.scoring.bootstrap import LEAST_UTTERANCES
from rnnt_kd.scoring.error_report import format_errors
from rnnt_kd.scoring.hypotheses import read_hypotheses
from rnnt_kd.scoring.recognitions import check_references, check_same_references, read_recogs, words_counted
from rnnt_kd.scoring.results import describe, read_json, score
from rnnt_kd.text.coverage import case_differs
from rnnt_kd.text.normalization import normalized

NOTE = "note: "  # begins a line of wer-*.txt about the text of the test set


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--decode-dir", type=Path, required=True, help="holds recogs-<test set>.txt; or a file of hypotheses"
    )
    options.add_argument("--data-dir", type=Path, help="the Kaldi data directory that was decoded")
    options.add_argument(
        "--baseline-decode-dir",
        type=Path,
        help="the same test set, decoded by the system to compare with; or a file of its hypotheses",
    )
    options.add_argument("--test-set", help="which recogs file (needed where there are several)")
    add_ignore_events(options)
    add_bootstrap(options)
    args = options.parse_args(argv)
    check_bootstrap(args)

    hyps, test_set, out_dir = _source(args.decode_dir, args.test_set, args.data_dir)
    paths = [hyps]
    if args.baseline_decode_dir:
        paths.append(_source(args.baseline_decode_dir, test_set, args.data_dir)[0])
    outputs = [f"errs-{test_set}.txt", f"wer-{test_set}.txt", f"wer-{test_set}.json", *kaldi_files.FILES]
    kaldi_tables = [args.data_dir / name for name in ("text", "utt2spk")] if args.data_dir else []
    decoding = [out_dir / name for name in ("decode.json", f"speakers-{test_set}.json")]
    settings = {"test_set": test_set, "replications": args.replications, "seed": args.seed}
    settings.update({"ignore_events": True} if args.ignore_events else {}, least_utterances=LEAST_UTTERANCES)
    stage = Stage(out_dir, "score", settings, [*paths, *kaldi_tables, *decoding], outputs)
    if not stage.is_finished():
        stage.start()
        _score(args, paths, test_set, out_dir, command_line("rnnt_kd.bin.score", argv))
        stage.finish()
    print((out_dir / f"wer-{test_set}.txt").read_text(encoding="utf-8"), end="")


def _score(args, paths: List[Path], test_set: str, out_dir: Path, typed: str) -> None:
    """``paths``: the hypotheses to score, and those of the baseline where there is one."""
    decode = read_json(out_dir / "decode.json", default={})
    decode = decode if decode.get("test_set", test_set) == test_set else {}  # else of a set that came later
    speakers = {key: str(one) for key, one in read_json(out_dir / f"speakers-{test_set}.json", default={}).items()}
    references: Dict[str, Tuple[str, ...]] = {}
    if args.data_dir:
        text = read_table(args.data_dir / "text", value_may_be_empty=True)
        references = {key: tuple(normalized(value).split()) for key, (value, _) in text.items()}
        if (args.data_dir / "utt2spk").is_file():
            speakers = {key: value for key, (value, _) in read_table(args.data_dir / "utt2spk").items()}
    systems = []
    not_decoded: List[str] = []
    for path in paths:
        is_file = path in (args.decode_dir, args.baseline_decode_dir)
        systems.append(read_hypotheses(path, references, speakers) if is_file else read_recogs(path))
        if args.data_dir:
            left_out = decode.get("left_out", {})
            not_decoded = check_references(systems[-1], path, references, args.data_dir / "text", left_out)
    recognitions, baseline = systems[0], systems[1] if len(systems) > 1 else None
    if any(item.utterance_id not in speakers for item in recognitions):
        speakers = {}  # of some it is not known who they are
    if baseline:
        check_same_references(recognitions, baseline, *paths)
    notes = [decode["unwritable"]] if "unwritable" in decode else []
    if not notes and case_differs((item.ref, item.hyp) for item in recognitions):
        notes.append(f"{test_set}: upper and lower case are not as in the references; change the case of one of them")
    if args.ignore_events:
        notes.append(f"{test_set}: words in brackets, such as <unk> and [noise], do not count (--ignore-events)")
        recognitions, baseline = words_counted(recognitions, False), baseline and words_counted(baseline, False)
    draws = {"replications": args.replications, "seed": args.seed}
    result = {
        "test_set": test_set,
        "search": decode.get("search"),
        "beam": decode.get("beam"),
        **score(recognitions, utt2spk=speakers, baseline=baseline, **draws),
        "baseline": str(args.baseline_decode_dir) if baseline else None,
        "not_decoded": not_decoded,
        "command": typed,
    }
    atomic.write_text(out_dir / f"errs-{test_set}.txt", format_errors(recognitions))
    atomic.write_text(out_dir / f"wer-{test_set}.txt", describe(result) + "".join(f"{NOTE}{note}\n" for note in notes))
    atomic.write_json(out_dir / f"wer-{test_set}.json", result)
    kaldi_files.write_kaldi_files(out_dir, recognitions, speakers, result)


def _source(decoding: Path, test_set: Optional[str], data_dir: Optional[Path]) -> Tuple[Path, str, Path]:
    """The file of hypotheses, the name of the test set, and the folder for the results."""
    if not decoding.is_file():
        path = recogs_path(decoding, test_set)
        return path, path.stem[len("recogs-") :], decoding
    if data_dir is None:
        raise UserError(decoding, "a file of hypotheses", "--data-dir with its references as well")
    name = test_set or data_dir.resolve().name
    if not name or "/" in name:
        raise UserError("--test-set", f"'{name}'", "a name, not a path")
    return decoding, name, decoding.with_name(f"{decoding.name}.score")


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
        raise UserError(decode_dir, found_text, f"--test-set with one of: {', '.join(sets)}")
    return found[0]


if __name__ == "__main__":
    main()

"""Stage 7, beside the word error rate: how much later a system emits its words than another.

Reads recogs-<test set>.txt and tokens-<test set>.jsonl of DECODE_DIR and of BASELINE_DIR (as a rule the
offline teacher's) and writes
  DECODE_DIR/delay-<test set>.json  mean, median and 90 % point of the delay in milliseconds, the 95 %
                                    interval of the mean, and the number of words

Compared are the words that both systems recognised correctly, each by the time of its last token.  What
a streaming system waits for its chunk to fill is not in these times.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_bootstrap, check_bootstrap, command_line, parser
from rnnt_kd.bin.score import recogs_path
from rnnt_kd.bin.stage import Stage
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.bootstrap import LEAST_UTTERANCES
from rnnt_kd.scoring.delay import delay_figures, word_delays
from rnnt_kd.scoring.emissions import Emissions, read_emissions
from rnnt_kd.scoring.recognitions import Recognition, check_same_references, read_recogs
from rnnt_kd.scoring.results import read_json


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--decode-dir", type=Path, required=True, help="what decode wrote for the system")
    options.add_argument(
        "--baseline-decode-dir",
        type=Path,
        required=True,
        metavar="BASELINE_DIR",
        help="the same test set, decoded by the system to compare with",
    )
    options.add_argument("--test-set", help="which recogs file (needed where there are several)")
    add_bootstrap(options)
    args = options.parse_args(argv)
    check_bootstrap(args)

    recogs = recogs_path(args.decode_dir, args.test_set)
    test_set = recogs.stem[len("recogs-") :]
    baseline_recogs = recogs_path(args.baseline_decode_dir, test_set)
    files = [path.with_name(f"tokens-{test_set}.jsonl") for path in (recogs, baseline_recogs)]
    output = args.decode_dir / f"delay-{test_set}.json"
    settings = {"least_utterances": LEAST_UTTERANCES, "replications": args.replications, "seed": args.seed}
    stage = Stage(args.decode_dir, f"delay-{test_set}", settings, [recogs, baseline_recogs, *files], [output.name])
    if not stage.is_finished():
        stage.start()
        recognitions, baseline = read_recogs(recogs), read_recogs(baseline_recogs)
        check_same_references(recognitions, baseline, recogs, baseline_recogs)
        ours, theirs = (_emissions(*pair) for pair in zip(files, (recognitions, baseline)))
        speakers = set(read_json(args.decode_dir / f"speakers-{test_set}.json", default={}).values())
        delays = word_delays(recognitions, ours, theirs)
        figures = delay_figures(delays, args.replications, args.seed, speakers=speakers)
        result = {
            "system": read_json(args.decode_dir / "decode.json", default={}).get("system"),
            "test_set": test_set,
            **figures,
            "baseline": str(args.baseline_decode_dir),
            "command": command_line("rnnt_kd.bin.delay", argv),
        }
        atomic.write_json(output, result)
        stage.finish()
    print(_sentence(read_json(output)))


def _emissions(path: Path, recognitions: List[Recognition]) -> Dict[str, Emissions]:
    """Raises UserError where the file is not of the same decoding as the recognised words."""
    emissions = read_emissions(path)
    for item in recognitions:
        found = emissions.get(item.utterance_id)
        if found is None or found.words != item.hyp:
            what = f'nothing on "{item.utterance_id}"' if found is None else f'other words of "{item.utterance_id}"'
            raise UserError(path, what, "those of the recogs file beside it", "decode again")
    return emissions


def _sentence(result: Dict[str, Any]) -> str:
    counts = f"{result['words']} of {result['reference_words']} words"
    who = f"{result['system'] or 'the system'} on {result['test_set']}"
    if not result["words"]:
        return f"{who}: no delay to tell, no word is right in both ({result['baseline']})"
    interval = "[{:.0f}, {:.0f}]".format(*result["ci95_ms"]) if result["ci95_ms"] else "[too few]"
    return (
        f"{who}: words come {result['mean_ms']:.0f} ms {interval} later in the mean, {result['median_ms']:.0f} in the "
        f"median, 90 % at most {result['p90_ms']:.0f}, than from {result['baseline']} ({counts} right in both)"
    )


if __name__ == "__main__":
    main()

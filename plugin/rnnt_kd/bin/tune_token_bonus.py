"""Choose a system's --token-bonus on its development set, and decode the test sets with it.

The development set is decoded with every bonus of --grid; the one with the fewest errors is taken, of equal ones the
smallest.  Writes to OUT_DIR
  dev_<bonus>/        the decodings of the development set (see rnnt_kd.bin.decode)
  <test set>/         of each test set, with the chosen bonus
  token_bonus.json    {"token_bonus": the chosen one, "errors": {bonus: errors on the development set}}
"""

import inspect
from pathlib import Path
from typing import Dict, List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin import decode, options
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.stage import Stage
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.bootstrap import errors_by_utterance
from rnnt_kd.scoring.recognitions import read_recogs, words_counted
from rnnt_kd.scoring.token_bonus import FILE, GRID, RECORD, best, settings
from rnnt_kd.systems.store import decoding_inputs


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--system-dir", type=Path, required=True, help="holds config.yaml and model.safetensors")
    parser.add_argument("--bpe-dir", type=Path, required=True, help="holds bpe.model")
    parser.add_argument("--dev-cuts", type=Path, required=True, help="cuts of the development set, from stage 1")
    parser.add_argument("--test-cuts", type=Path, nargs="+", required=True, help="NAME.jsonl.gz of each test set")
    parser.add_argument("--out-dir", type=Path, required=True, help="made where it is missing")
    parser.add_argument("--grid", type=float, nargs="+", default=list(GRID), metavar="X", help="bonuses to try")
    parser.add_argument("--beam", type=int, default=4, help="hypotheses an utterance")
    options.add_batch_seconds(parser)
    options.add_ignore_events(parser)
    options.add_normalization(parser)
    options.add_device(parser)
    options.add_data_root(parser)
    args = parser.parse_args(argv)

    sets = {path.name.replace(".jsonl.gz", ""): path for path in args.test_cuts}
    if len(sets) < len(args.test_cuts):
        raise UserError("--test-cuts", "two of one name", "NAME.jsonl.gz, each NAME once", "rename one of them")
    inputs = {}
    for name, path in [("the development set" if "dev" in sets else "dev", args.dev_cuts), *sets.items()]:
        inputs.update(
            {f"{name}: {key}": value for key, value in decoding_inputs(args.system_dir, args.bpe_dir, path).items()}
        )
    asked = settings(args.grid, args.beam, args.ignore_events, args.normalization)
    stage = Stage(args.out_dir, RECORD, asked, inputs, [FILE, *(f"{name}/recogs-{name}.txt" for name in sets)])
    if stage.is_finished():
        return

    def decoded(cuts: Path, name: str, folder: Path, bonus: float) -> Path:
        words: List[object] = ["--system-dir", args.system_dir, "--bpe-dir", args.bpe_dir, "--cuts", cuts]
        words += ["--out-dir", folder, "--test-set", name, "--beam", args.beam, "--token-bonus", bonus]
        words += ["--batch-seconds", args.batch_seconds, "--normalization", args.normalization]
        words += ["--device", args.device, "--num-threads", args.num_threads]
        inspect.unwrap(decode.main)([str(word) for word in words])
        return folder / f"recogs-{name}.txt"

    errors: Dict[float, int] = {}
    for bonus in args.grid:
        items = read_recogs(decoded(args.dev_cuts, "dev", args.out_dir / f"dev_{bonus:g}", bonus))
        errors[bonus] = int(errors_by_utterance(words_counted(items, not args.ignore_events)).sum())
    chosen = best(errors)
    for name, path in sets.items():
        decoded(path, name, args.out_dir / name, chosen)
    stage.start()
    values = {"token_bonus": chosen, "errors": {f"{bonus:g}": number for bonus, number in errors.items()}}
    atomic.write_json(args.out_dir / FILE, values)
    stage.finish()
    print(f"{args.system_dir}: token bonus {chosen:g}, of {values['errors']} errors on the development set")


if __name__ == "__main__":
    main()

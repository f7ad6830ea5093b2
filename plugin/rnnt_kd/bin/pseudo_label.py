"""The training cuts of a student that learns from unlabelled audio, too: with a teacher's words.

Writes OUT.jsonl.gz: the cuts of --cuts as they are, then those of --unlabelled-cuts, copies at other speeds and far
ones included, with the words that their originals have in --decode-dir (made with rnnt_kd.bin.decode --originals).
Those that have text already keep it; those of which the teacher heard nothing are left out, and their share is said.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_data_root, parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.cuts import check_lhotse, parse_line, read_lines
from rnnt_kd.data.features import originals
from rnnt_kd.errors import UserError
from rnnt_kd.record import file_digest
from rnnt_kd.scoring.recognitions import read_recogs


def arguments(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """The options."""
    options = parser(__doc__)
    options.add_argument("--cuts", type=Path, required=True, help="with text, .jsonl.gz of stage 1")
    options.add_argument("--unlabelled-cuts", type=Path, required=True, help="without")
    options.add_argument(
        "--decode-dir", type=Path, help="holds recogs-NAME.txt, NAME as in --unlabelled-cuts NAME.jsonl.gz"
    )
    options.add_argument("--out", type=Path, required=True, help="cuts file to write, .jsonl.gz")
    add_data_root(options)
    return options.parse_args(argv)


def make_stage(args: argparse.Namespace) -> Stage:
    inputs = {"cuts": args.cuts, "unlabelled cuts": args.unlabelled_cuts}
    if args.decode_dir is not None:
        inputs["words"] = _recogs(args)
    name = f"pseudo_labels_{args.out.name.partition('.jsonl')[0]}"
    digests = {key: file_digest(path) for key, path in inputs.items()}
    return Stage(args.out.parent, name, {}, digests, [args.out.name])


@command
def main(argv: Optional[List[str]] = None) -> None:
    args = arguments(argv)
    stage = make_stage(args)
    if stage.is_finished():
        return
    words = {one.utterance_id: " ".join(one.hyp) for one in read_recogs(_recogs(args))} if args.decode_dir else {}
    labelled = {cut["id"]: line for _, line, cut in _cuts(args.cuts)}
    unlabelled = [(where, cut) for where, _, cut in _cuts(args.unlabelled_cuts)]
    original_of = originals([cut["id"] for _, cut in unlabelled])
    lines = [*labelled.values()]
    for where, cut in unlabelled:
        if cut["id"] in labelled:
            raise UserError(where, f'"{cut["id"]}" is labelled, too, in {args.cuts}', "other utterances", "rename them")
        supervision = cut["supervisions"][0]
        original = original_of[cut["id"]]
        text = supervision.get("text") or words.get(original, "" if args.decode_dir is None else None)
        if text is None:
            raise UserError(where, f'nobody decoded "{original}"', "words, perhaps none", "decode these cuts again")
        if text:
            supervision["text"] = text
            lines.append(json.dumps(cut, ensure_ascii=False).encode() + b"\n")
    silent = len(labelled) + len(unlabelled) - len(lines)
    if silent == len(unlabelled):
        problem = f"the teacher heard no word in any of {silent} cuts"
        raise UserError(args.unlabelled_cuts, problem, "speech of its language", "leave --unlabelled-dir away")
    stage.start()
    atomic.write_bytes(args.out, gzip.compress(b"".join(lines), compresslevel=6, mtime=0))
    stage.finish()
    share = f"{silent} of these ({100 * silent / len(unlabelled):.1f} %) without a word, left out"
    print(f"{args.out}: {len(labelled)} labelled cuts, {len(unlabelled)} unlabelled, {share}")


def _recogs(args: argparse.Namespace) -> Path:
    return args.decode_dir / f"recogs-{args.unlabelled_cuts.name.partition('.jsonl')[0]}.txt"


def _cuts(path: Path) -> Iterator[Tuple[str, bytes, Dict[str, Any]]]:
    """Place, line and contents of each cut.  UserError: not such a file."""
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}:{number}"
        cut = parse_line(line, where)
        check_lhotse(parse_line(line, where), where)
        yield where, line, cut


if __name__ == "__main__":
    main()

"""The training cuts of a student that learns from unlabelled audio, too: with a teacher's words.

Writes OUT.jsonl.gz: the cuts of --cuts as they are, then those of --unlabelled-cuts, copies at other speeds and far
ones included, with the words that their originals have in --words (of rnnt_kd.bin.decode --originals), or, without
--words, with the text that they have.  Those without a word are left out, and their share is said.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_data_root, parser
from rnnt_kd.experiments.pseudo_labels import Sources, write


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--cuts", type=Path, required=True, help="with text, .jsonl.gz of stage 1")
    options.add_argument("--unlabelled-cuts", type=Path, required=True, help="without")
    options.add_argument("--words", type=Path, help="recogs-unlabelled.txt of a teacher")
    options.add_argument("--out", type=Path, required=True, help="cuts file to write, .jsonl.gz")
    add_data_root(options)
    args = options.parse_args(argv)
    sources = Sources(args.cuts, args.unlabelled_cuts, args.words)
    record = sources.record(args.out)
    if not record.why_not():
        return print(f"{args.out}: finished already, skipped")
    record.start()
    written = write(sources, args.out)
    record.finish()
    share = f"{written.silent} of these ({100 * written.silent / written.unlabelled:.1f} %) without a word, left out"
    print(f"{args.out}: {written.labelled} labelled cuts, {written.unlabelled} unlabelled, {share}")


if __name__ == "__main__":
    main()

"""Stage 7, the end: the table of all systems of an experiment.

Reads EXP_DIR/teacher and EXP_DIR/students/*, prints the table, and writes EXP_DIR/summary.md (the same) and
EXP_DIR/summary.json (a list of objects, one a row).  What is not finished is in it and says so.
"""

import json
from pathlib import Path
from typing import List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import command_line, parser
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.summary import collect, markdown


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--exp-dir", type=Path, required=True, help="the experiment")
    options.add_argument(
        "--test-sets", required=True, help='names of the test sets, for example "test_clean test_other"'
    )
    options.add_argument(
        "--systems", default="", help='names of the systems that should be there, for example "teacher small small_kd"'
    )
    options.add_argument("--corpus", help="name of the corpus; the folder's name where it is not given")
    args = options.parse_args(argv)
    if not args.exp_dir.is_dir():
        raise UserError(args.exp_dir, "no such folder", "an experiment", "run the stages before")
    test_sets = args.test_sets.split()
    if not test_sets:
        raise UserError("--test-sets", "empty", "at least one name")
    rows = collect(args.exp_dir, test_sets, args.systems.split())
    corpus = args.corpus or args.exp_dir.resolve().name
    own_command = command_line("rnnt_kd.bin.summarize", argv)
    atomic.write_text(args.exp_dir / "summary.md", markdown(rows, corpus, [own_command]))
    values = [row.values for row in rows]
    atomic.write_text(args.exp_dir / "summary.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    print(markdown(rows, corpus), end="")


if __name__ == "__main__":
    main()

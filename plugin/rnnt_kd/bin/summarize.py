"""Stage 7, the end: the table of all systems of an experiment.

Reads EXP_DIR/teacher and EXP_DIR/students/*, prints the table, and writes EXP_DIR/summary.md (the same) and
EXP_DIR/summary.json (a list of objects, one a row).  What is not finished is in it and says so.
"""

import json
from typing import List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_results, check_results, command_line, parser
from rnnt_kd.scoring.summary import collect, markdown


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    add_results(options)
    args = options.parse_args(argv)
    check_results(args)
    test_sets = args.test_sets.split()
    rows = collect(args.exp_dir, test_sets, args.systems.split())
    corpus = args.corpus or args.exp_dir.resolve().name
    own_command = command_line("rnnt_kd.bin.summarize", argv)
    atomic.write_text(args.exp_dir / "summary.md", markdown(rows, corpus, [own_command]))
    values = [row.values for row in rows]
    atomic.write_text(args.exp_dir / "summary.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    print(markdown(rows, corpus), end="")


if __name__ == "__main__":
    main()

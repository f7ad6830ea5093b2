"""Write a cuts file whose cuts carry their teacher's posteriors, from a finished cache.

Each cut of OUT has a custom array, kd: where its frames lie in the cache, not a copy.  Lhotse passes it on and reads it
(cut.load_kd(), after importing rnnt_kd.data.stored_frames; SharWriter(fields={"kd": "numpy", ...}) copies it).
A student that is given such cuts and no cache is trained from them, to the same bits.
"""

import sys
from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--cuts", type=Path, required=True, help="Lhotse's cuts, .jsonl or .jsonl.gz")
    parser.add_argument("--kd-cache", type=Path, required=True, help="folder of stage 4")
    parser.add_argument("--out", type=Path, required=True, help="cuts file to write")
    parser.add_argument(
        "--missing", choices=["error", "skip"], default="error", help="cuts that the cache does not have"
    )
    args = parser.parse_args(argv)

    from rnnt_kd.teachers.cache import TeacherCache
    from rnnt_kd.teachers.carried import attach_to_file

    cache = TeacherCache.open(args.kd_cache, partial=args.missing == "skip")
    count, lacking = attach_to_file(args.cuts, cache, args.out, args.missing)
    without = f", {lacking} of them without a teacher" if lacking else ""
    print(f"{args.out}: {count} cuts{without}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

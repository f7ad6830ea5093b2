"""Read all of a teacher's cache once, and name what is not as stage 4 wrote it.

A training reads what it needs and holds each utterance against its digest; this finds out before.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("cache_dir", type=Path, help="folder of stage 4")
    args = parser.parse_args(argv)

    from rnnt_kd.teachers.cache import TeacherCache

    cache = TeacherCache.open(args.cache_dir)
    cache.verify()
    print(f"{args.cache_dir}: whole, {len(cache)} utterances")


if __name__ == "__main__":
    main()

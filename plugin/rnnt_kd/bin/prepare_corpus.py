"""Stage 0: a corpus -> Kaldi data directories, checked.

``--corpus NAME`` is the module ``rnnt_kd/data/corpora/NAME.py``.
"""

import argparse
import os
from pathlib import Path
from types import ModuleType
from typing import Dict, List, Optional

from filelock import FileLock, Timeout

from rnnt_kd import choices
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.bin.stage import Stage
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--corpus", required=True, help="name of a module in rnnt_kd/data/corpora")
    options.add_argument("--corpus-dir", type=Path, help="the corpus as its owner distributes it")
    options.add_argument("--out-dir", type=Path, required=True, help="the data directories are made in this folder")
    options.add_argument("--seed", type=int, default=1, help="for splits and synthesis")
    options.add_argument("--nj", type=int, default=1, help="processes, where the corpus module can use them")
    options.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="for the corpus module; repeatable"
    )
    args = options.parse_args(argv)

    module, pairs = choices.load("rnnt_kd.data.corpora", args.corpus, what="--corpus"), {}
    for item in args.option:
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise UserError("--option", f'found "{item}"', "KEY=VALUE")
        if key not in module.OPTIONS:
            raise UserError("--option", f"corpus {args.corpus} has no option {key}", ", ".join(module.OPTIONS))
        pairs[key] = value

    settings = {"corpus": args.corpus, "corpus_dir": str(args.corpus_dir or ""), "seed": args.seed, "options": pairs}
    place = {"out_dir": os.path.realpath(args.out_dir)}  # wav.scp names it
    stage = Stage(args.out_dir, "corpus", {**settings, **place}, inputs=[], outputs=[], defaults=place)
    if stage.is_finished():
        return
    out_dir = args.out_dir.absolute()
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(out_dir.with_name(f".{out_dir.name}.lock")), timeout=0):
            _prepare(module, args, pairs, stage)
    except Timeout:
        advice = "wait for it, or choose another folder"
        raise UserError(args.out_dir, "another process is making this corpus", "one at a time", advice) from None


def _prepare(module: ModuleType, args: argparse.Namespace, pairs: Dict[str, str], stage: Stage) -> None:
    stage.start()
    if "num_jobs" in module.OPTIONS:
        pairs.setdefault("num_jobs", str(args.nj))
    made = module.prepare(args.corpus_dir, args.out_dir, seed=args.seed, options=pairs)
    for path in made:
        data = read_data_dir(path, allow_pipes=True)
        print(f"{path}: {len(data.utterances)} utterances, {len(data.speakers)} speakers")
    out_dir = args.out_dir.resolve()
    stage.finish(str(Path(path).resolve().relative_to(out_dir) / "wav.scp") for path in made)


if __name__ == "__main__":
    main()

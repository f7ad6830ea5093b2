"""The ONNX files of icefall's export-onnx.py, checked and made smaller: int8, float16, without their zeros.

Writes to OUT  encoder.onnx decoder.onnx joiner.onnx tokens.txt, which sherpa-onnx loads in the place of the originals.
Without --int8 and --float16 every output stays bit for bit what it was; else the largest relative difference is said.
"""

import functools
import sys
from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.errors import UserError


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="with encoder-*.onnx, decoder-*.onnx, joiner-*.onnx in float32")
    options.add_argument("--tokens", type=Path, required=True, help="tokens.txt of the recipe")
    options.add_argument("--out", type=Path, required=True, help="the folder to make")
    options.add_argument("--int8", action="store_true", help="weights as 8-bit integers")
    options.add_argument("--float16", action="store_true", help="weights stored as float16, computed in float32")
    options.add_argument("--sparse", action="store_true", help="zeros are left out of the files")
    args = options.parse_args(argv)
    if args.int8 and args.float16:
        raise UserError("--int8 --float16", "both are given", "one of them")

    from rnnt_kd.export import formats, of_icefall

    form = formats.name_of("int8" if args.int8 else "float16" if args.float16 else formats.BASE, args.sparse)
    say = functools.partial(print, file=sys.stderr, flush=True)
    found = of_icefall.shrink(args.folder, args.tokens, args.out, form, say)
    say(f"{args.out}: against the originals, " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))


if __name__ == "__main__":
    main()

"""The ONNX files of icefall's export-onnx.py, checked and made smaller: int8, int4, float16, without zeros.

Writes to OUT  encoder.onnx decoder.onnx joiner.onnx tokens.txt, which sherpa-onnx loads in the place of the originals.
Where no weight is rounded every output stays bit for bit what it was; else the largest relative difference is said.
"""

import functools
import sys
from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_format, parser


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("folder", type=Path, help="with encoder-*.onnx, decoder-*.onnx, joiner-*.onnx in float32")
    options.add_argument("--tokens", type=Path, required=True, help="tokens.txt of the recipe")
    options.add_argument("--out", type=Path, required=True, help="the folder to make")
    add_format(options)
    args = options.parse_args(argv)

    from rnnt_kd.export import of_icefall

    say = functools.partial(print, file=sys.stderr, flush=True)
    found = of_icefall.shrink(args.folder, args.tokens, args.out, args.form, say)
    say(f"{args.out}: against the originals, " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))


if __name__ == "__main__":
    main()

"""A system's folder again from an export, to decode with.

Every weight that decoding uses comes back bit for bit; anything that differs from what the export's
model.json holds (a checksum, the vocabulary, a shape, a version) is an error, and so are int8 and float16.
Heads that only training uses are in no export, so the folder can be no teacher.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("export_dir", type=Path, metavar="DIR", help="what python -m rnnt_kd.bin.export wrote")
    options.add_argument("--system-dir", type=Path, required=True, help="the folder to make")
    args = options.parse_args(argv)
    from rnnt_kd.export.import_back import import_export  # its packages are optional

    manifest = import_export(args.export_dir, args.system_dir)
    print(
        f"{manifest['system']}: {len(manifest['parameters'])} tensors, all as exported -> {args.system_dir} "
        f"(decode with --bpe-dir {args.export_dir})"
    )


if __name__ == "__main__":
    main()

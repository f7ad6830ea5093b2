"""Keep a system's weights without their zeros, bit for bit.

Writes SYSTEM_DIR/model.packed.safetensors beside model.safetensors (or, with --unpack, the other way round), unpacks
it and compares every byte.  Every command that decodes, scores or exports a system takes either file; training wants
model.safetensors of its teacher.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.errors import UserError
from rnnt_kd.record import file_digest
from rnnt_kd.systems.packed import PACKED, packed_digest, unpacked_bytes, write_packed
from rnnt_kd.systems.store import FINAL, read_system, read_tensors


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("system_dir", type=Path, metavar="SYSTEM_DIR", help="a trained system")
    options.add_argument("--unpack", action="store_true", help=f"write {FINAL} from {PACKED}")
    options.add_argument("--remove", action="store_true", help="remove the file that was read, once all is compared")
    args = options.parse_args(argv)
    read_system(args.system_dir)
    dense, packed = args.system_dir / FINAL, args.system_dir / PACKED
    if args.unpack:
        if dense.exists() and file_digest(dense) != packed_digest(packed):
            problem = f"holds other weights than {packed.name}"
            raise UserError(dense, problem, "none, or the same", "remove the one of both that is not wanted")
        atomic.write_bytes(dense, unpacked_bytes(packed))
    else:
        read_tensors(dense, "pack a system that is trained to the end")  # a damaged one is one line
        write_packed(packed, dense.read_bytes())
        assert unpacked_bytes(packed) == dense.read_bytes(), "packing changed a weight"
    before, after = dense.stat().st_size, packed.stat().st_size
    if args.remove:
        (packed if args.unpack else dense).unlink()
    print(f"{args.system_dir.name}: {FINAL} {before} bytes, {PACKED} {after} bytes, {before / after:.2f} times smaller")


if __name__ == "__main__":
    main()

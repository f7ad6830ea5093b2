"""``model.packed.safetensors``: a system's weights without their zeros, bit for bit.

A safetensors file like any other.  A tensor that packing makes smaller is there as ``<name>:bits`` and
``<name>:values`` (see ``sparsity.packed_weights``), all others as they are.  The header's metadata hold

    packed_weights  "1", the version
    shapes          JSON: name -> shape, of the packed tensors
    sha256          of the model.safetensors that was packed
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Dict

import safetensors
import safetensors.torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.sparsity.packed_weights import pack_all, unpack

PACKED = "model.packed.safetensors"
VERSION = "1"
_AGAIN = "pack the weights again, or move the folder away and train again"
BITS, VALUES = ":bits", ":values"


def write_packed(path: Path, content: bytes) -> None:
    """Pack the bytes of a ``model.safetensors``."""
    tensors = safetensors.torch.load(content)
    packed = pack_all(tensors)
    stored = {name: tensor for name, tensor in tensors.items() if name not in packed}
    for name, (bits, values) in packed.items():
        stored[name + BITS], stored[name + VALUES] = bits, values
    shapes = {name: list(tensors[name].shape) for name in packed}
    metadata = {
        "packed_weights": VERSION,
        "shapes": json.dumps(shapes, separators=(",", ":"), sort_keys=True),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    atomic.write_bytes(path, _in_order(safetensors.torch.save(stored, metadata)))


def _in_order(content: bytes) -> bytes:
    """The same file with the keys of its metadata sorted: safetensors writes them in any order."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(size) + content[8 + size :]


def read_packed(path: Path) -> Dict[str, Tensor]:
    """The tensors that were packed, whole again.

    Raises:
      UserError: missing, damaged, of another version, or it does not unpack to what was packed.
    """
    return safetensors.torch.load(unpacked_bytes(path))


def packed_digest(path: Path) -> str:
    """SHA-256 of the ``model.safetensors`` that was packed, as the file says.  Raises UserError: as ``read_packed``."""
    return str(_read(path)[0].get("sha256"))


def unpacked_bytes(path: Path) -> bytes:
    """The very ``model.safetensors`` that was packed.  Raises UserError: as ``read_packed``."""
    metadata, stored = _read(path)
    try:
        shapes = parse_json(metadata["shapes"])
        packed = {
            name: unpack(stored.pop(name + BITS), stored.pop(name + VALUES), tuple(shape))
            for name, shape in shapes.items()
        }
        content = safetensors.torch.save({**stored, **packed})
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        raise _damaged(path) from None
    if hashlib.sha256(content).hexdigest() != metadata.get("sha256"):
        raise UserError(path, "does not unpack to what was packed", "its own SHA-256", _AGAIN)
    return content


def _read(path: Path) -> Any:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        next_step = "write them with python -m rnnt_kd.bin.pack_weights"
        raise UserError(path, "missing", "packed weights", next_step) from None
    try:
        tensors = safetensors.torch.load(content)
        (length,) = struct.unpack_from("<Q", content)
        metadata = parse_json(content[8 : 8 + length]).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, struct.error):
        raise _damaged(path) from None
    if metadata.get("packed_weights") != VERSION:
        problem = f"packed_weights version {metadata.get('packed_weights')!r}"
        raise UserError(path, problem, repr(VERSION), "use the rnnt_kd that wrote it, or pack the weights again")
    return metadata, tensors


def _damaged(path: Path) -> UserError:
    return UserError(path, "damaged or not packed weights", "a file of pack_weights", _AGAIN)

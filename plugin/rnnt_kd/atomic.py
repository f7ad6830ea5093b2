"""Files that are either whole or absent, whatever kills the process.

Written to a temporary name in the same folder, flushed to the disk, renamed.  What a process that was killed left there
goes when the same is written again.
"""

import contextlib
import glob
import json
import os
import platform
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, Iterator

from rnnt_kd.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``; a reader sees the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path), suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of ``text`` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, values: Any, sort_keys: bool = False) -> None:
    """``values`` of JSON's types, a line each, for people, too."""
    write_text(path, json.dumps(values, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def replace_dir(made: Path, final: Path) -> None:
    """Put the finished folder ``made`` in the place of ``final`` (same file system)."""
    made, final = Path(made), Path(final)
    retired = final.with_name(f".{final.name}.retired")
    if retired.is_symlink():  # an earlier version's
        retired.unlink()
    shutil.rmtree(retired, ignore_errors=True)
    if final.exists():
        os.replace(final, retired)
    os.replace(made, final)
    shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def new_dir(final: Path) -> Iterator[Path]:
    """A hidden folder beside ``final`` to write into, which takes its place in the end; gone where the block fails.

    Where ``final`` is a link, so it stays: what it leads to is replaced.

    Raises UserError: ``final`` is the folder that the command runs in, or one above.
    """
    here = Path.cwd()
    if final.resolve() in (here, *here.parents):
        problem = "the folder that this runs in, or one above it"
        raise UserError(
            final, problem, "another folder", "it is written anew as a whole: go elsewhere, or name another"
        )
    final = final.resolve() if final.is_symlink() else final
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=final.parent, prefix=temporary_prefix(final), suffix=".tmp"))
    try:
        made.chmod(0o777 & ~_umask())
        yield made
        replace_dir(made, final)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def temporary_prefix(final: Path) -> str:
    """Of this process's temporary names for ``final``; those of dead processes of this machine are removed."""
    mine = f".{final.name}.{zlib.crc32(platform.node().encode()):08x}-"
    for other in final.parent.glob(f"{glob.escape(mine)}*.tmp"):
        number = other.name[len(mine) :].partition(".")[0]
        if number.isdigit() and not _is_alive(int(number)):
            shutil.rmtree(other, ignore_errors=True)
            with contextlib.suppress(OSError):
                other.unlink()
    return f"{mine}{os.getpid()}."


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""The one reader of text files that people write, as their programs leave them.

UTF-8; a byte order mark at the start is skipped; a line ends with LF or CR LF, or with CR where there is no LF.
"""

import bz2
import errno
import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

from rnnt_kd.errors import UserError

_LONGEST_LINE = 1 << 20  # bytes, of a file that is read line by line
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_IN_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, expected: str = "UTF-8 text", next_step: str = "check the path") -> str:
    """A whole file; its lines end with LF alone.

    Args:
      expected, next_step: what the file should be and what to do, for the errors.
    Raises:
      UserError: no such file, no file, one that may not be read, is compressed, or is not UTF-8 (the line is named).
    """
    content = _opened(path, expected, next_step, lambda file: file.read_bytes())
    if content.startswith(tuple(_COMPRESSED)):
        raise UserError(path, "is compressed", expected, "unpack it first")
    text = _decoded(content, path)
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")


def text_lines(path: Path, expected: str, next_step: str = "check the file") -> Iterator[Tuple[str, str]]:
    """("file:line", line without its end) of a file that gzip, bzip2 or xz may have compressed, one after the other.

    Raises: UserError as ``read_text``; a damaged archive, and a line that no text file has.
    """
    start = _opened(path, expected, next_step, _first_bytes)
    unpack: Any = next((_COMPRESSED[mark] for mark in _COMPRESSED if start.startswith(mark)), open)
    try:
        with unpack(path, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE), b""), 1):
                where = f"{path}:{number}"
                if len(line) == _LONGEST_LINE:
                    raise UserError(where, f"has more than {_LONGEST_LINE} bytes", expected, next_step)
                yield where, _decoded(line, path, number).rstrip("\r\n")
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise UserError(path, f"is damaged ({error})", expected, "copy it again") from None


def _opened(path: Path, expected: str, next_step: str, read: Callable[[Path], bytes]) -> bytes:
    try:
        return read(Path(path))
    except FileNotFoundError:
        raise UserError(path, "no such file", expected, next_step) from None
    except IsADirectoryError:
        raise UserError(path, "is a folder", expected, next_step) from None
    except PermissionError:
        raise UserError(path, "cannot be read: permission denied", "a readable file") from None
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
            raise
        raise UserError(f"{path!s:.200}", f"no such file ({error.strerror})", expected, next_step) from None


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(8)


def _decoded(content: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        where = f"{path}:{first_line + content[: error.start].count(10)}"
    if first_line == 1 and content.startswith(_IN_UTF16):
        raise UserError(path, "is not UTF-8 but UTF-16", "UTF-8 text", "run: iconv -f UTF-16 -t UTF-8")
    raise UserError(where, "is not UTF-8", "UTF-8 text", "convert it, for example with iconv")

"""What a file says is data: the one door for paths that stand in files, and bounds for what files claim.

A path that came out of a file opens nothing but a plain file (or a folder of such) that lies, links followed, in the
folder of the file that names it, or below a folder that the user named with ``--data-root``.  No pipe, no URL, no
device.  Paths that the user writes (options, ``wav.scp``) do not come here, nor do features of a storage that the user
named with ``--allow-storage``: Lhotse opens those, whatever they name.
"""

import errno
import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any, Callable, Iterable, List, Optional, TypeVar, Union

from rnnt_kd.errors import UserError

DATA_ROOTS = "RNNT_KD_DATA_ROOT"  # of the environment, for the commands that a command starts: a JSON list
STORAGES = "RNNT_KD_ALLOW_STORAGE"  # likewise
PAUSE_SECONDS, MOST_PAUSES = 0.5, 20  # for a file that comes late
Value = TypeVar("Value")
_ELSEWHERE = "to use it, name a folder that holds it with --data-root"
_PIPE, _URL = re.compile(r"pipe:|\s*\||.*\|\s*\Z", re.DOTALL), re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def allow(folders: Iterable[Path]) -> None:
    """From now on files may name what lies below ``folders``, in this process and in those that it starts."""
    named = dict.fromkeys([*_roots(), *(os.path.realpath(folder) for folder in folders)])
    os.environ[DATA_ROOTS] = json.dumps(list(named))


def allow_storage(name: str) -> None:
    """From now on features of Lhotse's storage ``name`` are opened by Lhotse, here and in started processes."""
    os.environ[STORAGES] = json.dumps([*dict.fromkeys([*allowed_storages(), name])])


def allowed_storages() -> List[str]:
    return list(map(str, json.loads(os.environ.get(STORAGES) or "[]")))


def named_in(
    file: Path, name: object, *, within: Optional[Path] = None, exists: bool = True, next_step: str = _ELSEWHERE
) -> Path:
    """The plain file or folder that ``name`` means where it stands in ``file``, all links followed.

    Args:
      file:   that names it; a relative ``name`` is relative to its folder, or where nothing is there, to one that the
              user named.
      within: the folder that it must lie in, where that is not the file's.
      exists: False where it may be missing.
    Raises:
      UserError: a pipe, URL or device; outside of the folder and of every ``--data-root``; not there.
    """
    file = Path(file)
    if not isinstance(name, (str, Path)) or not str(name) or "\0" in str(name):
        raise UserError(file, f"names {str(name)!r:.80}", "the path of a file")
    for pattern, kind in ((_PIPE, "a shell pipe"), (_URL, "a URL")):
        if pattern.match(str(name)):
            raise UserError(file, f"names '{str(name):.200}', {kind}", "the path of a plain file; it was not opened")
    folders = [within] if within else [file.parent, Path(os.path.realpath(file)).parent]
    places = [Path(os.path.realpath(Path(str(folder)) / str(name))) for folder in (file.parent, *_roots())]
    path, roots = next(filter(os.path.exists, places), places[0]), [*map(os.path.realpath, folders), *_roots()]
    if not any(Path(root) in (path, *path.parents) for root in roots):
        raise UserError(file, f"names {name}, which is not below {folders[0]}", "a file there", next_step)
    try:
        mode = path.stat().st_mode
    except OSError as error:  # not there, a circle of links, a name too long
        if not exists and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return path
        raise UserError(f"{path!s:.300}", "no such file", f"what {file} names", next_step) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(file, f"names {name}, a device or pipe", "a plain file; it was not opened")
    return path


def parse_json(text: Union[str, bytes], parse_constant: Optional[Callable[[str], Any]] = None) -> Any:
    """The values of JSON text.  ValueError: it is none, or nested deeper than any file of ours.

    ``parse_constant``: what to make of NaN, Infinity and -Infinity, if not numbers.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def bytes_at(path: Union[str, Path], begin: int, size: int) -> bytes:
    """``size`` bytes from ``begin`` on, fewer where the file ends; no more memory is asked for than it could fill."""
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(min(size, os.fstat(file.fileno()).st_size))


def patiently(attempt: Callable[[], Value]) -> Value:
    """``attempt()``, again while the file is not there: on a network disk one may come seconds after its name."""
    for pause in (*[PAUSE_SECONDS] * MOST_PAUSES, None):
        try:
            return attempt()
        except OSError as error:
            if pause is None or error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        time.sleep(pause)
    raise AssertionError


def _roots() -> List[str]:
    return list(map(str, json.loads(os.environ.get(DATA_ROOTS) or "[]")))

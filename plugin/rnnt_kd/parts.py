"""Work in parts: several jobs, also on several machines, each make some of them; who makes the last puts all together.

    parts = Parts(folder, "decode-test", key, count)
    for index in parts.missing(job, num_jobs):
        parts.write(index, values)
    with parts.lock():
        if not parts.missing():
            together(parts.read())
            parts.remove()

Which parts there are depends on the work, not on the number of jobs: so neither does the result.  A part lies in a
hidden folder beside the result, whose name tells what it is made of; a job that is killed loses the one it was making.
"""

import glob
import json
import shutil
from pathlib import Path
from typing import Any, Iterator, List, Optional

from filelock import FileLock

from rnnt_kd import atomic
from rnnt_kd.files import parse_json


def are_left(folder: Path, name: str) -> bool:
    """Are there parts of this work that nobody has put together?"""
    return any(Path(folder).glob(f".{glob.escape(name)}.parts-*"))


class Parts:
    """``count`` parts of the work ``name`` in ``folder``; ``key``: a digest of what they are made of.

    Attributes:
      dir: the folder of the parts; ``beside(index)``, where given, names a file in it that belongs to a part.
    """

    def __init__(self, folder: Path, name: str, key: str, count: int, beside: str = ""):
        self._folder, self._name, self._beside, self.count = Path(folder), name, beside, count
        self.dir = self._folder / f".{name}.parts-{key[:16]}"

    def missing(self, job: Optional[int] = None, num_jobs: int = 1) -> List[int]:
        """Indices of parts that are not there; with ``job`` (1 ... num_jobs) those that are its own to make."""
        own = range(self.count) if job is None else range(job - 1, self.count, num_jobs)
        return [index for index in own if not all(path.exists() for path in self._paths(index))]

    def beside(self, index: int) -> Path:
        """The file that belongs to a part; it is there before ``write``."""
        return self.dir / self._beside.format(index)

    def write(self, index: int, values: Any) -> None:
        """``values``: of JSON's types."""
        atomic.write_text(self._paths(index)[0], json.dumps(values))

    def read(self) -> Iterator[Any]:
        """All, in their order."""
        for index in range(self.count):
            yield parse_json(self._paths(index)[0].read_bytes())

    def remove(self) -> None:
        """These and what earlier work left there."""
        for folder in self._folder.glob(f".{glob.escape(self._name)}.parts-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def lock(self, timeout: float = -1):
        """Held by who puts them together."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(str(self._folder / f".{self._name}.lock"), timeout=timeout)

    def _paths(self, index: int) -> List[Path]:
        return [self.dir / f"{index:05d}.json"] + ([self.beside(index)] if self._beside else [])

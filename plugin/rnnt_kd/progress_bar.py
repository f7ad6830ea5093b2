"""How far a long task is: a bar on a terminal, elsewhere a line now and then (a log has no carriage returns)."""

import sys
import time
from typing import Iterable, Iterator, Optional, Sized, TypeVar

from tqdm import tqdm

LINE_SECONDS = 15.0  # at most one plain line in this time

Item = TypeVar("Item")


class ProgressBar:
    """A context manager that counts up to ``total`` (None: not known) on stderr.

    A plain line is ``features of train: 320 of 948 utt, eta 0:12``.
    """

    def __init__(self, what: str, total: Optional[int], unit: str):
        self._what, self._total, self._unit, self._done = what, total, unit, 0
        self._start = self._last_line = time.monotonic()
        is_plain = not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=unit, mininterval=0.5, dynamic_ncols=True, disable=is_plain)

    def update(self, count: int = 1) -> None:
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and self._done != self._total and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            line = f"{self._what}: {self._done}"
            if self._total is not None:
                left = round((now - self._start) / max(1, self._done) * (self._total - self._done))
                line += f" of {self._total} {self._unit}, eta {left // 60}:{left % 60:02d}"
            else:
                line += f" {self._unit}"
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()


def counted(items: Iterable[Item], what: str, unit: str) -> Iterator[Item]:
    """``items``, each counted when the next one is asked for."""
    with ProgressBar(what, len(items) if isinstance(items, Sized) else None, unit) as bar:
        for item in items:
            yield item
            bar.update()

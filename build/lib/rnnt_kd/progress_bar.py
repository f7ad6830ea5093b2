"""How far a long task is: a bar on a terminal, elsewhere a line now and then (a log has no carriage returns)."""

import contextlib
import io
import sys
import time
from typing import Iterable, Iterator, Optional, Sized, TextIO, TypeVar

from tqdm import tqdm

LINE_SECONDS = 15.0  # at most one plain line in this time

Item = TypeVar("Item")


class ProgressBar:
    """A context manager that counts from ``first`` up to ``total`` (None: not known) on stderr.

    A plain line is ``features of train: 320 of 948 utt, eta 0:12``, and behind it the last note.
    """

    def __init__(self, what: str, total: Optional[int], unit: str, first: int = 0):
        self.what, self._total, self._unit, self._note = what, total, unit, ""
        self._first = self._done = first
        self._start = self._last_line = time.monotonic()
        is_plain = not sys.stderr.isatty()
        looks = {"mininterval": 0.5, "dynamic_ncols": True, "disable": is_plain}
        self._bar = tqdm(total=total, initial=first, desc=what, unit=unit, **looks)

    def update(self, count: int = 1, note: str = "") -> None:
        """``count`` more are done, of what ``what`` now says; ``note`` stays until the next one."""
        self._done, self._note = self._done + count, note or self._note
        self._bar.set_description(self.what, refresh=False)
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and self._done != self._total and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            of, eta = "", ""
            if self._total is not None:
                left = round((now - self._start) / max(1, self._done - self._first) * (self._total - self._done))
                of, eta = f" of {self._total}", f", eta {tqdm.format_interval(left).removeprefix('0')}"
            say(f"{self.what}: {self._done}{of} {self._unit}{eta}{self._note and ', '}{self._note}")

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """``items``, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.update()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()


def say(line: str) -> None:
    """A line on stderr that does not tear a bar."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def counted(items: Iterable[Item], what: str, unit: str) -> Iterator[Item]:
    """``items``, each counted when the next one is asked for."""
    with ProgressBar(what, len(items) if isinstance(items, Sized) else None, unit) as bar:
        yield from bar.counted(items)


@contextlib.contextmanager
def plain_bars() -> Iterator[None]:
    """Let the bars of other libraries be lines now and then, where stderr is no terminal."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(_Lines(sys.stderr)):
        yield


class _Lines(io.TextIOBase):
    """A stream that passes on what stands behind a carriage return at most every ``LINE_SECONDS``."""

    def __init__(self, target: TextIO):
        self._target, self._last_line = target, time.monotonic()

    def write(self, text: str) -> int:
        shown = text.strip("\r\n ")
        is_due = "\r" not in text or time.monotonic() - self._last_line >= LINE_SECONDS
        if shown and is_due:
            self._last_line = time.monotonic()
            self._target.write(shown + "\n")
        return len(text)

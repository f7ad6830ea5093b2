"""Commands side by side, for ``rnnt_kd.bin.experiment``.

A job is a list of commands, one after the other; one that fails ends its job, not the others.  Whatever ends this
process ends what it started: nothing goes on training unseen after a kill -9.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

_WAIT_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
try:
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError, TypeError):  # not Linux: a killed run is noticed when its pipe breaks
    _prctl = None


@dataclass
class Commands:
    """``steps``: what stands after ``python``."""

    name: str
    steps: List[List[str]]


def run_side_by_side(jobs: Sequence[Commands], at_once: int) -> List[Tuple[str, int]]:
    """Run all; output comes with ``[name]`` before each line, and as it is where one runs at a time.

    Returns (name, exit status) of those that failed, in the order in which they ended.
    Raises KeyboardInterrupt after ending what runs.
    """
    waiting, failed = list(jobs), []
    running: List[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Running(waiting.pop(0), with_name=at_once > 1))
            time.sleep(_WAIT_SECONDS)
            for job in list(running):
                status = job.poll()
                if status is not None:
                    running.remove(job)
                    failed += [(job.name, status)] if status else []
    except BaseException:
        for job in running:
            job.end()
        raise
    return failed


class _Running:
    """A job at work: ``poll`` starts the next command when one has ended."""

    def __init__(self, commands: Commands, with_name: bool):
        self.name, self._steps, self._with_name = commands.name, list(commands.steps), with_name
        self._process: Optional[subprocess.Popen] = None
        self._reader: Optional[threading.Thread] = None

    def poll(self) -> Optional[int]:
        """None while it runs, then its exit status."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return None
            if self._reader is not None:
                self._reader.join()
            if status:
                return status
        if not self._steps:
            return 0
        self._process = start(self._steps.pop(0), subprocess.PIPE if self._with_name else None)
        if self._with_name:
            self._reader = threading.Thread(target=self._copy, args=(self._process.stdout,), daemon=True)
            self._reader.start()
        return None

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _copy(self, stream) -> None:
        for line in stream:
            sys.stderr.write(f"[{self.name}] {line.rstrip()}\n")
            sys.stderr.flush()


def start(step: Sequence[str], output: Optional[int] = None) -> subprocess.Popen:
    """``python`` with these words; ended when this process ends.  Call from the main thread."""
    error = None if output is None else subprocess.STDOUT
    return subprocess.Popen(
        [sys.executable, *step],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=error,
        text=True,
        errors="replace",
        preexec_fn=_end_with(os.getpid()),
    )


def _end_with(parent: int):
    def ask() -> None:
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it ended before it could be asked
                os._exit(1)

    return ask

"""Child processes: a function in several processes, workers that answer requests.

Whatever ends this process ends what it started.  A worker runs what may end its process (a library that aborts, or
calls ``_Exit``): here that is an exception.

    with Worker("package.module") as worker:            # the module calls serve(answer) when it is run
        result = worker.ask({"operation": "decode"}, [samples])

Messages are JSON and, behind it, arrays as raw float32: never pickled, as a worker may have read anybody's file.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, TypeVar

import numpy as np

from rnnt_kd.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
OwnWorker = TypeVar("OwnWorker", bound="Worker")

PROCESS_BYTES = 200 << 20  # what a process takes that has loaded torch and nothing else
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
try:
    _prctl: Optional[Callable[..., int]] = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError, TypeError):  # not Linux: a killed run is noticed when its pipe breaks
    _prctl = None


def end_with(parent: int) -> Callable[[], None]:
    """Asks that a child of the process ``parent`` ends with it; the child calls it, as a ``preexec_fn`` or later.

    A ``preexec_fn`` holds for the thread that starts the child: start it from the main one.
    """

    def ask() -> None:
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it ended before it could be asked
                os._exit(1)

    return ask


def in_processes(function: Callable[[Item], Result], items: Sequence[Item], num_processes: int) -> Iterator[Result]:
    """``function`` of each item, in their order; with one process or item in this process.

    Ctrl-C and the death of this process end the others.  UserError: one of them was killed, or too small a memory.
    """
    if num_processes <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    check_memory(min(num_processes, len(items)))
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork of a process whose OpenMP threads have run can hang
    pool = ProcessPoolExecutor(min(num_processes, len(items)), mp_context=context, initializer=follow_parent)
    try:
        yield from pool.map(function, items)
    except BrokenProcessPool:
        raise UserError("a worker process", "was killed (memory?)", "", "run with fewer processes (--nj)") from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_method(module: str) -> multiprocessing.context.BaseContext:
    """Processes that a server starts which has imported ``module`` and holds no lock, thread or device of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def check_memory(processes: int) -> None:
    """UserError: the system would kill some of so many processes before they have read anything."""
    free, needed = _free_memory(), processes * PROCESS_BYTES
    if free is not None and free < needed:
        problem = f"{free >> 20} MB are free and {processes} processes side by side take more"
        raise UserError("memory", problem, f"{needed >> 20} MB at the least", "use fewer (--nj), or free some")


def _free_memory() -> Optional[int]:
    """Bytes that the machine and this process's control group still have; None where neither says."""
    free = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")) << 10)
    for folder, limit, used in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, KeyError, ValueError):  # the limit "max" is none
            statistics = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
            taken = int(Path(folder, used).read_text()) - int(statistics["inactive_file"])
            free.append(int(Path(folder, limit).read_text()) - taken)
    return min(free, default=None)


def follow_parent(*_: object) -> None:
    """Leave Ctrl-C, which reaches the whole group, to the parent; end where the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class WorkerDied(Exception):
    """A worker ended, or was ended because it was late.

    Attributes:
      ending: how, to be read behind the worker's name: "ended by SIGKILL", "gave no answer in 5 s" ...
      late:   whether it was ended for want of time.
      errors: all that it wrote to stderr.
    """

    def __init__(self, ending: str, late: bool, errors: str):
        super().__init__(ending)
        self.ending, self.late, self.errors = ending, late, errors

    @property
    def last_line(self) -> str:
        return next((line.strip() for line in reversed(self.errors.split("\n")) if line.strip()), "it wrote nothing")


class Worker:
    """A process that answers requests; a context manager.  It ends when this process ends.

    Args:
      module:      what ``python -m`` runs; it calls ``serve``.
      timeout:     seconds for one answer; None: as long as it takes.
      environment: variables that differ from those of this process.
    """

    def __init__(self, module: str, timeout: Optional[float] = None, environment: Optional[Mapping[str, str]] = None):
        source = str(Path(__file__).resolve().parents[1])  # this process finds the package: so does the worker
        path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()
        self._pipe, its_end = multiprocessing.Pipe()
        with its_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=its_end.fileno(),
                stdout=self._errors,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for this process, which ends the worker
            )

    def ask(self, request: Dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> Any:
        """The worker's answer to ``request`` and 1-d ``arrays``: of JSON's types, or a float32 array.

        Raises WorkerDied.
        """
        with contextlib.suppress(OSError):  # it is dead: there will be no answer
            _send(self._pipe, {"request": request, "arrays": len(arrays)}, arrays)
        if not self._pipe.poll(self._timeout):
            self.process.kill()
            raise self._death(late=True)
        try:
            answer = json.loads(self._pipe.recv_bytes())
            return _read(self._pipe).reshape(answer["shape"]).copy() if "shape" in answer else answer["answer"]
        except (EOFError, OSError):
            raise self._death(late=False) from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._pipe.close()
        self._errors.close()

    def __enter__(self: OwnWorker) -> OwnWorker:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _death(self, late: bool) -> WorkerDied:
        status = self.process.wait()
        self._errors.seek(0)
        errors = self._errors.read().decode("utf-8", "replace")
        if late:
            return WorkerDied(f"gave no answer in {self._timeout:g} s", late, errors)
        ending = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return WorkerDied(ending, late, errors)


def serve(answer: Callable[[Dict[str, Any], List[np.ndarray]], Any]) -> None:
    """The worker's end: call ``answer(request, arrays)`` for each request, until there are no more; then exit.

    What other code prints is no answer: these have a descriptor of their own, and what it starts does not get it.
    """
    pipe = connection.Connection(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while True:
        try:
            message = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # skip joining the threads of a library
        result = answer(message["request"], [_read(pipe) for _ in range(message["arrays"])])
        if isinstance(result, np.ndarray):
            _send(pipe, {"shape": result.shape}, [result])
        else:
            _send(pipe, {"answer": result})


def _send(pipe, message: Dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    pipe.send_bytes(json.dumps(message).encode())
    for item in arrays:
        pipe.send_bytes(np.ascontiguousarray(item, dtype=np.float32).tobytes())


def _read(pipe) -> np.ndarray:
    return np.frombuffer(pipe.recv_bytes(), dtype=np.float32)

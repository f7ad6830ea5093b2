"""Child processes: a function in several processes, workers that answer requests.

Whatever ends this process ends what it started.  A worker runs what may end its process (a library that aborts, or
calls ``_Exit``): here that is an exception.

    with Worker("package.module") as worker:            # the module calls serve(answer) when it is run
        result = worker.ask({"operation": "decode"}, [samples])

Messages are a line of JSON and, behind it, arrays as raw float32.
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
        self.process: Any = subprocess.Popen(  # both of its pipes are there
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
            start_new_session=True,  # Ctrl-C is for this process, which ends the worker
        )

    def ask(self, request: Dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> Any:
        """The worker's answer to ``request`` and 1-d ``arrays``: of JSON's types, or a float32 array.

        Raises WorkerDied.
        """
        late, timer = threading.Event(), None

        def end() -> None:
            late.set()
            self.process.kill()

        if self._timeout is not None:
            timer = threading.Timer(self._timeout, end)
            timer.daemon = True
            timer.start()
        try:
            try:
                _send(self.process.stdin, {"request": request, "sizes": [len(item) for item in arrays]}, arrays)
            except BrokenPipeError:  # it is dead: there will be no answer
                pass
            line = self.process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            if answer is not None and "shape" in answer:
                return _read(self.process.stdout, int(np.prod(answer["shape"]))).reshape(answer["shape"]).copy()
        finally:
            if timer is not None:
                timer.cancel()
        if answer is None:
            raise self._death(late.is_set())
        return answer["answer"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in filter(None, (self.process.stdin, self.process.stdout, self._errors)):
            try:
                stream.close()
            except BrokenPipeError:
                pass

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

    What other code prints goes to stderr: the answers have a descriptor of their own.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        message = json.loads(line)
        result = answer(message["request"], [_read(sys.stdin.buffer, size) for size in message["sizes"]])
        if isinstance(result, np.ndarray):
            _send(answers, {"shape": result.shape}, [result])
        else:
            _send(answers, {"answer": result})
    os._exit(0)  # skip joining the threads of a library


def _send(stream, message: Dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    for item in arrays:
        stream.write(np.ascontiguousarray(item, dtype=np.float32).tobytes())
    stream.flush()


def _read(stream, size: int) -> np.ndarray:
    return np.frombuffer(stream.read(4 * size), dtype=np.float32)

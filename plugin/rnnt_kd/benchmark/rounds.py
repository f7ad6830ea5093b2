"""Workers that take turns.

One group is what is compared: all subjects of one vocabulary and batch size.  Its workers live at
the same time, one of them works at a time.  First every subject passes over every batch once, for
its memory; then in each round, batch by batch, all subjects have their turn, each time another one
first.  Random disturbances so fall on all alike.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

Tell = Callable[[float, str], None]  # work done, and by whom


@dataclass
class Job:
    """One subject: what its worker is told, and what came of it.

    name:          for people.
    specification: see ``worker``; "num_threads" and "device" among others.
    work:          how long a pass may take compared with others; for the progress bar.
    seconds:       batch -> one number a round.
    peak_bytes:    batch -> bytes.
    losses:        batch -> value, or None.
    cannot:        why there is no result.
    """

    name: str
    specification: Dict[str, Any]
    work: float = 1.0
    seconds: List[List[float]] = field(default_factory=list)
    peak_bytes: List[int] = field(default_factory=list)
    losses: List[Optional[float]] = field(default_factory=list)
    facts: Dict[str, Any] = field(default_factory=dict)
    cannot: Optional[str] = None

    @property
    def spent(self) -> float:
        return sum(sum(values) for values in self.seconds)


def run_group(jobs: Sequence[Job], module: str, *, rounds: int, seconds_per_row: float, tell: Tell) -> None:
    """Fill in ``jobs``: measured, or with the reason why not.

    Args:
      module:          ``python -m module --worker`` is a worker.
      rounds:          timed passes over each batch.
      seconds_per_row: a subject that took longer, over all rounds, sits out the others.
      tell:            called after every pass, with ``work`` of the job; passes that never come
                       (a job that cannot, or sits out) are told, too.
    """
    workers = {}
    try:
        for job in jobs:
            workers[job.name] = _Worker(module, job.specification)
        for job in jobs:
            _ask(job, workers[job.name], None)
        for job in jobs:
            num_batches = len(job.specification["batches"])
            job.seconds = [[] for _ in range(num_batches)]
            for batch in range(num_batches):
                _ask(job, workers[job.name], {"batch": batch, "with_memory": True})
                tell(job.work, job.name)
        for turn in range(rounds):
            active = [job for job in jobs if job.cannot is None and job.spent <= seconds_per_row]
            _tell_absent(jobs, active, tell)
            for batch in range(len(jobs[0].specification["batches"])):
                first = (turn + batch) % max(1, len(active))
                for job in active[first:] + active[:first]:
                    _ask(job, workers[job.name], {"batch": batch, "with_memory": False})
                    tell(job.work, job.name)
    finally:
        for worker in workers.values():
            worker.stop()


def _ask(job: Job, worker: "_Worker", request: Optional[Dict[str, Any]]) -> None:
    """Send ``request`` (None: wait for the first word) and note the answer."""
    if job.cannot is not None:
        return
    answer = worker.answer_to(request)
    if "cannot" in answer:
        job.cannot = answer["cannot"]
    elif request is None:
        job.facts = answer["ready"]
    elif request["with_memory"]:
        job.peak_bytes.append(answer["peak_bytes"])
        job.losses.append(answer["loss"])
    else:
        job.seconds[request["batch"]].append(answer["seconds"])


def _tell_absent(jobs: Sequence[Job], active: Sequence[Job], tell: Tell) -> None:
    for job in jobs:
        if job not in active:
            tell(job.work * len(job.specification["batches"]), job.name)


class _Worker:
    """A child process.  It ends when its input ends, so also when this process is killed."""

    def __init__(self, module: str, specification: Dict[str, Any]):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=worker_environment(specification["num_threads"]),
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )
        self._send(specification)

    def answer_to(self, request: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        if request is not None:
            self._send(request)
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"cannot": self._last_words()}

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def _send(self, message: Dict[str, Any]) -> None:
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it is dead: its answer will say so
            pass

    def _last_words(self) -> str:
        """Why the process ended.  RuntimeError with its traceback, if it has one: a bug of ours."""
        status = self.process.wait()
        self.errors.seek(0)
        text = self.errors.read().decode("utf-8", "replace").strip()
        if status < 0:
            return f"killed by signal {-status}" + (", perhaps for want of memory" if status == -9 else "")
        if "Traceback" in text:
            raise RuntimeError(f"a benchmark process failed:\n{text}")
        return text.splitlines()[-1] if text else f"ended with status {status}"


def worker_environment(num_threads: int) -> Dict[str, str]:
    """Numbers of threads are read when Python starts; so is the path to this package."""
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        environment[name] = str(num_threads)
    if is_amd():  # the MKL of torch 1.13 takes its slowest path there, for all subjects alike
        environment["MKL_DEBUG_CPU_TYPE"] = "5"
    source_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source_root, environment.get("PYTHONPATH")]))
    return environment


def is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def free_memory() -> Optional[int]:
    """Bytes that this machine can give; None where nobody knows."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)

"""Jobs: commands side by side, each with a log, on this machine or through a cluster's command.

The interface is that of Kaldi's and ESPnet's run.pl, queue.pl and slurm.pl:

    $cmd [--gpu 1] [--num-threads 2] JOB=1:4 exp/log/x.JOB.log command word JOB

runs a command four times and writes what each run says to its log, with the command, when it started and ended, and its
status.  A job that fails ends no other, and is named with the end of its log.  Whatever ends this process ends what it
started: nothing goes on training unseen after a kill -9.  The ranks of a training live and die together.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Sequence, Tuple

from rnnt_kd import files
from rnnt_kd.children import check_memory, end_with
from rnnt_kd.errors import UserError
from rnnt_kd.progress_bar import say

JOB = "JOB"  # a word of a command that stands for the job's number
ENVIRONMENT = (  # part of a command for another machine
    *("RNNT_KD_ENV", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONIOENCODING"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", files.DATA_ROOTS, files.STORAGES),
)
LAST_LINES = 8  # of a log, told of a job that failed
MOST_TOLD = 3  # jobs of an array that are told with them

_WAIT_SECONDS = 0.1
_END_SECONDS = 30.0  # that a job has to end well
_GRACE_SECONDS = 10.0  # that the ranks of a training have to say why they end
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")  # to every shell
_ENDING = re.compile(r"# (?:Ended \(code (\d+)(?:; signal (\d+))?\)|Finished at .* with status (\d+))")
# A program of others in a process group of its own; a signal to this shell reaches all that the program has started.
_GROUP = """trap 'trap "" TERM; kill -TERM -$$; wait; exit 143' TERM; "$@" & wait $!"""


@dataclass(frozen=True)
class Jobs:
    """One command, ``count`` times.

    Attributes:
      name:  for people.
      words: what stands after ``python``; a word ``JOB`` stands for the number, 1 ... count.
      log:   what its logs begin with: ``<log>.<number>.log``; ``<log>.log`` of a single job, whose count is None.
      gpus:  that each job needs.
      threads: likewise.
    """

    name: str
    words: Sequence[str]
    log: Path
    count: Optional[int] = None
    gpus: int = 0
    threads: int = 1

    @property
    def numbers(self) -> List[Optional[int]]:
        return [None] if self.count is None else list(range(1, self.count + 1))

    def log_of(self, number: Optional[int]) -> Path:
        return self.log.with_name(self.log.name + ("" if number is None else f".{number}") + ".log")

    def name_of(self, number: Optional[int]) -> str:
        return self.name if self.count in (None, 1) else f"{self.name}, job {number}"

    def words_of(self, number: Optional[int]) -> List[str]:
        return [str(number) if word == JOB else word for word in self.words]


@dataclass
class Process:
    """A program to run: its log (None: it writes its own), the command as it stands there, how many jobs it is.

    ``environment``: variables that differ from those of this process.
    """

    name: str
    words: List[str]
    log: Optional[Path] = None
    shown: str = ""
    jobs: int = 1
    own_group: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def run_side_by_side(jobs: Sequence[Jobs], at_once: int, cmd: Sequence[str] = ()) -> List[str]:
    """Run all; returns the names of those that failed, in the order in which they ended.

    Args:
      at_once: processes on this machine.  What they say goes to stderr, too, with ``[name]`` before each line, and as
               it is where there is only one.
      cmd:     a program and its options, to run them instead; as many at once as its ``--max-jobs-run`` says, or all.
    Raises:
      KeyboardInterrupt after ending what runs.  UserError: the memory is too small for so many, a folder for logs that
      cannot be written, no such program.
    """
    for one in jobs:
        _clear_logs(one)
    failed: List[str] = []
    if cmd:
        check_cmd(cmd)
        named = {one.name: one for one in jobs}
        processes = [
            Process(one.name, [*cmd, *_call(one)], jobs=one.count or 1, own_group=True) for one in named.values()
        ]
        for one in jobs:
            say(f"{one.name}: {one.count or 1} x {cmd[0]}, {_logs(one)}")

        def ended(process: Process, status: int) -> None:
            one = named[process.name]
            if status or not all(_has_come(one.log_of(number)) for number in one.numbers):
                failed.extend(_tell(one, status))

        run_processes(processes, _limit(cmd), ended)
        return failed
    places = {}
    for one in jobs:
        for number in one.numbers:
            places[one.name_of(number)] = one, number
    at_once = min(at_once, len(places))
    check_memory(at_once)
    processes = []
    for name, (one, number) in places.items():
        words = [sys.executable, *one.words_of(number)]
        processes.append(Process(name, words, one.log_of(number), shlex.join(words)))
    alone = len(processes) == 1

    def ended_here(process: Process, status: int) -> None:
        if status:
            one, number = places[process.name]
            failed.append(process.name)
            if not alone or status != 1:  # else its own line is the last one
                tell_failed(process.name, one.log_of(number), status, 0 if alone else LAST_LINES)

    run_processes(processes, at_once, ended_here, "as it is" if at_once == 1 else "named")
    return failed


def run_processes(
    processes: Sequence[Process], at_once: Optional[int], ended: Callable[[Process, int], None], echo: str = ""
) -> None:
    """Run programs, at most ``at_once`` jobs at a time; ``ended`` is told of each and its exit status.

    ``echo``: what they say goes to stderr, too, "as it is" or "named".
    """
    waiting, running = list(processes), []  # type: ignore[var-annotated]
    try:
        while waiting or running:
            while waiting and (
                not running or at_once is None or sum(one.process.jobs for one in running) + waiting[0].jobs <= at_once
            ):
                running.append(_Running(waiting.pop(0), echo))
            time.sleep(_WAIT_SECONDS)
            for one in list(running):
                status = one.poll()
                if status is not None:
                    running.remove(one)
                    ended(one.process, status)
    except BaseException:
        _end(running)
        raise


def run_ranks(step: Sequence[str], processes: int, nodes: int = 1) -> int:
    """``python`` with these words in so many processes on each of ``nodes`` machines, as the ranks of one training.

    Each finds its place in the variables that torchrun sets; several machines are left to Slurm's srun.  When one ends
    with an error, the others are ended after some seconds, in which they may end by themselves.

    Returns: the exit status of the first that failed, 128 + n where signal n ended it; 0 where none did.
    Raises KeyboardInterrupt after ending what runs.  UserError: no srun, or the memory is too small for so many.
    """
    running = [_Running(rank, "") for rank in as_ranks(step, processes, nodes)]
    status, end_at = 0, float("inf")
    try:
        while running and time.monotonic() < end_at:
            for one in list(running):
                ended = one.poll()
                if ended is not None:
                    running.remove(one)
                    status = status or ended
                    if ended > 128:  # it could not say so itself
                        say(f"{one.process.name}: {in_words(ended)}")
            if status:
                end_at = min(end_at, time.monotonic() + _GRACE_SECONDS)
            time.sleep(_WAIT_SECONDS)
    finally:
        _end(running)
    return status


def as_ranks(step: Sequence[str], processes: int, nodes: int) -> List[Process]:
    words = [sys.executable, *step]
    if nodes > 1:
        if shutil.which("srun") is None:
            expected = "Slurm: sbatch or salloc with that many nodes"
            next_step = "elsewhere start bin.train on each machine with torchrun, see docs/scale.md"
            raise UserError("--num-nodes", f"{nodes}, and there is no srun here", expected, next_step)
        size = [f"--nodes={nodes}", f"--ntasks={nodes * processes}", f"--ntasks-per-node={processes}"]
        return [Process("srun", ["srun", *size, "--kill-on-bad-exit=1", *words])]
    check_memory(processes)
    with connection.Listener(("127.0.0.1", 0)) as free:
        port = free.address[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "rnnt_kd"}
    place.update(WORLD_SIZE=processes, LOCAL_WORLD_SIZE=processes)
    if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        place["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine's name leads to
    places = [
        {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        for rank in range(processes)
    ]
    return [Process(f"process {at['RANK']} of {processes}", words, environment=at) for at in places]


def follow_launcher() -> None:
    """End with the process that started this one as a rank: torchrun does not ask for it."""
    end_with(os.getppid())()


class _Running:
    """A program at work."""

    def __init__(self, process: Process, echo: str):
        self.process = process
        self._prefix = {"named": f"[{process.name}] ", "as it is": ""}.get(echo)
        self._log = None
        self._started = time.time()
        if process.log is not None:
            process.log.parent.mkdir(parents=True, exist_ok=True)
            self._log = open(process.log, "w", encoding="utf-8", errors="surrogateescape", buffering=1)
            self._write(f"# {process.shown}\n# Started at {_date()}\n#\n")
        self._child = start(process)
        self._reader = threading.Thread(target=self._copy, args=(self._child.stdout,), daemon=True)
        if self._log is not None:
            self._reader.start()

    def poll(self) -> Optional[int]:
        """None while it runs, then its exit status; 128 + n where signal n ended it."""
        status = self._child.poll()
        if status is None:
            return None
        status = 128 - status if status < 0 else status
        if self._log is not None:
            self._reader.join(1.0 if self.process.own_group else None)
            for number in (signal.SIGTERM, signal.SIGKILL):  # to what it left at work in the background
                if self._reader.is_alive():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._child.pid, number)
                    self._reader.join(2.0)
            seconds = round(time.time() - self._started)
            self._write(f"# Accounting: time={seconds} threads=1\n")
            self._write(f"# Ended (code {status}) at {_date()}, elapsed time {seconds} seconds\n")
            self._log.close()
        return status

    def ask_to_end(self) -> None:
        if self._child.poll() is None:
            self._child.terminate()

    def end(self, timeout: float) -> None:
        """Wait for so many seconds, then kill."""
        try:
            self._child.wait(max(0.0, timeout))
        except subprocess.TimeoutExpired:
            if self.process.own_group:
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.kill()
            self._child.wait()
        self.poll()

    def _copy(self, stream) -> None:
        for line in stream:
            self._write(line)
            if self._prefix is not None:
                with contextlib.suppress(OSError):  # nobody reads: the job goes on
                    sys.stderr.write(f"{self._prefix}{line.rstrip()}\n".encode("utf-8", "replace").decode())
                    sys.stderr.flush()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the disk is full: the job goes on, and may say so itself
            assert self._log is not None
            self._log.write(text)


def start(process: Process) -> subprocess.Popen:
    """Its output is a pipe where it has a log.  It ends when this process ends.  Call from the main thread."""
    group = ["bash", "-c", _GROUP, "bash"] if process.own_group else []
    return subprocess.Popen(
        [*group, *process.words],
        env={**os.environ, **process.environment},
        stdin=subprocess.DEVNULL,
        stdout=None if process.log is None else subprocess.PIPE,
        stderr=None if process.log is None else subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
        start_new_session=process.own_group,
        preexec_fn=end_with(os.getpid()),
    )


def _end(running: Sequence[_Running]) -> None:
    """All at once, by force after 30 seconds."""
    for one in running:
        one.ask_to_end()
    end_at = time.monotonic() + _END_SECONDS
    for one in running:
        one.end(end_at - time.monotonic())


def read_cmd(text: str) -> List[str]:
    """The words of ``--cmd``, quotes as in a shell.  UserError: a quote that is not closed, or as ``check_cmd``."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError("--cmd", f"{text} ({error})", "a program and its options", "close the quote") from None
    check_cmd(words)
    return words


def check_cmd(cmd: Sequence[str]) -> None:
    """UserError: no such program, or not allowed to run it."""
    if not cmd or shutil.which(cmd[0]) is None:
        problem = f"'{cmd[0] if cmd else ''}' is no program that can be run"
        expected = "one that is called as Kaldi's run.pl is, and its options"
        raise UserError("--cmd", problem, expected, "check the path and chmod +x, or leave it out")


def portable(words: Sequence[str]) -> List[str]:
    """``python`` with these words for another machine with the same files: what it needs of this environment first."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    if "PYTHONPATH" in environment:
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(folder).resolve()) for folder in folders)
    return ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, *words]


def _call(jobs: Jobs) -> List[str]:
    """What stands behind ``$cmd``: Kaldi's programs replace the name of the number wherever it stands, and give words
    without blanks to bash as they are."""
    words = [str(word) for word in portable(jobs.words)]
    mark = JOB
    while any(mark in word for word in [*words, str(jobs.log)] if word != JOB):
        mark += "_"
    if re.search(r"\s", str(jobs.log)):
        raise UserError(jobs.log.parent, "has a blank in it", "none, for --cmd", "choose another --exp-dir")
    options = ["--gpu", str(jobs.gpus)] if jobs.gpus else []
    options += ["--num-threads", str(jobs.threads)] if jobs.threads > 1 else []
    array = [] if jobs.count is None else [f"{mark}=1:{jobs.count}"]
    log = jobs.log_of(None if jobs.count is None else 0)
    log = log if jobs.count is None else log.with_name(f"{jobs.log.name}.{mark}.log")
    return [*options, *array, str(log), *(mark if word == JOB else _bash_word(word) for word in words)]


def _bash_word(word: str) -> str:
    """Without blanks, and ``word`` to bash."""
    if _PLAIN.fullmatch(word):
        return word
    return "$'" + "".join(chr(b) if _PLAIN.fullmatch(chr(b)) else f"\\x{b:02x}" for b in os.fsencode(word)) + "'"


def _limit(cmd: Sequence[str]) -> Optional[int]:
    for option, value in zip(cmd, cmd[1:]):
        if option in ("--max-jobs-run", "-tc") and value.isdigit():
            return max(int(value), 1)
    return None


def _clear_logs(jobs: Jobs) -> None:
    """What an earlier run left would pass for this one's."""
    try:
        jobs.log.parent.mkdir(parents=True, exist_ok=True)
        for number in jobs.numbers:
            jobs.log_of(number).unlink(missing_ok=True)
        if not os.access(jobs.log.parent, os.W_OK):
            raise PermissionError
    except OSError as error:
        problem = f"cannot be written ({error.strerror or 'no permission'})"
        raise UserError(jobs.log.parent, problem, "a folder for logs", "choose another --exp-dir") from None


def _logs(jobs: Jobs) -> str:
    return str(jobs.log_of(None) if jobs.count is None else jobs.log.with_name(f"{jobs.log.name}.*.log"))


def _has_come(log: Path) -> bool:
    """Is it there, on a network disk in a while?  A program that waited for its jobs has their logs."""
    try:
        files.patiently(log.stat)
    except FileNotFoundError:
        return False
    return True


def _ending(log: Path) -> Tuple[Optional[int], List[str]]:
    """(status of a job by its log, None where that has no end; what it said)."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None, []
    status = None
    for line in lines:
        found = _ENDING.match(line)
        if found:
            code, number, other = (int(value or 0) for value in found.groups())
            status = 128 + number if number else code or other
    return status, [line for line in lines if line.strip() and not line.startswith("#")]


def _tell(jobs: Jobs, status: int) -> List[str]:
    """Which of an array failed, by their logs; ``status`` is that of the program that ran it.  Returns their names."""
    failed = [(number, _ending(jobs.log_of(number))[0]) for number in jobs.numbers]
    failed = [(number, code) for number, code in failed if code != 0]
    if not failed:
        say(f"{jobs.name}: its logs end well, but {in_words(status)}; {_logs(jobs)}")
        return [jobs.name]
    for number, code in failed[:MOST_TOLD]:
        tell_failed(jobs.name_of(number), jobs.log_of(number), code)
    names = [jobs.name_of(number) for number, _ in failed]
    if len(failed) > MOST_TOLD:
        numbers = ", ".join(str(number) for number, _ in failed)
        say(f"{jobs.name}: {len(failed)} of {jobs.count} jobs failed: {numbers}")
    return names


def tell_failed(name: str, log: Path, status: Optional[int], lines: int = LAST_LINES) -> None:
    """Name a job that failed, with the end of its log."""
    said = _ending(log)[1][-lines:] if lines else []
    why = in_words(status) if log.exists() else "was not started"
    where = f"{log} ends with:" if said else f"its log is {log}" if log.exists() else f"there is no {log}"
    text = "".join(f"\n  {line}" for line in said)
    say(f"{name}: {why}; {where}{text}")


def in_words(status: Optional[int]) -> str:
    """An exit status, for people."""
    if status is None:
        return "was ended without a status (memory? time limit?)"
    if status > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(status - 128).name
            return f"killed by {name}{' (memory?)' if name == 'SIGKILL' else ''} (status {status})"
    return f"ended with status {status}"


def _date() -> str:
    return time.strftime("%a %b %e %H:%M:%S %Z %Y")

"""Subjects in processes of their own that take turns.

A group is what is compared.  Its processes live at the same time, one of them works at a time.  First all subjects
pass over every batch once, for the memory; then in each round, batch by batch, all have their turn, each time another
one first.  So none inherits another's memory or warm caches, and a busy minute of the machine falls on all alike.
"""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from tqdm import tqdm

import rnnt_kd
from rnnt_kd.children import Worker, WorkerDied
from rnnt_kd.errors import UserError


@dataclass
class Measurement:
    """One subject: what its process is told, and what came of it.

    name:          for people; unique in its group.
    specification: see ``worker``; "module", "batches" and "num_threads" among others.
    seconds:       batch -> one number a round.
    parts:         name of a part of the pass -> batch -> one number a round; for subjects that time their parts.
    peak_bytes:    batch -> bytes.
    losses:        batch -> value, or None.
    facts:         what the subject says of itself.
    cannot:        why there is no result.
    """

    name: str
    specification: Dict[str, Any]
    seconds: List[List[float]] = field(default_factory=list)
    parts: Dict[str, List[List[float]]] = field(default_factory=dict)
    peak_bytes: List[int] = field(default_factory=list)
    losses: List[Optional[float]] = field(default_factory=list)
    facts: Dict[str, Any] = field(default_factory=dict)
    cannot: Optional[str] = None

    @property
    def num_batches(self) -> int:
        return len(self.specification["batches"])

    @property
    def spent(self) -> float:
        return sum(map(sum, self.seconds))


def run_groups(
    groups: Sequence[Sequence[Measurement]],
    *,
    rounds: int,
    title: Callable[[Measurement], str],
    finished: Callable[[Sequence[Measurement]], Any],
    seconds_per_row: float = float("inf"),
) -> None:
    """Measure group by group with a bar on stderr, and hand each to ``finished``.

    Args:
      rounds:          timed passes over each batch.
      title:           of a job's group.
      seconds_per_row: a subject that took longer, over all rounds, sits out the others.

    Raises:
      UserError: nobody could be measured.
    """
    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {desc}"
    total = sum(job.num_batches * (rounds + 1) for jobs in groups for job in jobs)
    with tqdm(total=total, bar_format=layout, mininterval=1.0, disable=None) as bar:
        for jobs in filter(None, groups):
            where = title(jobs[0])
            bar.set_description_str(where)
            run_group(jobs, rounds, seconds_per_row, bar.update)
            for job in jobs:
                if job.cannot is not None:
                    bar.write(f"{where}: {job.name}: left out, {job.cannot}", file=sys.stderr)
            finished(jobs)
    reasons = [job.cannot for jobs in groups for job in jobs]
    if all(reason is not None for reason in reasons):
        raise UserError("benchmark", f"nothing could be measured: {next(iter(reasons), 'nobody takes part')}")


def run_group(jobs: Sequence[Measurement], rounds: int, seconds_per_row: float, told: Callable[[], Any]) -> None:
    """Fill in ``jobs``: measured, or with the reason why not.  ``told`` is called for every pass, taken or not."""
    with ExitStack() as stack:
        workers = {job.name: stack.enter_context(Worker("benchmark.worker", None, _environment(job))) for job in jobs}
        for job in jobs:
            job.seconds = [[] for _ in range(job.num_batches)]
            _ask(job, workers[job.name], job.specification)
        for turn in range(-1, rounds):
            active = [job for job in jobs if job.cannot is None and job.spent <= seconds_per_row]
            for batch in range(jobs[0].num_batches):
                first = (turn + batch) % max(1, len(active))
                for job in active[first:] + active[:first]:
                    _ask(job, workers[job.name], {"batch": batch, "with_memory": turn < 0})
                for _ in jobs:
                    told()


def _ask(job: Measurement, worker: Worker, request: Dict[str, Any]) -> None:
    """Send ``request`` and note the answer.  RuntimeError with its traceback: a bug of ours."""
    if job.cannot is not None:
        return
    try:
        answer = worker.ask(request)
    except WorkerDied as death:
        if "Traceback" in death.errors:
            raise RuntimeError(f"a benchmark process failed:\n{death.errors}") from None
        hint = ", perhaps for want of memory" if "SIGKILL" in death.ending else f" ({death.last_line})"
        answer = {"cannot": death.ending + hint}
    if "cannot" in answer:
        job.cannot = answer["cannot"]
    elif "facts" in answer:
        job.facts = answer["facts"]
    elif request["with_memory"]:
        job.peak_bytes.append(answer["peak_bytes"])
        job.losses.append(answer["loss"])
    else:
        job.seconds[request["batch"]].append(answer["seconds"])
        for part, seconds in answer["parts"].items():
            job.parts.setdefault(part, [[] for _ in job.seconds])[request["batch"]].append(seconds)


def _environment(job: Measurement) -> Dict[str, str]:
    """Numbers of threads are read when Python starts; so is the path to this folder and the packages."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    root, package = (Path(file).resolve().parents[1] for file in (__file__, rnnt_kd.__file__))
    sources = [str(path) for path in (root, package, root / "packages" / "engine")]
    path = os.pathsep.join(filter(None, [*sources, os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, **dict.fromkeys(names, str(job.specification["num_threads"]))}

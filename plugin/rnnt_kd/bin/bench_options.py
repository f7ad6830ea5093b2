"""What the two benchmark commands share: options, batches, the bar, and the name of the machine."""

import argparse
import platform
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

from tqdm import tqdm

from rnnt_kd.benchmark.rounds import Job, run_group
from rnnt_kd.benchmark.shapes import Batch, draw_batches, fitted_shapes, read_shapes
from rnnt_kd.bin.options import add_device, join
from rnnt_kd.errors import UserError


def add_measuring(target: argparse.ArgumentParser) -> None:
    """Which batches, how often, by how many threads; and the private ``--worker``."""
    target.add_argument("--batch", default="8", help="utterances a batch, some numbers")
    target.add_argument("--shapes", type=Path, help="lines T,S of real utterances: encoder frames and symbols")
    target.add_argument("--json", type=Path, help="write the rows as a list of objects")
    target.add_argument("--joiner-dim", type=int, default=512, help="J")
    target.add_argument("--prune-range", type=int, default=5, help="s_range")
    target.add_argument("--batches", type=int, default=3, help="different batches, from short to long")
    target.add_argument("--rounds", type=int, default=3, help="timed passes over each batch")
    target.add_argument("--seconds-per-row", type=float, default=300.0, help="whoever took longer sits out the rest")
    target.add_argument("--seed", type=int, default=1)
    target.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_device(target)


def check_measuring(arguments: argparse.Namespace) -> None:
    """Raises UserError for a number out of range."""
    for name in ("joiner_dim", "batches", "rounds", "num_threads"):
        if getattr(arguments, name) < 1:
            raise UserError("--" + name.replace("_", "-"), str(getattr(arguments, name)), "a number from 1 on")
    if arguments.prune_range < 2:
        raise UserError("--prune-range", str(arguments.prune_range), "a number from 2 on")
    if arguments.seed < 0:
        raise UserError("--seed", str(arguments.seed), "a number from 0 on")
    if not arguments.seconds_per_row > 0.0:
        raise UserError("--seconds-per-row", str(arguments.seconds_per_row), "a number above 0")


def vocabs_of(arguments: argparse.Namespace) -> List[int]:
    """``--vocab``.  UserError for fewer classes than the collapsed teacher term compares."""
    vocabs = numbers("--vocab", arguments.vocab)
    if vocabs[0] < 3:
        raise UserError("--vocab", str(vocabs[0]), "3 classes or more: blank, a label, another label")
    return vocabs


def check_outputs(*paths: Optional[Path]) -> None:
    """Make the folders of what is written at the end: better fail now than after the measuring."""
    for path in paths:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise UserError(path, "is a folder", "the name of a file")


def batches_of(arguments: argparse.Namespace) -> List[List[Batch]]:
    """For each ``--batch``, as many batches as ``--batches`` says."""
    shapes = read_shapes(arguments.shapes) if arguments.shapes else fitted_shapes()
    sizes = numbers("--batch", arguments.batch)
    return [draw_batches(shapes, size, arguments.batches, arguments.seed) for size in sizes]


def numbers(option: str, text: str) -> List[int]:
    """ "5000,500" -> [500, 5000].  UserError for anything but numbers from 1 on."""
    fields = [field.strip() for field in text.split(",")]
    if not all(field.isdecimal() and int(field) > 0 for field in fields):
        raise UserError(option, repr(text), "numbers from 1 on, with commas, such as 500,5000")
    return sorted({int(field) for field in fields})


def names(option: str, text: str, known: Sequence[str]) -> List[str]:
    """ "a,b" -> ["a", "b"].  UserError for a name that is not in ``known``."""
    chosen = list(dict.fromkeys(field.strip() for field in text.split(",") if field.strip()))
    for name in chosen:
        if name not in known:
            raise UserError(option, f"there is no {name!r}", "some of: " + join(known))
    return chosen


def run_groups(
    groups: Sequence[List[Job]],
    module: str,
    arguments: argparse.Namespace,
    title: Callable[[Job], str],
    finished: Callable[[List[Job]], Any],
) -> None:
    """Measure group by group with a bar on stderr, and hand each to ``finished``.

    Args:
      module: ``python -m module --worker`` is a worker.
      title:  of a job's group, for the bar.

    Raises:
      UserError: nobody could be measured.
    """
    total = sum(job.work * arguments.batches * (arguments.rounds + 1) for jobs in groups for job in jobs)
    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {desc}"
    with tqdm(total=total, bar_format=layout, mininterval=1.0, smoothing=0.0) as bar:
        for jobs in filter(None, groups):
            where = title(jobs[0])

            def tell(work: float, name: str) -> None:
                bar.set_description_str(f"{where}: {name}", refresh=False)  # noqa: B023
                bar.update(work)

            run_group(jobs, module, rounds=arguments.rounds, seconds_per_row=arguments.seconds_per_row, tell=tell)
            for job in jobs:
                if job.cannot is not None:
                    bar.write(f"{where}: {job.name}: left out, {job.cannot}", file=sys.stderr)
            finished(jobs)
            bar.set_description_str("", refresh=False)
    reasons = [job.cannot for jobs in groups for job in jobs]
    if all(reason is not None for reason in reasons):
        raise UserError("benchmark", "nothing could be measured: " + str(next(iter(reasons), "nobody takes part")))


def machine(device: str, num_threads: int) -> str:
    """Processor or GPU, threads, version of torch: what a figure is worth nothing without."""
    import torch

    where = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {num_threads} thread(s)"
    return f"{where}; torch {torch.__version__}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

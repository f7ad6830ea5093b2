"""What the commands share: options, lists in options, the name of the machine, and the report."""

import argparse
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch

from benchmark.shapes import Batch, draw_batches, fitted_shapes, read_shapes
from rnnt_kd import atomic, choices
from rnnt_kd.bin.options import add_device
from rnnt_kd.errors import UserError


def add_report(target: argparse.ArgumentParser) -> None:
    """What is written at the end; see ``report``."""
    target.add_argument("--json", type=Path, help='write all figures: {"where": ..., "rows": [{...}, ...]}')
    target.add_argument("--md", type=Path, help="write the tables, Markdown")


def add_measuring(target: argparse.ArgumentParser) -> None:
    """Which batches of random inputs, how often, by how many threads."""
    target.add_argument("--batch", default="8", help="utterances a batch, some numbers")
    target.add_argument("--shapes", type=Path, help="lines T,S of real utterances: encoder frames and symbols")
    target.add_argument("--joiner-dim", type=int, default=512, help="J")
    target.add_argument("--prune-range", type=int, default=5, help="s_range")
    target.add_argument("--batches", type=int, default=3, help="different batches, from short to long")
    target.add_argument("--rounds", type=int, default=3, help="timed passes over each batch")
    target.add_argument("--seconds-per-row", type=float, default=300.0, help="whoever took longer sits out the rest")
    target.add_argument("--seed", type=int, default=1)
    add_device(target)
    add_report(target)


def check(arguments: argparse.Namespace) -> None:
    """UserError: a number out of range; or a file to write that cannot be, told before the measuring."""
    counts = ("joiner_dim", "batches", "rounds", "num_threads", "beam", "utterances", "frames", "streams", "seconds")
    for name, least in {**dict.fromkeys(counts, 1), "prune_range": 2, "seed": 0}.items():
        value = getattr(arguments, name, None)
        if value is not None and value < least:
            raise UserError("--" + name.replace("_", "-"), str(value), f"a number from {least} on")
    if not getattr(arguments, "seconds_per_row", 1.0) > 0.0:
        raise UserError("--seconds-per-row", str(arguments.seconds_per_row), "a number above 0")
    for path in (arguments.json, arguments.md, getattr(arguments, "plot", None)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise UserError(path, "is a folder", "the name of a file")


def vocabs_of(arguments: argparse.Namespace) -> List[int]:
    """``--vocab``.  UserError for fewer classes than the collapsed teacher term compares."""
    vocabs = numbers("--vocab", arguments.vocab)
    if vocabs[0] < 3:
        raise UserError("--vocab", str(vocabs[0]), "3 classes or more: blank, a label, another label")
    return vocabs


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


def names(option: str, text: str, known: Sequence[str], can_be_empty: bool = False) -> List[str]:
    """ "a,b" -> ["a", "b"].  UserError for a name that is not in ``known``, or for no name."""
    chosen = list(dict.fromkeys(field.strip() for field in text.split(",") if field.strip()))
    if not chosen and not can_be_empty:
        raise UserError(option, "none are given", f"some of: {', '.join(known)}")
    return [choices.check(name, known, option) for name in chosen]


def report(where: str, tables: Sequence[str], rows: Sequence[Dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print where it was measured and the tables, and write the files that were asked for."""
    print(where, *tables, sep="\n\n", flush=True)
    if arguments.json:
        atomic.write_json(arguments.json, {"where": where, "rows": list(rows)})
    if arguments.md:
        atomic.write_text(arguments.md, "\n\n".join([*tables, where + "."]) + "\n")


def machine(device: str, num_threads: int) -> str:
    """Processor or GPU, threads, version of torch: what a figure is worth nothing without."""
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

"""Damaged and hostile input: ``python tests/fuzz.py SEED COUNT [--targets cuts weights ...] [--only NUMBER ...]``.

Every target is a file that the program reads.  COUNT times it is damaged (the same way for the same SEED) and read, and what
came of it is counted:

    refused   one line for the user (``UserError``, or a command's exit status)
    same      the result is that of the undamaged file
    other     another result, of a file in which it cannot be told from a right one: text, audio
    WRONG     another result, of a file that a digest covers
    BUG       any other exception; more than 2 GB of memory, more than 30 s, the death of the process; something was run

Prints a table and exits with 1 if anything was WRONG or a BUG; each is named by the number that ``--only`` takes.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "plugin"), str(HERE / "cases")]

from fuzz_damage import damage  # noqa: E402
from fuzz_targets import TARGETS, Refused  # noqa: E402

from rnnt_kd.errors import UserError  # noqa: E402
from rnnt_kd.tables import markdown  # noqa: E402

SECONDS, BYTES = 30, 2 << 30  # at most, for one input
OUTCOMES = ("refused", "same", "other", "WRONG", "BUG")


def judge(target, number, seed, canary):
    """Damage the target's file, read it, put it back; (outcome, what happened, how it was damaged)."""
    rng = random.Random(f"{seed}/{target.name}/{number}")
    path = rng.choice(target.files)
    good = path.read_bytes()
    how, bad = damage(rng, good, target.form(path), canary)
    outcome, what = "same", ""
    try:
        path.write_bytes(bad)
        quiet = io.StringIO()
        signal.alarm(SECONDS)
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            result = target.read()
        if result != target.good:
            outcome = "WRONG" if target.is_covered(how) else "other"
    except (UserError, Refused) as error:
        outcome, what = "refused", str(error)
        if "\n" in what.strip() or "Traceback" in what:
            outcome = "BUG"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, what = "BUG", "".join(traceback.format_exception(error)[-3:]).strip()
    finally:
        signal.alarm(0)
        path.write_bytes(good)
    if canary.exists():
        canary.unlink()
        outcome, what = "BUG", f"A COMMAND WAS RUN ({what})"
    return outcome, what, f"{path.name}: {how}"


class TooLong(BaseException):
    """Not an Exception: nobody may catch it."""


def _alarm(*_):
    raise TooLong(f"more than {SECONDS} s")


def _worker(name, folder, numbers, seed, pipe):
    signal.signal(signal.SIGALRM, _alarm)
    target = TARGETS[name](folder / name)
    os.chdir(folder / name)  # whatever is written by a relative path lands here
    canary = folder / f"canary-{name}"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    for number in numbers:
        pipe.send(number)
        pipe.send(judge(target, number, seed, canary))


def fuzz(name, folder, count, seed, only=None):
    """Counter of outcomes, [(number, outcome, what)] of the bad ones, line -> number of what was refused, seconds.

    The inputs are read in a process of their own; another one takes over behind the input that killed it.
    """
    numbers, outcomes, bad, lines = list(only or range(count)), Counter(), [], {}
    started, context = time.monotonic(), multiprocessing.get_context("fork")
    while numbers:
        pipe, end = context.Pipe(duplex=False)
        child = context.Process(target=_worker, args=(name, folder, numbers, seed, end))
        child.start()
        end.close()
        number = None
        try:
            for _ in list(numbers):
                number = pipe.recv()
                if not pipe.poll(4 * SECONDS):
                    child.kill()
                outcome, what, how = pipe.recv()
                numbers.remove(number)
                outcomes[outcome] += 1
                if outcome in ("WRONG", "BUG"):
                    bad.append((number, outcome, f"({how}) {what}"))
                elif what:
                    lines.setdefault(what[:200], number)
        except EOFError:
            child.join()
            if number is None:
                outcomes["BUG"] += 1
                bad.append((-1, "BUG", "the undamaged file cannot be read"))
                break
            numbers.remove(number)
            outcomes["BUG"] += 1
            bad.append((number, "BUG", f"the process died or hung (exit status {child.exitcode})"))
        child.join()
    return outcomes, bad, lines, time.monotonic() - started


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("seed", type=int)
    options.add_argument("count", type=int, help="inputs a target")
    options.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options.add_argument("--only", type=int, nargs="+", metavar="NUMBER", help="these inputs, each told in full")
    options.add_argument("--lines", action="store_true", help="print the lines of what was refused")
    args = options.parse_args(argv)
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
        for name in args.targets:
            outcomes, bad, lines, seconds = fuzz(name, Path(folder), args.count, args.seed, args.only)
            rows.append([name, sum(outcomes.values()), *(outcomes[key] for key in OUTCOMES), f"{seconds:.0f}"])
            failed = failed or bool(bad)
            for number, outcome, what in bad[: 1000 if args.only else 10]:
                print(f"{name} {number}: {outcome} {what}", flush=True)
            if args.lines:
                print("\n".join(f"{name} {number}: {line}" for line, number in lines.items()))
            print(f"{name}: {dict(outcomes)}, {seconds:.0f} s", file=sys.stderr, flush=True)
    print(markdown(["target", "inputs", *OUTCOMES, "seconds"], rows))
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

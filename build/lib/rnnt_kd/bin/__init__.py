"""The commands, ``python -m rnnt_kd.bin.<name>``.

Importing torch takes seconds, and Ctrl-C in it would end in a traceback from somewhere inside; so would a package
that is missing.  This file is imported before the command's own imports, so it answers until ``entry.command``
takes over.
"""

import os
import signal
import sys
from pathlib import Path

INTERRUPTED = "interrupted; run the same command again to go on from here"


def end_at_once(signum, frame) -> None:
    """Nothing has been written yet: say so and go."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


def end_in_one_line(kind, error, trace) -> None:
    """``sys.excepthook``: a missing optional package, or no memory for one, is one line; else there is a traceback."""
    from rnnt_kd.bin.entry import error_line

    line = error_line(error, []) if isinstance(error, (ImportError, OSError, MemoryError)) else None
    if line is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {line}", file=sys.stderr, flush=True)


def own_packages_first() -> None:
    """The folder where the user is hides no package, nor does their PYTHONPATH one of ``.venv/``."""
    source = Path(__file__).resolve().parents[2]
    asked = "" if sys.flags.ignore_environment else os.environ.get("PYTHONPATH", "").split(os.pathsep)[0]
    if asked and os.path.isdir(os.path.join(asked, "rnnt_kd")) and not os.path.samefile(asked, source):
        print(f"error: {source}/rnnt_kd: hides that of {asked}; call it from another folder", file=sys.stderr)
        sys.exit(1)
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path.append(sys.path.pop(0))
    if os.environ.get("RNNT_KD_ENV", "none") != "none":
        sys.path.sort(key=lambda path: not path.startswith((str(source), sys.prefix, sys.base_prefix)))


# sys.argv[0] is "-m" while runpy looks for the command; Python's own handler is not there where SIGINT is ignored.
if sys.argv[:1] == ["-m"]:
    own_packages_first()
    sys.excepthook = end_in_one_line
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)

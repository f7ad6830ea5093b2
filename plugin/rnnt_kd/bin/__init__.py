"""The commands, ``python -m rnnt_kd.bin.<name>``.

Importing torch takes seconds, and Ctrl-C in it would end in a traceback from somewhere inside.  This file is
imported before the command's own imports, so it answers until ``entry.command`` takes over.
"""

import os
import signal
import sys

INTERRUPTED = "interrupted; run the same command again to go on from here"


def end_at_once(signum, frame) -> None:
    """Nothing has been written yet: say so and go."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


# sys.argv[0] is "-m" while runpy looks for the command; Python's own handler is not there where SIGINT is ignored.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)

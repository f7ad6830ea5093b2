"""How every command ends: a status and, for what a user can mend, one line.

    0    done                        130  interrupted (Ctrl-C, SIGTERM)
    1    an error the user can mend  2    a wrong option (argparse)
"""

import errno
import functools
import signal
import sys
from typing import Callable, List, Optional

from rnnt_kd.errors import UserError


def command(main: Callable[[Optional[List[str]]], None]) -> Callable[..., None]:
    """Decorate ``main(argv=None)``: errors become one line on stderr and an exit status."""

    @functools.wraps(main)
    def wrapped(argv: Optional[List[str]] = None) -> None:
        try:
            signal.signal(signal.SIGTERM, _interrupt)
        except ValueError:  # not in the main thread: somebody else owns the signals
            pass
        try:
            main(argv)
        except UserError as error:
            _end(f"error: {error}", 1)
        except KeyboardInterrupt:
            _end("interrupted; run the same command again to go on from here", 130)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _end(f"error: {place}the disk is full; free some space and run the same command again", 1)
            if error.filename is None:
                raise
            _end(f"error: {place}{error.strerror}", 1)

    return wrapped


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _end(line: str, status: int) -> None:
    print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
    sys.exit(status)

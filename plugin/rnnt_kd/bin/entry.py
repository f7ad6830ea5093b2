"""How every command ends: a status and, for an error that the user can correct, one line.

0    done                        130  interrupted (Ctrl-C, SIGTERM)
1    an error of the user's      2    a wrong option (argparse)
"""

import errno
import functools
import signal
import sys
from typing import Callable, List, Optional

from rnnt_kd.bin import INTERRUPTED, end_at_once
from rnnt_kd.errors import UserError

HINTS = {
    (errno.ENOENT,): "expected a path that exists; check it",
    (errno.EEXIST, errno.ENOTDIR): "expected a folder; choose another path",
    (errno.EISDIR,): "expected a file; choose another path",
    (errno.EACCES, errno.EPERM, errno.EROFS): "expected permission to use it; change that, or choose another path",
}
EXTRAS = {  # the extra of pyproject.toml -> its packages, by the names they are imported with
    "recipe": "espeakng_loader filelock kaldialign lhotse lightning_fabric lilcom numpy omegaconf pydantic yaml "
    "safetensors scipy sentencepiece soundfile tabulate tensorboard tqdm urllib3",
    "k2": "k2 torchaudio",
    "export": "onnx onnxruntime sherpa_onnx",
    "report": "matplotlib jinja2",
    "lm": "kaldilm",
    "inference": "numba",
}
INSTALL = {
    **{name: f"pip install 'rnnt-kd[{extra}]'" for extra, names in EXTRAS.items() for name in names.split()},
    "sounddevice": "pip install sounddevice",
}


def command(main: Callable[[Optional[List[str]]], None]) -> Callable[..., None]:
    """Decorate ``main(argv=None)``: errors become one line on stderr and an exit status."""

    @functools.wraps(main)
    def wrapped(argv: Optional[List[str]] = None) -> None:
        interrupts: List[int] = []  # signal numbers, as they came

        def interrupt(signum, frame):
            interrupts.append(signum)
            raise KeyboardInterrupt

        try:
            signal.signal(signal.SIGTERM, interrupt)
            if signal.getsignal(signal.SIGINT) in (end_at_once, signal.default_int_handler):  # else it is ignored
                signal.signal(signal.SIGINT, interrupt)
        except ValueError:  # not in the main thread: somebody else owns the signals
            pass
        try:
            main(argv)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            # C code turns KeyboardInterrupt into errors of its own.
            if interrupts or isinstance(error, KeyboardInterrupt):
                _end(INTERRUPTED, 130)
            line = error_line(error, sys.argv[1:] if argv is None else argv)
            if line is None:
                raise
            _end(f"error: {line}", 1)

    return wrapped


def error_line(error: BaseException, argv: List[str]) -> Optional[str]:
    """One line for an error that the user can correct; None for a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in INSTALL:
        return f"the package {error.name} is not installed; this command needs it: {INSTALL[error.name]}"
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or _output_folder(argv)
        return f"{place + ': ' if place else ''}the disk is full; free some space and run the same command again"
    if not error.filename:
        return None
    hint = next((text for numbers, text in HINTS.items() if error.errno in numbers), "")
    return f"{error.filename}: {error.strerror}" + (f"; {hint}" if hint else "")


def _output_folder(argv: List[str]) -> str:
    """Where a command writes, by its options; most libraries do not say which file met the full disk."""
    options = ("--out-dir", "--exp-dir", "--cache-dir", "--out")
    return next((value for option, value in zip(argv, argv[1:]) if option in options), "")


def _end(line: str, status: int) -> None:
    print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
    sys.exit(status)

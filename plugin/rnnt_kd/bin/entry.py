"""How every command ends: a status and, for an error that the user can correct, one line.

0    done                                        130  interrupted (Ctrl-C, SIGTERM)
1    an error of the user's, or a wrong option
"""

import errno
import functools
import io
import os
import shutil
import signal
import sys
from typing import Callable, Iterator, List, Optional

from rnnt_kd.bin import INTERRUPTED, end_at_once
from rnnt_kd.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_DISK_BYTES = 64 * 1024  # less than this is left: the reason of an error that does not say so
HINTS = {
    (errno.ENOENT,): "expected a path that exists; check it",
    (errno.EEXIST, errno.ENOTDIR): "expected a folder; choose another path",
    (errno.EISDIR,): "expected a file; choose another path",
    (errno.EACCES, errno.EPERM, errno.EROFS): "expected permission to use it; change that, or choose another path",
    (errno.EMFILE, errno.ENFILE): "allow more open files (ulimit -n 4096)",
    (errno.EAGAIN,): "allow more processes (ulimit -u), or run fewer side by side (--nj)",
    (errno.EIO, errno.ESTALE): "the disk or the network behind it fails; see the system's log, or choose another path",
}
NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "Unable to allocate", "failed to map segment")
EXTRAS = {  # the extra of pyproject.toml -> its packages, by the names they are imported with
    "recipe": "espeakng_loader filelock h5py kaldialign lhotse lightning_fabric lilcom numpy omegaconf pydantic yaml "
    "typing_extensions safetensors scipy sentencepiece soundfile tabulate tensorboard tqdm urllib3",
    "k2": "k2 torchaudio",
    "export": "onnx onnxruntime sherpa_onnx",
    "report": "matplotlib jinja2",
    "lm": "kaldilm",
    "compiled": "numba",
}
INSTALL = {
    **{name: f"pip install 'rnnt-kd[{extra}]'" for extra, names in EXTRAS.items() for name in names.split()},
    "sounddevice": "pip install sounddevice",
    "rnnt_kd_engine": "pip install ./packages/engine, in a checkout",
}


def command(main: Callable[[Optional[List[str]]], None]) -> Callable[..., None]:
    """Decorate ``main(argv=None)``: errors become one line on stderr and an exit status."""

    @functools.wraps(main)
    def wrapped(argv: Optional[List[str]] = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no error
                stream.reconfigure(errors="backslashreplace")
        interrupts: List[int] = []  # signal numbers, as they came

        def interrupt(signum, frame):
            is_new = not interrupts or signum in interrupts  # else it ends already: who started it was ended, too
            interrupts.append(signum)
            if is_new:
                raise KeyboardInterrupt

        try:
            signal.signal(signal.SIGTERM, interrupt)
            if signal.getsignal(signal.SIGINT) in (end_at_once, signal.default_int_handler):  # else it is ignored
                signal.signal(signal.SIGINT, interrupt)
        except ValueError:  # not in the main thread: somebody else owns the signals
            pass
        shell = os.environ.pop("RNNT_KD_SHELL", "")
        if shell == str(os.getppid()):  # run.sh: whatever ends it ends this, too
            from rnnt_kd.jobs import follow_launcher

            follow_launcher()
        words = sys.argv[1:] if argv is None else argv
        try:
            _check_words(words)
            main(argv)
        except BrokenPipeError:
            sys.stderr.close()
            sys.exit(1)
        except (Exception, KeyboardInterrupt) as error:
            # C code turns KeyboardInterrupt into errors of its own.
            if interrupts or isinstance(error, KeyboardInterrupt):
                _end(INTERRUPTED, 130)
            line = error_line(error, words)
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
    place = str(getattr(error, "filename", None) or _output_folder(argv))
    if _is_full(error, place):
        return f"{place + ': ' if place else ''}the disk is full; free some space and run the same command again"
    if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
        return "the memory is full; use smaller batches, fewer processes (--nj), or a machine that has more"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object[:200]!r}: a name that is not in UTF-8; rename it"
    if isinstance(error, FileNotFoundError) and not error.filename:  # of tempfile, which tried every folder; of getcwd
        is_temporary = "temporary" in str(error.strerror)
        return f"{error.strerror}; " + (
            "set TMPDIR to another folder" if is_temporary else "call it from another folder"
        )
    hint = next((text for numbers, text in HINTS.items() if getattr(error, "errno", None) in numbers), "")
    if isinstance(error, OSError) and (error.filename or hint):
        return ": ".join(filter(None, (str(error.filename or ""), error.strerror))) + (f"; {hint}" if hint else "")
    return None


def _check_words(words: List[str]) -> None:
    """UserError: a word that cannot stand in a file of lines in UTF-8, as paths do."""
    for word in (*words, os.getcwd()):
        if any(ord(character) < 32 and character != "\t" or 0xDC80 <= ord(character) <= 0xDCFF for character in word):
            expected = "a name without line breaks, in UTF-8"
            raise UserError(repr(word[:200]), "has a character that no name here may have", expected, "rename it")


def _is_full(error: BaseException, place: str) -> bool:
    """Libraries say it in their own words, or not at all."""
    for reason in _reasons(error):
        known = isinstance(reason, OSError) and reason.errno in FULL
        if known or any(os.strerror(number) in str(reason) for number in FULL):
            return True
    try:
        return not isinstance(error, OSError) and shutil.disk_usage(place or ".").free < FULL_DISK_BYTES
    except OSError:
        return False


def _reasons(error: Optional[BaseException]) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _output_folder(argv: List[str]) -> str:
    """Where a command writes, by its options; most libraries do not say which file met the full disk."""
    options = ("--out-dir", "--exp-dir", "--cache-dir", "--out")
    return next((value for option, value in zip(argv, argv[1:]) if option in options), "")


def _end(line: str, status: int) -> None:
    line = f"\n{line}\n" if sys.stderr.isatty() else f"{line}\n"
    sys.stderr.write(line)  # at once, where print writes the end of the line by itself: others write there, too
    sys.stderr.flush()
    if "rnnt_kd.training.ranks" in sys.modules:  # else this process is not one of several
        sys.modules["rnnt_kd.training.ranks"].leave(status)
    sys.exit(status)

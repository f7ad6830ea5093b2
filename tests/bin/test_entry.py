"""What a command prints and returns when it cannot go on."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from fnmatch import fnmatchcase

import pytest

from rnnt_kd.bin import entry
from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError


def status_of(error, capsys, argv=()):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return ended.value.code, capsys.readouterr().err


LONG = 300.0  # seconds, on a busy machine
FULL = OSError(errno.ENOSPC, "No space left on device")


def of_the_system(number):
    return OSError(number, os.strerror(number), "exp/cache")


def caused_by(cause):
    """What a library makes of it."""
    error = RuntimeError("write failed")
    error.__cause__ = cause
    return error


def not_in_utf8():
    try:
        "a\udcff".encode()
    except UnicodeEncodeError as error:
        return error


def missing(package):
    return ModuleNotFoundError(f"No module named '{package}'", name=package)


@pytest.mark.parametrize("error, argv, beginning", [
    (
        UserError("text:3", "no\nwords", "a transcript", "correct it"),
        "",
        "text:3: no words; expected a transcript; cor",
    ),
    (of_the_system(errno.ENOSPC), "", "exp/cache: the disk is full"),
    (FULL, "--nj 2 --out-dir exp/cuts", "exp/cuts: the disk is full"),
    (FULL, "", "the disk is full"),
    (missing("onnxruntime"), "", "the package onnxruntime is not installed*rnnt-kd[[]export]"),
    (missing("numba"), "", "the package numba is not installed*rnnt-kd[[]compiled]"),
    (of_the_system(errno.ENOENT), "", "exp/cache: No such file or directory; expected a path that exists"),
    (of_the_system(errno.EEXIST), "", "exp/cache: File exists; expected a folder"),
    (of_the_system(errno.ENOTDIR), "", "exp/cache: Not a directory; expected a folder"),
    (of_the_system(errno.EISDIR), "", "exp/cache: Is a directory; expected a file"),
    (of_the_system(errno.EACCES), "", "exp/cache: Permission denied; expected permission"),
    (of_the_system(errno.EROFS), "", "exp/cache: Read-only file system; expected permission"),
    (of_the_system(errno.EMFILE), "", "exp/cache: Too many open files; *ulimit -n"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "", "Resource temporarily unavailable; *(--nj)"),
    (OSError(errno.EFBIG, "File too large"), "--out a", "a: the disk is full"),
    (caused_by(FULL), "", "the disk is full"),
    (RuntimeError("IoError(Os { code: 28, message: No space left on device })"), "--exp-dir e", "e: the disk is full"),
    (MemoryError(), "", "the memory is full; use smaller batches"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "", "the memory is full"),
    (RuntimeError("std::bad_alloc"), "", "the memory is full"),
    (not_in_utf8(), "", "'a\\udcff': a name that is not in UTF-8"),
    (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "", "No usable temporary*set TMPDIR"),
    (UserError("never", "raised"), "--out a\udcff", "'a\\udcff': has a character that no name here may have"),
    (UserError("never", "raised"), "--out a\x01b", "'a\\x01b': has a character"),
])  # fmt: skip
def test_what_a_user_can_put_right_is_one_line(error, argv, beginning, capsys):
    status, text = status_of(error, capsys, argv.split())
    assert status == 1 and text.count("\n") == 1 and fnmatchcase(text, f"error: {beginning}*"), text


def test_a_missing_package_of_ours_is_a_bug(capsys):
    with pytest.raises(ModuleNotFoundError):
        status_of(ModuleNotFoundError("No module named 'torch'", name="torch"), capsys)


def test_a_name_that_the_terminal_cannot_show_is_no_error(root):
    code = "from rnnt_kd.bin.entry import command\n@command\ndef main(argv=None):\n    print('\u674e')\nmain([])"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(root / "plugin")},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "\\u674e\n" and not ran.stderr


def test_own_bugs_keep_their_traceback():
    @command
    def main(argv=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def start(root, *arguments, path=None, environment="none", **how):
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PYTHONPATH": path or str(root / "plugin"), "PATH": "", "RNNT_KD_ENV": environment}, **how,
    )  # fmt: skip


def killed(process):
    """What it said on stderr; its status is that of an interrupted command."""
    _, errors = process.communicate(timeout=LONG)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    return errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_and_terminate_end_with_130_and_no_traceback(number, root):
    program = (
        "from rnnt_kd.bin.entry import command\nimport time\n"
        "@command\ndef main(argv=None):\n    print('ready', flush=True)\n    time.sleep(300)\nmain()\n"
    )
    process = start(root, "-c", program)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    killed(process)


def test_ctrl_c_and_the_sigterm_of_who_started_it_are_one_interruption(root):
    program = (
        "from rnnt_kd.bin.entry import command\nimport atexit, os, signal, time\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))\n"
        "@command\ndef main(argv=None):\n    os.kill(os.getpid(), signal.SIGINT)\nmain()\n"
    )
    assert killed(start(root, "-c", program)).count("\n") == 1


def test_an_interrupt_that_c_code_turned_into_another_error_is_an_interrupt(root):
    program = (
        "from rnnt_kd.bin.entry import command\nimport os, signal\n"
        "@command\ndef main(argv=None):\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n        raise RuntimeError('KeyboardInterrupt: <EMPTY MESSAGE>') from None\nmain()\n"
    )
    killed(start(root, "-c", program))


def test_no_memory_for_the_imports_is_one_line(root, tmp_path):
    (tmp_path / "numpy.py").write_text("raise ImportError('libtorch.so: failed to map segment from shared object')\n")
    process = start(root, "-m", "rnnt_kd.bin.validate_data_dir", path=f"{tmp_path}:{root / 'plugin'}")
    errors = process.communicate(timeout=LONG)[1]
    assert process.returncode == 1 and errors.count("\n") == 1 and errors.startswith("error: the memory is full")


def test_an_interrupt_in_the_imports_is_one_line(root, tmp_path):
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(300)\n"
    (tmp_path / "numpy.py").write_text(slow)  # imported by the command before its own main runs
    process = start(root, "-m", "rnnt_kd.bin.validate_data_dir", path=f"{tmp_path}:{root / 'plugin'}")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    errors = killed(process)
    assert errors.count("\n") == 1 and errors.startswith("interrupted")


def test_neither_the_users_folder_nor_their_pythonpath_hides_a_package(root, tmp_path):
    for name in ("numpy", "queue", "lhotse"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not this one')\n")
    command = ["-m", "rnnt_kd.bin.validate_data_dir", "--help"]
    process = start(root, *command, path=f"{root / 'plugin'}:{tmp_path}", environment="k2", cwd=tmp_path)
    assert process.communicate(timeout=LONG)[1] == "" and process.returncode == 0
    shutil.copytree(root / "plugin" / "rnnt_kd" / "bin", tmp_path / "rnnt_kd" / "bin")
    (tmp_path / "rnnt_kd" / "__init__.py").touch()
    process = start(root, *command, cwd=tmp_path)
    assert process.communicate(timeout=LONG)[1].count("hides that of") == 1 and process.returncode == 1


def test_an_error_that_does_not_say_so_is_the_full_disks(capsys, monkeypatch):
    used = shutil.disk_usage("/")
    error = RuntimeError("System error.")
    with pytest.raises(RuntimeError):
        status_of(error, capsys, ["--out-dir", "/"])
    monkeypatch.setattr(entry.shutil, "disk_usage", lambda path: used._replace(free=0))
    assert status_of(error, capsys, ["--out-dir", "/"])[1].startswith("error: /: the disk is full")

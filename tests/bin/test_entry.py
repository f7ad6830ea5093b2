"""What a command prints and returns when it cannot go on."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError


def status_of(error, capsys, argv=()):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as ended:
        main(list(argv))
    return ended.value.code, capsys.readouterr().err


def test_user_error_is_one_line(capsys):
    status, text = status_of(UserError("data/text:3", "no words", "a transcript", "correct it"), capsys)
    assert (status, text) == (1, "error: data/text:3: no words; expected a transcript; correct it\n")


def test_full_disk_is_one_line_naming_the_file(capsys):
    status, text = status_of(OSError(errno.ENOSPC, "No space left on device", "exp/model"), capsys)
    assert status == 1
    assert text.count("\n") == 1 and "exp/model" in text and "disk is full" in text


def test_full_disk_names_the_output_folder_where_the_error_names_nothing(capsys):
    error = OSError(errno.ENOSPC, "No space left on device")
    _, text = status_of(error, capsys, ["--nj", "2", "--out-dir", "exp/cuts"])
    assert text.startswith("error: exp/cuts: the disk is full")
    assert status_of(error, capsys)[1].startswith("error: the disk is full")


@pytest.mark.parametrize("package, extra", [("onnxruntime", "rnnt-kd[export]"), ("numba", "rnnt-kd[inference]")])
def test_a_missing_optional_package_is_one_line_that_says_what_to_install(package, extra, capsys):
    error = ModuleNotFoundError(f"No module named '{package}'", name=package)
    status, text = status_of(error, capsys)
    assert status == 1 and text.count("\n") == 1
    assert text.startswith(f"error: the package {package} is not installed") and extra in text


def test_a_missing_package_of_ours_is_a_bug(capsys):
    with pytest.raises(ModuleNotFoundError):
        status_of(ModuleNotFoundError("No module named 'torch'", name="torch"), capsys)


@pytest.mark.parametrize(
    "number, expected",
    [
        (errno.ENOENT, "a path that exists"),
        (errno.EEXIST, "a folder"),
        (errno.ENOTDIR, "a folder"),
        (errno.EISDIR, "a file"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "permission"),
    ],
)
def test_an_error_of_the_system_says_what_was_expected(number, expected, capsys):
    status, text = status_of(OSError(number, os.strerror(number), "exp/cache"), capsys)
    assert status == 1
    assert text.startswith(f"error: exp/cache: {os.strerror(number)}; expected {expected}") and text.count("\n") == 1


def test_own_bugs_keep_their_traceback():
    @command
    def main(argv=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def start(root, *arguments, path=None):
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PYTHONPATH": path or str(root / "plugin"), "PATH": ""},
    )  # fmt: skip


def killed(process):
    """What it said on stderr; its status is that of an interrupted command."""
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    return errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_and_terminate_end_with_130_and_no_traceback(number, root):
    program = (
        "from rnnt_kd.bin.entry import command\nimport time\n"
        "@command\ndef main(argv=None):\n    print('ready', flush=True)\n    time.sleep(30)\nmain()\n"
    )
    process = start(root, "-c", program)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    killed(process)


def test_an_interrupt_that_c_code_turned_into_another_error_is_an_interrupt(root):
    program = (
        "from rnnt_kd.bin.entry import command\nimport os, signal\n"
        "@command\ndef main(argv=None):\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n        raise RuntimeError('KeyboardInterrupt: <EMPTY MESSAGE>') from None\nmain()\n"
    )
    killed(start(root, "-c", program))


def test_an_interrupt_in_the_imports_is_one_line(root, tmp_path):
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(30)\n"
    (tmp_path / "numpy.py").write_text(slow)  # imported by the command before its own main runs
    process = start(root, "-m", "rnnt_kd.bin.validate_data_dir", path=f"{tmp_path}:{root / 'plugin'}")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    errors = killed(process)
    assert errors.count("\n") == 1 and errors.startswith("interrupted")

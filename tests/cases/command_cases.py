"""How tests call commands: in this process, where they are refused or interrupted, and in another one."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from rnnt_kd import atomic
from rnnt_kd.record import file_digest, record_path


def words(**values):
    """The command line of these options."""
    return [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def refused(capsys, main, *arguments, lines=1):
    """The one line of a command that is refused; ``lines=None``: progress may stand before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and said[-1].startswith("error: ") and lines in (None, len(said)), said
    return said[-1]


def edit_record(path, change):
    """``change`` the values of a record, as one of an earlier version: without its own digest."""
    values = json.loads(path.read_text())
    values.pop("sha256", None)
    change(values)
    path.write_text(json.dumps(values))


def record_again(path, work):
    """What a test wrote to an output of ``work`` counts as what was written."""
    digest = file_digest(path)
    edit_record(record_path(path.parent, work), lambda values: values["outputs"].update({path.name: digest}))


@contextlib.contextmanager
def writes_interrupted(after):
    """Ctrl-C in place of the atomic write after so many; yields the list of what was written."""
    real, written = os.replace, []

    def replace(source, target):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(target)
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic.os, "replace", replace)
        yield written


def start(root, command, arguments):
    """``python -m rnnt_kd.bin.COMMAND`` in a process of its own; what it says is its stdout."""
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", f"rnnt_kd.bin.{command}", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

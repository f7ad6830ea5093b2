"""How tests call what refuses its input, and commands: in this process, also interrupted, and in another one."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.record import file_digest, record_path

LONG = 600.0  # seconds: no command of a test takes so long on the busiest machine


def words(**values):
    """The command line of these options."""
    return [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def told(call, *arguments, **options):
    """The one line of the UserError that ``call`` ends with."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def refused(capsys, main, *arguments, lines=1):
    """The one line of a command that is refused; ``lines=None``: progress may stand before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and lines in (None, len(said)) and "Traceback" not in "".join(said), said
    assert [line.startswith("error: ") for line in said] == [False] * (len(said) - 1) + [True], said
    return said[-1]


def group_is_alive(group):
    """Is there still a process of that group?"""
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def edit_record(path, change):
    """``change`` the values of a record, as one of an earlier version: without its own digest."""
    values = json.loads(path.read_text())
    values.pop("sha256", None)
    change(values)
    path.write_text(json.dumps(values))


def record_again(path, work, folder=None):
    """What a test wrote to an output of ``work`` counts as what was written; ``folder``: of the record."""
    digest, folder = file_digest(path), folder or path.parent
    name = str(path.relative_to(folder))
    edit_record(record_path(folder, work), lambda values: values["outputs"].update({name: digest}))


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


KILLED_IN = """
import os, pkgutil, runpy, signal, sys
where, after, module = sys.argv[1:4]
del sys.argv[:3]
owner, _, name = where.rpartition(".")
owner, calls = pkgutil.resolve_name(owner), []
real = getattr(owner, name)
def counted(*arguments, **more):
    calls.append(name)
    if len(calls) > int(after):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **more)
setattr(owner, name, counted)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def start(root, command, arguments, killed_in=None, after=0, file_bytes=None):
    """``python -m rnnt_kd.bin.COMMAND`` in a process of its own; what it says is its stdout.

    killed_in: by kill -9, in place of the call of this function after so many: "rnnt_kd.atomic:os.replace".
    file_bytes: no file can be larger, as on a disk that is full.
    """
    limit = file_bytes and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY)))
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin"), "OMP_NUM_THREADS": "1"}
    how = ["-c", KILLED_IN, killed_in, str(after)] if killed_in else ["-m"]
    line = [sys.executable, *how, f"rnnt_kd.bin.{command}", *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(line, env=environment, preexec_fn=limit, **pipes)


def fails_on_a_full_disk(*arguments, file_bytes):
    """``start`` what ends in one line that says so, and leaves no temporary file behind."""
    process = start(*arguments, file_bytes=file_bytes)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 1 and "Traceback" not in said, said
    assert "the disk is full; free some space" in said.splitlines()[-1], said


def kill(*arguments, **killed_in):
    """``start`` what is killed on its way."""
    process = start(*arguments, **killed_in)
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGKILL, said

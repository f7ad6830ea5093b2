"""Jobs side by side, here and through a program that is called as Kaldi's run.pl is: failures stay alone, logs tell
them, and nothing outlives who started it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rnnt_kd import jobs as module
from rnnt_kd.bin import run_cmd
from rnnt_kd.errors import UserError
from rnnt_kd.jobs import JOB, Jobs, read_cmd, run_ranks, run_side_by_side

WAIT = 300.0  # seconds, at most, on the busiest machine


def writes(path, text="x", before=""):
    return ["-c", f"{before}\nopen({str(path)!r}, 'a').write({text!r})"]


def meets(own, other):
    """Ends well only if the other one runs at the same time."""
    return [
        "-c",
        f"import os, time\nopen({str(own)!r}, 'w').close()\nend = time.monotonic() + {WAIT}\n"
        f"while not os.path.exists({str(other)!r}):\n    assert time.monotonic() < end\n    time.sleep(0.02)\n",
    ]


def is_alive(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def stand_in(folder):
    """Runs an array as run.pl does: the number's name replaced everywhere, words to bash as they are, no end of a job."""
    path = folder / "queue.sh"
    path.write_text(
        "#!/usr/bin/env bash\n"
        "while [[ $1 == -* ]]; do shift 2; done\nname=@none@ last=1\n"
        "if [[ $1 =~ ^([A-Z_]+)=1:([0-9]+)$ ]]; then name=${BASH_REMATCH[1]} last=${BASH_REMATCH[2]}; shift; fi\n"
        'log=$1; shift; line="$*"; status=0\n'
        "for ((n = 1; n <= last; n++)); do\n"
        '  to=${log//$name/$n}; echo "# ${line//$name/$n}" >"$to"\n'
        '  ( eval "${line//$name/$n}" ) >>"$to" 2>&1; code=$?; [ $code = 0 ] || status=1\n'
        '  echo "# Ended (code $code) at $(date), elapsed time 1 seconds" >>"$to"\ndone\nexit $status\n'
    )
    path.chmod(0o755)
    return path


@pytest.fixture(params=["here", "cmd"])
def cmd(request, tmp_path):
    return [str(stand_in(tmp_path)), "--mem", "2G"] if request.param == "cmd" else []


def test_an_array_has_its_numbers_its_logs_and_words_that_no_shell_reads(tmp_path, cmd):
    odd = 'JOB\'s "$HOME" `id` ü * ;'
    code = f"import sys\nprint('said\\rit', sys.argv[1:])\nopen({str(tmp_path)!r} + '/out' + sys.argv[1], 'w')"
    assert run_side_by_side([Jobs("all", ["-c", code, JOB, odd], tmp_path / "log" / "all", 3)], 2, cmd) == []
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out1", "out2", "out3"]
    for number in (1, 2, 3):
        text = (tmp_path / "log" / f"all.{number}.log").read_text()
        assert str([str(number), odd]) in text and "# Ended (code 0) at" in text and text.startswith("# ")
        assert "\r" not in text or cmd


def test_a_job_that_fails_is_named_with_the_end_of_its_log_and_stops_no_other(tmp_path, cmd, capfd):
    code = "import sys; print('why'); sys.exit(3 * (sys.argv[1] == '2'))"
    broken = Jobs("broken", ["-c", code, JOB], tmp_path / "log" / "broken", 3)
    fine = Jobs("fine", writes(tmp_path / "fine"), tmp_path / "log" / "fine")
    assert run_side_by_side([broken, fine], 2, cmd) == ["broken, job 2"]
    assert (tmp_path / "fine").exists()
    log = tmp_path / "log" / "broken.2.log"
    assert f"broken, job 2: ended with status 3; {log} ends with:\n  why\n" in capfd.readouterr().err


def test_a_job_that_is_killed_is_named_with_the_signal(tmp_path, cmd, capfd):
    killed = Jobs("teacher/1", ["-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "teacher")
    assert run_side_by_side([killed], 1, cmd) == ["teacher/1"]
    assert "teacher/1: killed by SIGKILL (memory?) (status 137); " in capfd.readouterr().err
    assert "# Ended (code 137" in (tmp_path / "teacher.log").read_text()


def test_jobs_run_at_the_same_time_with_their_names_before_their_lines(tmp_path, capsys):
    first, second = meets(tmp_path / "a", tmp_path / "b"), meets(tmp_path / "b", tmp_path / "a")
    first[1] += "print('hello')\nimport sys\nprint('there', file=sys.stderr)"
    assert run_side_by_side([Jobs(n, w, tmp_path / n[0]) for n, w in (("a/1", first), ("b/2", second))], 2) == []
    assert sorted(capsys.readouterr().err.splitlines()) == ["[a/1] hello", "[a/1] there"]


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_than_asked_for_run_at_once(tmp_path, monkeypatch, at_once):
    running, most = set(), []

    class Counted(module._Running):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            running.add(self)
            most.append(len(running))

        def poll(self):
            status = super().poll()
            if status is not None:
                running.discard(self)
            return status

    monkeypatch.setattr(module, "_Running", Counted)
    assert run_side_by_side([Jobs("x", writes(tmp_path / "out"), tmp_path / "x", 4)], at_once) == []
    assert max(most) == at_once and len(most) == 4 and (tmp_path / "out").read_text() == "xxxx"


def test_a_program_that_starts_no_job_is_told_and_old_logs_are_not_believed(tmp_path, capfd):
    (tmp_path / "x.1.log").write_text("# Ended (code 0) at ...\n")
    false = shutil.which("false")
    assert run_side_by_side([Jobs("x", ["-c", ""], tmp_path / "x", 2)], 1, [false]) == ["x, job 1", "x, job 2"]
    assert f"x, job 1: was not started; there is no {tmp_path / 'x.1.log'}" in capfd.readouterr().err


def test_a_program_that_says_all_is_well_and_ran_nothing_is_not_believed(tmp_path, monkeypatch, capfd):
    """As one that submits jobs and does not wait for them."""
    monkeypatch.setattr("rnnt_kd.files.PAUSE_SECONDS", 0.0)
    one, true = Jobs("x", ["-c", ""], tmp_path / "x", 2), shutil.which("true")
    assert run_side_by_side([one, Jobs("y", [], tmp_path / "y")], 1, [true]) == ["x, job 1", "x, job 2", "y"]
    assert f"y: was not started; there is no {tmp_path / 'y.log'}" in capfd.readouterr().err


def test_what_cannot_be_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--cmd: run.pl 'x .No closing quotation.*close the quote"):
        read_cmd("run.pl 'x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written .*expected a folder for logs"):
        run_side_by_side([Jobs("x", [], tmp_path / "file" / "x")], 1)
    with pytest.raises(UserError, match="--cmd: '/' is no program that can be run"):
        run_side_by_side([Jobs("x", [], tmp_path / "x")], 1, ["/"])
    with pytest.raises(UserError, match="has a blank in it"):
        run_side_by_side([Jobs("x", [], tmp_path / "a b" / "x")], 1, [str(stand_in(tmp_path))])


def test_run_cmd_is_called_as_run_pl_is(tmp_path, capfd):
    log = str(tmp_path / "log" / "x.JOB.log")
    run_cmd.main(
        ["--max-jobs-run", "2", "--gpu", "0", "JOB=1:3", "--mem", "2G", log, "echo", "a  JOB", "|", "tr", "a", "b"]
    )
    assert "\nb  2\n" in (tmp_path / "log" / "x.2.log").read_text()
    with pytest.raises(SystemExit) as end:
        run_cmd.main(["JOB=1:3", log, "exit", "$((JOB / 3))"])
    assert end.value.code == 1
    said = capfd.readouterr().err
    assert "x.3.log: ended with status 1" in said and f"1 / 3 failed, log is in {log.replace('JOB', '*')}" in said
    for words in (
        ["JOB=1:3", str(tmp_path / "log"), "true"],
        ["JOB=0:3", log, "true"],
        [log],
        ["--max-jobs-run", "0", log, "a"],
    ):
        with pytest.raises(SystemExit):
            run_cmd.main(words)
        assert capfd.readouterr().err.startswith("error: ")


def test_what_a_job_left_in_the_background_is_not_waited_for_and_ends_with_it(tmp_path):
    run_cmd.main([str(tmp_path / "x.log"), "sleep", str(2 * WAIT), "&", "echo", "of", "$!"])
    (child,) = (
        int(line.split()[1]) for line in (tmp_path / "x.log").read_text().splitlines() if line.startswith("of ")
    )
    wait_for(lambda: not is_alive(child))


@pytest.mark.parametrize("cmd", [False, True])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_run_ends_its_jobs(root, tmp_path, how, cmd):
    if how == signal.SIGKILL and not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process that its parent was killed")
    code = f"""
import signal
from rnnt_kd.bin.entry import command
from pathlib import Path
from rnnt_kd.jobs import Jobs, run_side_by_side

@command
def main(argv=None):
    step = ["-c", "import os, time; open({str(tmp_path / "id")!r}, 'w').write(str(os.getpid())); time.sleep({2 * WAIT})"]
    run_side_by_side([Jobs("long", step, Path({str(tmp_path / "long")!r}))], at_once=2, cmd=CMD)

main([])
"""
    code = code.replace("CMD", repr([str(stand_in(tmp_path))] if cmd else []))
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin")}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text())
    child = int((tmp_path / "id").read_text())
    assert is_alive(child)
    process.send_signal(how)
    try:
        _, errors = process.communicate(timeout=WAIT)
        wait_for(lambda: not is_alive(child))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert "Traceback" not in errors and process.returncode == (-9 if how == signal.SIGKILL else 130)


RANK = "import json, os, sys, time\nrank = int(os.environ['RANK'])\n"


def test_ranks_find_their_places_as_torchrun_would_say_them(tmp_path):
    keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"{RANK}values = [os.environ[key] for key in {keys}]\njson.dump(values, open(sys.argv[1] + str(rank), 'w'))"
    assert run_ranks(["-c", code, str(tmp_path / "rank")], 3) == 0
    places = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(3)]
    assert [place[:5] for place in places] == [[str(rank), str(rank), "3", "3", "127.0.0.1"] for rank in range(3)]
    assert len({place[5] for place in places}) == 1 and "MASTER_PORT" not in os.environ


@pytest.mark.parametrize("ending, status, said", [
    ("sys.exit(3)", 3, ""), ("os.kill(os.getpid(), 9)", 137, "process 1 of 2: killed by SIGKILL (memory?) (status 137)\n"),
])  # fmt: skip
def test_a_rank_that_fails_ends_the_others_soon(monkeypatch, capfd, tmp_path, ending, status, said):
    monkeypatch.setattr(module, "_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(module, "_END_SECONDS", 1.0)
    ready = f"open({str(tmp_path / 'id')!r} + str(rank), 'w').write(str(os.getpid()))\n"
    wait = f"while not os.path.exists({str(tmp_path / 'id0')!r}): time.sleep(0.05)\n"
    code = f"{RANK}{ready}{wait}if rank: {ending}\nimport signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep({WAIT})"
    assert run_ranks(["-c", code], 2) == status
    assert not is_alive(int((tmp_path / "id0").read_text()))
    assert capfd.readouterr().err == said


def test_ranks_on_several_machines_are_left_to_srun(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--num-nodes: 2, and there is no srun here; expected Slurm"):
        run_ranks(["-m", "x"], 4, nodes=2)
    (tmp_path / "srun").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words; exit 5\n')
    (tmp_path / "srun").chmod(0o755)
    assert run_ranks(["-m", "x"], 4, nodes=2) == 5
    words = (tmp_path / "words").read_text().split()
    assert words == [
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--kill-on-bad-exit=1",
        sys.executable,
        "-m",
        "x",
    ]

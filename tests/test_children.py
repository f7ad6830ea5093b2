"""Commands side by side: failures stay alone, and nothing outlives who started it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rnnt_kd import children
from rnnt_kd.children import Commands, Worker, WorkerDied, in_processes, run_ranks, run_side_by_side
from rnnt_kd.errors import UserError

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


def test_steps_of_a_job_run_one_after_the_other(tmp_path):
    steps = [writes(tmp_path / "out", text, "import time; time.sleep(0.2)") for text in "abc"]
    assert run_side_by_side([Commands("one", steps)], at_once=4) == []
    assert (tmp_path / "out").read_text() == "abc"


def test_jobs_run_at_the_same_time_with_their_names_before_their_lines(tmp_path, capsys):
    first, second = meets(tmp_path / "a", tmp_path / "b"), meets(tmp_path / "b", tmp_path / "a")
    first[1] += "print('hello')\nimport sys\nprint('there', file=sys.stderr)"
    assert run_side_by_side([Commands("a/1", [first]), Commands("b/2", [second])], at_once=2) == []
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == ["[a/1] hello", "[a/1] there"]


def test_no_more_than_asked_for_run_at_once(tmp_path, monkeypatch):
    """Every job is counted from its start until it has been seen to end."""
    running, most = set(), []

    class Counted(children._Running):
        def __init__(self, commands, with_name):
            super().__init__(commands, with_name)
            running.add(self)
            most.append(len(running))

        def poll(self):
            status = super().poll()
            if status is not None:
                running.discard(self)
            return status

    monkeypatch.setattr(children, "_Running", Counted)
    for at_once in (1, 2):
        jobs = [Commands(str(number), [writes(tmp_path / f"log{at_once}")]) for number in range(4)]
        assert run_side_by_side(jobs, at_once=at_once) == []
        assert max(most) == at_once and len(most) == 4 and not running
        assert (tmp_path / f"log{at_once}").read_text() == "xxxx"
        most.clear()


def test_a_job_that_fails_stops_its_steps_and_no_other_job(tmp_path, capsys):
    broken = Commands("broken", [["-c", "import sys; print('why'); sys.exit(3)"], writes(tmp_path / "never")])
    fine = Commands("fine", [writes(tmp_path / "fine", before="import time; time.sleep(0.1)")])
    assert run_side_by_side([broken, fine], at_once=2) == [("broken", 3)]
    assert (tmp_path / "fine").exists() and not (tmp_path / "never").exists()
    assert "[broken] why" in capsys.readouterr().err


def test_a_job_that_is_killed_is_named_with_the_signal(capfd):
    killed = Commands("teacher/1", [["-c", "import os; os.kill(os.getpid(), 9)"]])
    assert run_side_by_side([killed], at_once=1) == [("teacher/1", -signal.SIGKILL)]
    assert capfd.readouterr().err == "teacher/1: killed by SIGKILL (memory?)\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_run_ends_its_jobs(root, tmp_path, how):
    if how == signal.SIGKILL and not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process that its parent was killed")
    code = f"""
import signal
from rnnt_kd.bin.entry import command
from rnnt_kd.children import Commands, Worker, WorkerDied, in_processes, run_side_by_side
from rnnt_kd.errors import UserError

@command
def main(argv=None):
    step = ["-c", "import os, time; open({str(tmp_path / "id")!r}, 'w').write(str(os.getpid())); time.sleep(60)"]
    run_side_by_side([Commands("long", [step])], at_once=2)

main([])
"""
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin")}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text())
    child = int((tmp_path / "id").read_text())
    assert is_alive(child)
    process.send_signal(how)
    _, errors = process.communicate(timeout=WAIT)
    wait_for(lambda: not is_alive(child))
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
    ("sys.exit(3)", 3, ""), ("os.kill(os.getpid(), 9)", -9, "process 1 of 2: killed by SIGKILL (memory?)\n"),
])  # fmt: skip
def test_a_rank_that_fails_ends_the_others_soon(monkeypatch, capfd, tmp_path, ending, status, said):
    monkeypatch.setattr(children, "_GRACE_SECONDS", 0.3)
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


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "doubling.py").write_text(
        "import os, signal, sys, time\nfrom rnnt_kd.children import serve\n\n"
        "def answer(request, arrays):\n"
        "    print('not an answer', flush=True)\n"
        "    if request.get('die'):\n        print('last line', file=sys.stderr, flush=True)\n        os._exit(7)\n"
        "    if request.get('kill'):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(request.get('sleep', 0))\n"
        "    return 2 * arrays[0].reshape(2, -1) if arrays else [request['text'] * 2, os.environ['COLOUR']]\n\n"
        "serve(answer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda timeout=None: Worker("doubling", timeout, {"COLOUR": "red"})


def test_a_worker_answers_with_json_or_an_array_and_ends_with_its_user(worker):
    with worker() as it:
        assert it.ask({"text": "ä\n"}) == ["ä\nä\n", "red"]
        values = np.arange(4, dtype=np.float32)
        assert np.array_equal(it.ask({}, [values]), 2 * values.reshape(2, 2))
        assert it.process.poll() is None
    assert it.process.poll() is not None


@pytest.mark.parametrize(
    "request_, ending", [({"die": True}, "ended with status 7"), ({"kill": True}, "ended by SIGKILL")]
)
def test_a_worker_that_dies_is_an_exception_with_its_last_line(worker, request_, ending):
    with worker() as it, pytest.raises(WorkerDied) as death:
        it.ask(request_)
    assert death.value.ending == ending and not death.value.late
    assert death.value.last_line == ("last line" if "die" in request_ else "not an answer")


def test_a_worker_that_is_late_is_ended(worker):
    with worker(timeout=0.3) as it, pytest.raises(WorkerDied, match="gave no answer in 0.3 s") as death:
        it.ask({"sleep": WAIT, "text": ""})
    assert death.value.late and it.process.poll() is not None


def test_a_function_in_several_processes_answers_in_order_and_a_killed_one_is_a_user_error():
    assert list(in_processes(abs, [-3, 2, -1], 2)) == [3, 2, 1] == list(in_processes(abs, [-3, 2, -1], 1))
    with pytest.raises(UserError, match="was killed.*fewer processes"):
        list(in_processes(os._exit, [1, 1], 2))


def test_a_memory_too_small_for_so_many_is_said_before_the_system_kills_one(tmp_path, monkeypatch):
    assert children._free_memory() > 0
    for name, text in {"max": "500000000\n", "used": "400000000\n", "memory.stat": "inactive_file 100000000\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(children, "_CONTROL_GROUPS", [(str(tmp_path), "max", "used")])
    assert children._free_memory() == 200_000_000
    monkeypatch.setattr(children, "PROCESS_BYTES", 150_000_000)
    steps = [Commands(name, [writes(tmp_path / name)]) for name in "ab"]
    assert run_side_by_side(steps, at_once=1) == []
    with pytest.raises(UserError, match="memory: 190 MB are free and 2 processes side by side take more;.*--nj"):
        run_side_by_side(steps, at_once=2)
    with pytest.raises(UserError, match="memory: 190 MB"):
        list(in_processes(abs, [1, 2], 2))
    (tmp_path / "max").write_text("max\n")
    assert children._free_memory() > 200_000_000

"""Processes that answer, and what ends them."""

import os

import numpy as np
import pytest

from rnnt_kd import children
from rnnt_kd.children import Worker, WorkerDied, in_processes
from rnnt_kd.errors import UserError

WAIT = 300.0  # seconds, at most, on the busiest machine


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
    children.check_memory(1)
    with pytest.raises(UserError, match="memory: 190 MB are free and 2 processes side by side take more;.*--nj"):
        children.check_memory(2)
    with pytest.raises(UserError, match="memory: 190 MB"):
        list(in_processes(abs, [1, 2], 2))
    (tmp_path / "max").write_text("max\n")
    assert children._free_memory() > 200_000_000

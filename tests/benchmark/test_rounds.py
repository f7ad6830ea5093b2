"""Workers take turns; one that cannot go on stops none of the others, and none outlives the run."""

import os

import pytest

from rnnt_kd.benchmark.rounds import Job, run_group, worker_environment

# A worker that notes its turns instead of measuring.  seconds: 1, 2, ... in the order of all turns.
FAKE = """
import json, os, signal, sys
specification = json.loads(sys.stdin.readline())
log, name = specification["log"], specification["name"]
with open(log + ".pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
if name == "nobody":
    print(json.dumps({"cannot": "not here"}), flush=True)
    sys.exit()
if name == "bug":
    raise ZeroDivisionError("ours")
print(json.dumps({"ready": {"lattice": "pruned"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if name == "dies" and not request["with_memory"]:
        os.kill(os.getpid(), signal.SIGKILL)
    with open(log, "a") as file:
        file.write(f"{name}{request['batch']}{'m' if request['with_memory'] else ''} ")
    answer = {"seconds": specification.get("takes", 1.0), "peak_bytes": 5, "loss": 2.0}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "fake_worker.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = tmp_path / "log"

    def run(*names, rounds=2, num_batches=2, seconds_per_row=1000.0, tell=lambda work, name: None, **specification):
        jobs = [
            Job(name, {"batches": [[]] * num_batches, "num_threads": 1, "log": str(log), "name": name, **specification})
            for name in names
        ]
        run_group(jobs, "fake_worker", rounds=rounds, seconds_per_row=seconds_per_row, tell=tell)
        return jobs, log.read_text().split() if log.exists() else []

    run.pids = lambda: [int(line) for line in (tmp_path / "log.pids").read_text().split()]
    return run


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_memory_first_then_turns_batch_by_batch_with_another_one_first_each_time(run):
    jobs, turns = run("a", "b", "c")
    assert turns[:6] == ["a0m", "a1m", "b0m", "b1m", "c0m", "c1m"]
    assert turns[6:12] == ["a0", "b0", "c0", "b1", "c1", "a1"]
    assert turns[12:] == ["b0", "c0", "a0", "c1", "a1", "b1"]
    assert all(job.seconds == [[1.0, 1.0], [1.0, 1.0]] and job.peak_bytes == [5, 5] for job in jobs)
    assert all(job.losses == [2.0, 2.0] and job.cannot is None for job in jobs)


def test_who_cannot_is_left_out_with_the_reason(run):
    jobs, turns = run("nobody", "a", rounds=1, num_batches=1)
    assert jobs[0].cannot == "not here"
    assert turns == ["a0m", "a0"]


def test_who_is_killed_is_left_out_and_the_others_go_on(run):
    jobs, turns = run("dies", "a")
    assert "signal 9" in jobs[0].cannot and "memory" in jobs[0].cannot
    assert jobs[1].seconds == [[1.0, 1.0], [1.0, 1.0]]


def test_a_bug_of_ours_shows_its_traceback(run):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run("a", "bug")
    assert not any(map(is_alive, run.pids()))


def test_who_is_too_slow_sits_out_after_a_round(run):
    jobs, turns = run("a", takes=10.0, rounds=3, seconds_per_row=15.0)
    assert jobs[0].seconds == [[10.0], [10.0]]


def test_all_work_is_told_whoever_fails_or_sits_out(run):
    for names, limit in [(("nobody", "a", "dies"), 1000.0), (("a", "b"), 0.5)]:
        told = []
        run(*names, rounds=3, seconds_per_row=limit, tell=lambda work, name: told.append(work))
        assert sum(told) == len(names) * 2 * (3 + 1)


def test_no_worker_outlives_an_interrupted_run(run):
    def interrupt(work, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("a", "b", tell=interrupt)
    assert len(run.pids()) == 2 and not any(map(is_alive, run.pids()))


def test_workers_have_as_many_threads_as_asked_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert worker_environment(2)["OMP_NUM_THREADS"] == worker_environment(2)["MKL_NUM_THREADS"] == "2"

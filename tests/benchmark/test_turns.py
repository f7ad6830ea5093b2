"""Subjects take turns; one that cannot go on stops none of the others, and no process outlives the run."""

import os

import pytest

from benchmark.turns import Measurement, run_group, run_groups
from rnnt_kd.errors import UserError

# Subjects that note their turns instead of computing.  The last batch has a part of its own.
FAKE = """
import os, signal, time
import torch
from rnnt_kd.errors import UserError

def subjects(specification):
    log, name = specification["log"], specification["name"]
    with open(log + ".pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    if name == "nobody":
        raise UserError("here", "not possible")
    if name == "bug":
        raise ZeroDivisionError("ours")
    def subject(batch):
        def run():
            with open(log, "a") as file:
                file.write(f"{name}{batch} ")
            if name == "dies" and batch == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "slow":
                time.sleep(0.05)
            return {"part": 2.0}
        return run, [torch.zeros(1)]
    return [subject(batch) for batch in range(len(specification["batches"]))], {"threads": os.environ["OMP_NUM_THREADS"]}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "fake_subjects.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = tmp_path / "log"
    common = {"module": "fake_subjects", "batches": [[]] * 2, "num_threads": 2, "log": str(log)}

    def run(*names, rounds=2, seconds_per_row=1000.0, told=lambda: None):
        jobs = [Measurement(name, {**common, "name": name}) for name in names]
        run_group(jobs, rounds, seconds_per_row, told)
        return jobs, log.read_text().split() if log.exists() else []

    run.pids = lambda: [int(line) for line in (tmp_path / "log.pids").read_text().split()]
    run.jobs = lambda *names: [Measurement(name, {**common, "name": name}) for name in names]
    return run


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_batch_by_batch_all_have_a_turn_with_another_one_first_each_time(run):
    jobs, turns = run("a", "b", "c")
    assert turns[6:] == ["a0", "b0", "c0", "b1", "c1", "a1", "b0", "c0", "a0", "c1", "a1", "b1"]
    assert sorted(turns[:6]) == ["a0", "a1", "b0", "b1", "c0", "c1"]  # for the memory, not on the clock
    for job in jobs:
        assert [len(rounds) for rounds in job.seconds] == [2, 2] == [len(rounds) for rounds in job.parts["part"]]
        assert len(job.peak_bytes) == 2 and job.losses == [None, None] and job.cannot is None
        assert job.facts == {"threads": "2"}  # as many as asked for


def test_who_cannot_is_left_out_with_the_reason_and_the_others_go_on(run):
    (nobody, dies, able), turns = run("nobody", "dies", "a")
    assert nobody.cannot == "here: not possible" and "SIGKILL" in dies.cannot and "memory" in dies.cannot
    assert [len(rounds) for rounds in able.seconds] == [2, 2] and turns.count("a1") == 3


def test_a_bug_of_ours_shows_its_traceback(run):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run("a", "bug")
    assert not any(map(is_alive, run.pids()))


def test_who_is_too_slow_sits_out_after_a_round_and_every_pass_is_told(run):
    told = []
    (slow, nobody), _ = run("slow", "nobody", rounds=3, seconds_per_row=0.01, told=lambda: told.append(1))
    assert [len(rounds) for rounds in slow.seconds] == [1, 1]
    assert len(told) == 2 * 2 * (3 + 1)


def test_no_process_outlives_an_interrupted_run(run):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("a", "b", told=interrupt)
    assert len(run.pids()) == 2 and not any(map(is_alive, run.pids()))


def test_groups_are_handed_over_one_by_one_and_it_is_an_error_if_nobody_could(run, capsys):
    groups, finished = [run.jobs("nobody"), run.jobs("a")], []
    run_groups(groups, rounds=1, title=lambda job: "here", finished=finished.append)
    assert finished == groups and "here: nobody: left out, here: not possible" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing could be measured: here: not possible"):
        run_groups(groups[:1], rounds=1, title=lambda job: "here", finished=finished.append)

"""A worker answers what it is asked; a peer that fails is an answer, our own failure is not."""

import sys
from types import SimpleNamespace

import pytest

from benchmark.worker import answerer

SPECIFICATION = dict(
    module="benchmark.loss", subject="naive", variant="none", impl=None, batches=[[[9, 3], [8, 2]], [[12, 4]]],
    device="cpu", vocab=6, joiner_dim=4, prune_range=3, seed=1, dtype="float32", num_threads=1,
)  # fmt: skip
FIRST = {"batch": 0, "with_memory": False}


def answers(*requests, **changed):
    answer = answerer()
    return [answer(request) for request in ({**SPECIFICATION, **changed}, *requests)]


def test_facts_first_then_one_answer_a_request():
    ready, first, second = answers({"batch": 1, "with_memory": True}, FIRST, subject="ours", impl="auto")
    assert ready["facts"]["impl"] in ("torch", "triton") and ready["facts"]["lattice"] == "pruned"
    assert first["seconds"] > 0 and first["peak_bytes"] >= 0 and first["loss"] > 0
    assert second["peak_bytes"] is None and second["loss"] != first["loss"]


def failing(monkeypatch, error):
    def subjects(specification):
        raise error

    monkeypatch.setitem(sys.modules, "failing", SimpleNamespace(subjects=subjects))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 5 GiB"),
              RuntimeError("[enforce fail at alloc_cpu.cpp:66] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_want_of_memory_is_an_answer(error, monkeypatch):
    failing(monkeypatch, error)
    for subject in ("ours", "k2"):
        assert answers(module="failing", subject=subject) == [{"cannot": "out of memory"}]


def test_what_a_peer_raises_is_an_answer_and_what_we_raise_is_not(monkeypatch):
    failing(monkeypatch, AssertionError("T >= S"))
    assert answers(module="failing", subject="k2") == [{"cannot": "AssertionError: T >= S"}]
    with pytest.raises(AssertionError):
        answers(module="failing", subject="ours")

"""A worker answers what it is asked; a peer that fails is an answer, our own failure is not."""

import io
import json

import pytest
import torch

from rnnt_kd.benchmark import peers
from rnnt_kd.benchmark.worker import loss_subjects, serve
from rnnt_kd.errors import UserError

SPECIFICATION = dict(
    subject="naive", variant="none", impl=None, batches=[[[9, 3], [8, 2]], [[12, 4]]], device="cpu", vocab=6,
    joiner_dim=4, prune_range=3, seed=1, dtype="float32", num_threads=1,
)  # fmt: skip


def answers(make, *requests, **changed):
    out = io.StringIO()
    lines = [json.dumps({**SPECIFICATION, **changed}), *(json.dumps(request) for request in requests)]
    serve(make, io.StringIO("".join(line + "\n" for line in lines)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_ready_then_one_answer_a_request():
    ready, first, second = answers(
        loss_subjects,
        {"batch": 1, "with_memory": True},
        {"batch": 0, "with_memory": False},
        subject="ours",
        impl="auto",
    )
    assert ready["ready"]["impl"] in ("torch", "triton") and ready["ready"]["lattice"] == "pruned"
    assert first["seconds"] > 0 and first["peak_bytes"] >= 0 and first["loss"] > 0
    assert second["peak_bytes"] is None and second["loss"] != first["loss"]


def test_ours_and_naive_have_the_same_losses():
    request = {"batch": 0, "with_memory": False}
    for variant in ("none", "online"):
        _, naive = answers(loss_subjects, request, variant=variant)
        _, mine = answers(loss_subjects, request, variant=variant, subject="ours", impl="torch")
        assert mine["loss"] == pytest.approx(naive["loss"], rel=1e-5)
    _, cached = answers(loss_subjects, request, variant="cache", subject="ours", impl="torch")
    assert cached["loss"] == pytest.approx(mine["loss"], rel=1e-3)


def test_what_a_user_can_mend_is_an_answer():
    def cannot(specification):
        raise UserError("impl", "'triton' cannot run: no GPU")

    assert answers(cannot, subject="ours") == [{"cannot": "impl: 'triton' cannot run: no GPU"}]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 5 GiB"),
              RuntimeError("[enforce fail at alloc_cpu.cpp:66] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_want_of_memory_is_an_answer(error):
    def fails(specification):
        raise error

    for subject in ("ours", "k2"):
        assert answers(fails, subject=subject) == [{"cannot": "out of memory"}]


def test_what_a_peer_raises_is_an_answer_and_what_we_raise_is_not():
    def fails(specification):
        raise AssertionError("T >= S")

    assert answers(fails, subject="k2") == [{"cannot": "AssertionError: T >= S"}]
    with pytest.raises(AssertionError):
        answers(fails, subject="ours")


def test_every_peer_has_the_whole_interface():
    for name in peers.available_peers():
        peer = peers.get_peer(name)
        assert set(peer.VARIANTS) <= {"none", "online", "cache"} and peer.LATTICE in ("pruned", "full", "")
        small, large = (peer.estimated_bytes(2, 10, 4, 3, C, 8) for C in (10, 1000))
        assert 0 < small < large
        reason = peer.why_not(torch.device("cpu"))
        assert reason is None or reason

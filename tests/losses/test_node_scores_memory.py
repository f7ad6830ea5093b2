"""Node scores: how much memory they hold, and that two runs agree bit for bit."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from joiner_cases import (
    leaves_of,
    make_joiner_case,
    naive_logits,
    place_for,
    scores_of_logits,
    value_and_gradients,
    with_leaves,
)

from rnnt_kd.losses.node_scores import node_scores, torch_impl


@pytest.mark.parametrize(
    "impl, threads, dtype",
    [("torch", 1, torch.float32), ("torch", 2, torch.float32)]
    + [("triton", 1, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)],
    ids=str,
)
def test_same_bits_from_run_to_run(impl, threads, dtype):
    torch.set_num_threads(threads)
    case = place_for(impl, make_joiner_case(9, B=3, T=24, S=6, C=150, J=70, s_range=4).to(dtype))
    nodes = case.nodes

    def run():
        return value_and_gradients(case.student, lambda x: torch.stack(node_scores(x, nodes, impl=impl)))

    first = run()
    for _ in range(3 if impl == "torch" else 1):
        assert all(torch.equal(a, b) for a, b in zip(run(), first))


def peak_bytes(run, tmp_path) -> int:
    """Most bytes that PyTorch held at once on the CPU during ``run()``, above those held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [event for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    events = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    held = peak = 0
    for event in events:
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    assert events and peak > 0
    return peak


def with_memory(case, memory):
    return dataclasses.replace(case, student=case.student._replace(memory=memory))


def step(case):
    """A pass of the torch implementation, with the gradients of all inputs."""
    nodes, leaves = case.nodes, [x.requires_grad_() for x in leaves_of(case.student)]

    def run(score=lambda joiner: node_scores(joiner, nodes, impl="torch")):
        scores = score(with_leaves(case.student, leaves))
        torch.autograd.grad(scores.log_blank.sum() + scores.log_rest.sum(), leaves)

    return run


def test_never_more_than_a_block_scores_of_logits(tmp_path, monkeypatch):
    """Of 2000 nodes and 600 classes, one array of logits has 5 MB; a block of 50 nodes 0.12 MB."""
    case = make_joiner_case(1, B=4, T=250, S=40, C=600, J=8, s_range=5).to(torch.float32)
    nodes = case.nodes
    N, (C, J) = int(nodes.node_mask.sum()), case.student.weight.shape
    assert N > 2000
    monkeypatch.setattr(torch_impl, "MOST_ROWS", 50)
    run = step(with_memory(case, 0))
    block, node_bytes, weight_bytes = 4 * 50 * C, 8 * nodes.ranges.numel(), 4 * C * J
    peak = peak_bytes(run, tmp_path)
    bound = 4 * block + 16 * node_bytes + 6 * weight_bytes + 4 * 4 * (case.student.am.numel() + case.student.lm.numel())
    assert peak < bound < 4 * N * C / 2, (peak, bound)
    naively = partial(run, lambda joiner: scores_of_logits(naive_logits(joiner, nodes.ranges), nodes))
    assert peak_bytes(naively, tmp_path) > 2 * 4 * N * C  # so the measure sees logits where there are some


def test_memory_does_not_grow_with_the_vocabulary(tmp_path, monkeypatch):
    """Apart from the weight, its gradient and their copies."""
    monkeypatch.setattr(torch_impl, "BLOCK_ELEMENTS", 2**14)
    above = {}
    for C in (200, 1600):
        case = with_memory(make_joiner_case(1, B=4, T=250, S=40, C=C, J=8, s_range=5).to(torch.float32), 0)
        above[C] = peak_bytes(step(case), tmp_path) - 4 * 4 * C * (8 + 1)
    assert above[1600] < 1.2 * above[200], above


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_memory_changes_no_bit_and_holds_what_was_asked_for(activation, tmp_path, monkeypatch):
    """None, that of a third of the blocks and a byte less, and of all; a second backward pass finds the same."""
    monkeypatch.setattr(torch_impl, "MOST_ROWS", 50)
    case = make_joiner_case(1, B=4, T=250, S=40, C=600, J=8, s_range=5).to(torch.float32)
    case = dataclasses.replace(case, student=case.student._replace(activation=activation))
    blocks = -(-int(case.nodes.node_mask.sum()) // 50)
    block = 4 * 50 * (600 + 8)
    results, peaks = [], []
    for memory in (0, blocks // 3 * block - 1, None):
        made = with_memory(case, memory)
        results.append(
            value_and_gradients(made.student, lambda x: torch.stack(node_scores(x, case.nodes, impl="torch")))
        )
        peaks.append(peak_bytes(step(made), tmp_path))
        leaves = [x.requires_grad_() for x in leaves_of(made.student)]
        total = node_scores(with_leaves(made.student, leaves), case.nodes, impl="torch").log_rest.sum()
        first, second = (torch.autograd.grad(total, leaves, retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0]))
    least, some, all_kept = peaks
    assert (blocks // 3 - 2) * block < some - least <= (blocks // 3 - 1) * block < all_kept - least, (peaks, block)


def test_without_gradients_nothing_is_kept(tmp_path, monkeypatch):
    """Of a teacher, or in validation, where parameters still want them."""
    monkeypatch.setattr(torch_impl, "MOST_ROWS", 50)
    case = make_joiner_case(1, B=4, T=250, S=40, C=600, J=8, s_range=5).to(torch.float32)
    trained = with_leaves(case.student, [x.requires_grad_() for x in leaves_of(case.student)])
    peaks = []
    for memory in (0, None):
        with torch.no_grad():
            run = partial(node_scores, trained._replace(memory=memory), case.nodes, impl="torch")
            peaks.append(peak_bytes(run, tmp_path))
    assert peaks[1] == peaks[0] < 4 * case.nodes.node_mask.sum() * 600 / 2

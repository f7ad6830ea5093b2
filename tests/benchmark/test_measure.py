"""The memory of a pass is what it needs at its highest above what was there; its clock sees the pass only."""

import time

import torch

from benchmark.measure import measure

MB = 10**6


def leaf(size=10):
    return torch.ones(size, requires_grad=True)


def test_peak_counts_what_is_alive_at_the_same_time():
    def one_after_the_other():
        for _ in range(4):
            torch.ones(8 * MB)  # 32 MB each
        return None

    def all_at_once():
        _ = [torch.ones(8 * MB) for _ in range(4)]
        return None

    inputs = [leaf()]
    assert 30 * MB < measure(one_after_the_other, inputs, with_memory=True).peak_bytes < 36 * MB
    assert 125 * MB < measure(all_at_once, inputs, with_memory=True).peak_bytes < 132 * MB


def test_inputs_and_earlier_peaks_do_not_count():
    kept = torch.ones(25 * MB)
    torch.ones(50 * MB).sum()  # a peak before the pass
    found = measure(lambda: torch.ones(4 * MB).sum() * kept[0] * 0.0 + leaf().sum(), [leaf()], with_memory=True)
    assert 14 * MB < found.peak_bytes < 20 * MB


def test_memory_that_the_allocator_kept_from_before_counts_when_used_again():
    """Freed blocks between living ones stay in the process, resident, unless they are given back."""
    blocks = [torch.ones(15_000) for _ in range(1200)]  # 60 kB each: glibc takes them from its heap
    living = blocks[::2]
    del blocks
    found = measure(lambda: [torch.ones(14_000) for _ in range(500)] and None, living[:1], with_memory=True)
    assert found.peak_bytes > 20 * MB


def test_gradients_count_and_are_thrown_away_before_the_next_pass():
    inputs = [leaf(8 * MB)]
    found = measure(lambda: (inputs[0] * 2.0).square().sum(), inputs, with_memory=True)
    assert found.peak_bytes > 90 * MB  # the product, the gradient of the product, the gradient of the leaf
    assert inputs[0].grad is None
    assert found.loss == 32e6
    measure(inputs[0].sum, inputs, with_memory=False)
    assert inputs[0].grad is None


def test_seconds_are_those_of_the_pass():
    found = measure(lambda: time.sleep(0.05), [leaf()], with_memory=False)
    assert found.seconds >= 0.05 and found.peak_bytes is None and found.loss is None

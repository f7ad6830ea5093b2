"""The batches of an epoch and their order: Lhotse's dynamic bucketing, made deterministic.

The plan of an epoch is a pure function of the arguments of ``plan_batches``.
"""

import random
import warnings
from typing import Any, Iterator, List

import torch
from lhotse import MonoCut
from lhotse.dataset import DynamicBucketingSampler


def plan_batches(
    cuts: List[MonoCut],
    batch_seconds: float,
    num_buckets: int,
    shuffle: bool,
    seed: int,
    epoch: int,
) -> List[List[MonoCut]]:
    """The cuts of every batch of one epoch; every cut comes once.

    Args: as of ``dataset.make_dataloader``; ``batch_seconds`` > 0, at least one cut.
    Returns: batches, each at most ``batch_seconds`` long with padding, or a single longer cut.
    """
    mixed = random.Random(f"{seed} {epoch}") if shuffle else random.Random(0)
    if shuffle:
        cuts = mixed.sample(cuts, len(cuts))  # over the whole corpus; the sampler's own buffer is local
    sampler = _Sampler(
        _Cuts(cuts),
        max_duration=batch_seconds,
        duration_bins=_duration_bins(cuts, num_buckets, batch_seconds),
        shuffle=shuffle,
        drop_last=False,
        buffer_size=20_000,
        seed=mixed.getrandbits(31),
        sync_buckets=True,  # False ends the epoch at the first empty bucket (Lhotse 1.33), and cuts are lost
        rank=0,
        world_size=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="We have exceeded the max_duration")  # alone in a batch: intended
        plan = [list(batch) for batch in sampler]
    if shuffle:  # Lhotse's order of buckets is the same in every epoch
        mixed.shuffle(plan)
    return plan


def _duration_bins(cuts: List[MonoCut], num_buckets: int, batch_seconds: float) -> List[float]:
    """Inner borders between lengths (seconds), each bucket with about the same total; at least one border."""
    durations = sorted(cut.duration for cut in cuts)
    # Every bucket ends in a partial batch, so few cuts get few buckets: two full batches in each at least.
    num_buckets = max(1, min(num_buckets, int(sum(durations) / (2 * batch_seconds))))
    share, total = sum(durations) / num_buckets, 0.0
    borders: List[float] = []
    for duration in durations:
        if total >= share * (len(borders) + 1) and len(borders) < num_buckets - 1:
            borders.append(duration)
        total += duration
    return sorted(set(borders)) or [durations[-1] + 1.0]


class _Source(torch.utils.data.Sampler):
    def __init__(self, *_: Any, **__: Any):
        """Nothing to do.  torch 1.13's own wants an argument that Lhotse, written for later ones, does not give."""


class _Sampler(DynamicBucketingSampler, _Source):
    """Lhotse's sampler, for both torch 1.13 and 2."""


class _Cuts:
    """An iterable that Lhotse's sampler may walk several times."""

    def __init__(self, cuts: List[MonoCut]):
        self._cuts = cuts

    def __iter__(self) -> Iterator[MonoCut]:
        return iter(self._cuts)

"""The batches of an epoch and their order, a pure function of the arguments of ``plan_batches``.

Up to ``SAMPLER_BUFFER`` cuts the plan is that of Lhotse's dynamic bucketing, made deterministic.  With more cuts than
its buffer holds it is the same in arrays: all cuts are mixed, sorted into buckets of like length, and the buckets cut
into batches, whose order is mixed.  Ten million cuts take seconds, and 12 bytes each.
"""

import random
import warnings
from dataclasses import dataclass
from typing import Any, Iterator, List, Sequence, Tuple, overload

import numpy as np
import torch
from lhotse.dataset import DynamicBucketingSampler

SAMPLER_BUFFER = 20_000  # cuts


@dataclass(frozen=True)
class BatchPlan:
    """Batches of one epoch and rank.  ``plan[i]``: the places of a batch's cuts in their source; ``plan[i:]``: a plan.

    Attributes:
      order: (N,) places, the cuts of a batch one after the other.
      bounds: (batches, 2) where each batch begins and ends in ``order``.
    """

    order: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds)

    @overload
    def __getitem__(self, index: int) -> List[int]: ...

    @overload
    def __getitem__(self, index: slice) -> "BatchPlan": ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return BatchPlan(self.order, self.bounds[index])
        begin, end = self.bounds[index]
        return self.order[begin:end].tolist()

    def __iter__(self) -> Iterator[List[int]]:
        return (self[index] for index in range(len(self)))


def plan_batches(
    durations: np.ndarray,
    batch_seconds: float,
    num_buckets: int,
    shuffle: bool,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> BatchPlan:
    """The batches of one epoch that are ``rank``'s; over all ranks every cut comes once.

    Each rank has equally many batches: where their number is no multiple of ``world_size``, those of the most cuts are
    halved until it is; where all have one cut, some get a second.  In a step the ranks have batches of like length.

    Args: ``durations`` (N,) seconds, N >= ``world_size``; the others as of ``dataset.make_dataloader``.
    Returns: batches, each at most ``batch_seconds`` long with padding, or a single longer cut.  (Lhotse's sampler lets
      the last cut of a batch be longer than those before it, which takes the batch above.)
    """
    mixed = random.Random(f"{seed} {epoch}") if shuffle else random.Random(0)
    planned = _by_sampler if len(durations) <= SAMPLER_BUFFER else _by_sorting
    order, bounds = planned(durations, batch_seconds, num_buckets, shuffle, mixed)
    if world_size > 1:
        order, bounds = _even(order, bounds, world_size)
        bounds = bounds[np.argsort(durations[order[bounds[:, 0]]], kind="stable")]
    if shuffle:  # Lhotse's order of buckets is the same in every epoch
        steps = list(range(-(-len(bounds) // world_size)))
        mixed.shuffle(steps)
        bounds = bounds.reshape(len(steps), world_size, 2)[steps].reshape(-1, 2)
    return BatchPlan(order, bounds[rank::world_size])


def _by_sampler(
    durations: np.ndarray, batch_seconds: float, num_buckets: int, shuffle: bool, mixed: random.Random
) -> Tuple[np.ndarray, np.ndarray]:
    """Order and bounds of a ``BatchPlan``, not mixed yet, from Lhotse's sampler."""
    lengths = [_Length(place, duration) for place, duration in enumerate(durations.tolist())]
    if shuffle:
        lengths = mixed.sample(lengths, len(lengths))  # over the whole corpus; the sampler's own buffer is local
    sampler = _Sampler(
        _Lengths(lengths),
        max_duration=batch_seconds,
        duration_bins=_duration_bins(durations.tolist(), num_buckets, batch_seconds),
        shuffle=shuffle,
        drop_last=False,
        buffer_size=SAMPLER_BUFFER,
        seed=mixed.getrandbits(31),
        sync_buckets=True,  # False ends the epoch at the first empty bucket (Lhotse 1.33), and cuts are lost
        rank=0,
        world_size=1,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="We have exceeded the max_duration")  # alone in a batch: intended
        batches = [[length.place for length in batch] for batch in sampler]
    ends = np.cumsum([len(batch) for batch in batches])
    return np.concatenate(batches), np.stack((ends - [len(batch) for batch in batches], ends), axis=1)


def _duration_bins(durations: List[float], num_buckets: int, batch_seconds: float) -> List[float]:
    """Inner borders between lengths (seconds), each bucket with about the same total; at least one border."""
    durations = sorted(durations)
    # Every bucket ends in a partial batch, so few cuts get few buckets: two full batches in each at least.
    num_buckets = max(1, min(num_buckets, int(sum(durations) / (2 * batch_seconds))))
    share, total = sum(durations) / num_buckets, 0.0
    borders: List[float] = []
    for duration in durations:
        if total >= share * (len(borders) + 1) and len(borders) < num_buckets - 1:
            borders.append(duration)
        total += duration
    return sorted(set(borders)) or [durations[-1] + 1.0]


def _by_sorting(
    durations: np.ndarray, batch_seconds: float, num_buckets: int, shuffle: bool, mixed: random.Random
) -> Tuple[np.ndarray, np.ndarray]:
    """Order and bounds of a ``BatchPlan``, not mixed yet: the cuts of a bucket follow each other, in random order."""
    generator = np.random.Generator(np.random.PCG64(mixed.getrandbits(64)))
    order = np.arange(len(durations), dtype=np.int32)
    if shuffle:
        generator.shuffle(order)
    totals = np.sort(durations)
    np.cumsum(totals, out=totals)
    num_buckets = max(1, min(num_buckets, int(totals[-1] / (2 * batch_seconds))))
    at = np.searchsorted(totals, totals[-1] * np.arange(1, num_buckets) / num_buckets)
    del totals
    borders = np.partition(durations, at)[at]
    parts = np.array_split(durations, -(-len(durations) // SAMPLER_BUFFER))
    bucket = np.concatenate([np.searchsorted(borders, part, side="right").astype(np.uint16) for part in parts])[order]
    order = order[np.argsort(bucket, kind="stable")]
    ends: List[int] = []
    begin = 0
    for size in np.bincount(bucket).tolist():
        ends += _cut_into_batches(durations[order[begin : begin + size]].tolist(), begin, batch_seconds)
        begin += size
    return order, np.stack(([0, *ends[:-1]], ends), axis=1)


def _cut_into_batches(durations: Sequence[float], begin: int, batch_seconds: float) -> Iterator[int]:
    """Where the batches of a bucket end: before the cut with which they would be too long."""
    longest, size, end = 0.0, 0, begin
    for duration in durations:
        longest = duration if duration > longest else longest
        if size and longest * (size + 1) > batch_seconds:
            yield end
            longest, size = duration, 0
        size, end = size + 1, end + 1
    if size:
        yield end


def _even(order: np.ndarray, bounds: np.ndarray, multiple: int) -> Tuple[np.ndarray, np.ndarray]:
    """The same cuts in a number of batches that is a multiple."""
    while missing := -len(bounds) % multiple:
        sizes = bounds[:, 1] - bounds[:, 0]
        largest = [at for at in np.argsort(-sizes, kind="stable")[:missing] if sizes[at] > 1]
        if not largest:  # one cut each
            spare, cuts = len(bounds) % multiple, order[bounds[:, 0]]
            pairs = np.stack((cuts[:spare], cuts[-spare:]), axis=1)
            ends = np.cumsum([2] * spare + [1] * (len(cuts) - 2 * spare))
            return np.concatenate((pairs.ravel(), cuts[spare:-spare])), np.stack(([0, *ends[:-1]], ends), axis=1)
        middle = bounds[largest].sum(axis=1) // 2
        tails = np.stack((middle, bounds[largest, 1]), axis=1)
        bounds = np.concatenate((bounds, tails))
        bounds[largest, 1] = middle
    return order, bounds


class _Length:
    """A cut as the sampler sees it."""

    __slots__ = ("place", "duration", "dataloading_info")

    def __init__(self, place: int, duration: float):
        self.place, self.duration = place, duration


class _Source(torch.utils.data.Sampler):
    def __init__(self, *_: Any, **__: Any):
        """Nothing to do.  torch 1.13's own wants an argument that Lhotse, written for later ones, does not give."""


class _Sampler(DynamicBucketingSampler, _Source):
    """Lhotse's sampler, for both torch 1.13 and 2."""


class _Lengths:
    """An iterable that Lhotse's sampler may walk several times."""

    def __init__(self, lengths: List[_Length]):
        self._lengths = lengths

    def __iter__(self) -> Iterator[_Length]:
        return iter(self._lengths)

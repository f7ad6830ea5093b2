"""Cuts on the disk -> batches of padded features.

The order of the batches is a pure function of (cuts, seed, epoch, and the options below): no hidden random
state.  A batch is read when it is asked for: so training resumes inside an epoch without what came before.

    loader = make_dataloader("exp/an4/cuts/train.jsonl.gz", batch_seconds=60, shuffle=True, seed=1, epoch=3)
    len(loader)                    # batches of this epoch
    loader[5]                      # Batch
    for batch in loader: ...

N utterances a batch, T frames of 10 ms in the longest.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Sequence

import numpy as np
import torch

from rnnt_kd.data.batch_order import BatchPlan, plan_batches
from rnnt_kd.data.source import CutInfo, Source, open_source
from rnnt_kd.errors import UserError

PADDING_VALUE = math.log(1e-10)  # of features; sherpa-onnx pads with the same


@dataclass
class Batch:
    """One batch.

    Attributes:
      features:      (N, T, 80) float32, natural log; ``PADDING_VALUE`` after the end.
      feature_lens:  (N,) int64, valid frames; at least one row has T.
      texts, utterance_ids, durations (seconds), speakers: N each; the ids are the cuts' (``..._sp0.9``).
    """

    features: torch.Tensor
    feature_lens: torch.Tensor
    texts: List[str]
    utterance_ids: List[str]
    durations: List[float]
    speakers: List[str] = field(default_factory=list)


def load_cuts_info(cuts_path: Path) -> List[CutInfo]:
    """Every cut of a small source, in its order.  UserError as ``open_source``."""
    return list(open_source(cuts_path).infos())


def read_batches(cuts_path: Path, plan: Iterable[Sequence[int]]) -> Iterator[Batch]:
    """Batches of given cuts, each named by its place in the source (0, 1, ...; the order of ``load_cuts_info``)."""
    source = open_source(cuts_path)
    return (collate(source, places) for places in plan)


def make_dataloader(
    cuts_path: Path,
    *,
    batch_seconds: float,
    num_buckets: int = 10,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    places: Optional[np.ndarray] = None,
    rank: int = 0,
    world_size: int = 1,
) -> "CutDataLoader":
    """Batches of utterances of like length (Lhotse's dynamic bucketing).

    Args:
      cuts_path:     a file of cuts or a Shar folder, see ``open_source``.
      batch_seconds: audio a batch at most, padding included; a longer utterance is a batch of its own.
      num_buckets:   kinds of length; fewer where there are few cuts.
      shuffle:       random order by ``seed`` and ``epoch``; else always the same order.
      places:        (M,) rising, of the cuts to take; None: all.
      rank, world_size: of the processes that share the epoch; each has equally many batches.
    Raises: UserError: as ``open_source``; no cut left, or fewer than processes.
    """
    if not batch_seconds > 0:
        raise UserError("batch_seconds", f"found {batch_seconds}", "seconds of audio, more than 0")
    source = open_source(cuts_path)
    durations = source.durations if places is None else source.durations[places]
    if not len(durations):
        raise UserError(cuts_path, f"no utterance is left of {len(source)}", "usable utterances")
    if len(durations) < world_size:
        problem = f"{len(durations)} utterances for {world_size} processes"
        raise UserError(cuts_path, problem, "one for each at the least", "use fewer processes")
    plan = plan_batches(durations, batch_seconds, num_buckets, shuffle, seed, epoch, rank, world_size)
    if places is not None:
        plan = BatchPlan(places[plan.order], plan.bounds)
    return CutDataLoader(source, plan)


class CutDataLoader:
    """The batches of an epoch.  Made by ``make_dataloader``."""

    def __init__(self, source: Source, plan: BatchPlan):
        self.source, self.plan = source, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        return collate(self.source, self.plan[index])

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    @property
    def utterance_ids(self) -> List[List[str]]:
        """Ids of each batch of the epoch, without reading features."""
        return [self.source.ids(places) for places in self.plan]


def collate(source: Source, places: Sequence[int]) -> Batch:
    """Read and pad the features of the cuts at ``places`` of a source."""
    infos, matrices = zip(*(source.read(place) for place in places))
    lens = torch.tensor([len(matrix) for matrix in matrices], dtype=torch.int64)
    features = torch.full((len(matrices), int(lens.max()), matrices[0].shape[1]), PADDING_VALUE)
    for index, matrix in enumerate(matrices):
        features[index, : len(matrix)] = matrix
    texts, ids = [info.text for info in infos], [info.id for info in infos]
    return Batch(features, lens, texts, ids, [info.duration for info in infos], [info.speaker for info in infos])

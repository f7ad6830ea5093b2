"""Cuts on the disk -> batches of padded features.

The order of the batches is a pure function of (cuts, seed, epoch, and the options below): no hidden random
state.  So training resumes inside an epoch with ``skip_batches``, which reads no features.

    loader = make_dataloader("exp/an4/cuts/train.jsonl.gz", batch_seconds=60, shuffle=True, seed=1, epoch=3)
    len(loader)                    # batches of this epoch, skipped ones included
    loader.left_out                # {utterance id: reason}
    for batch in loader: ...       # Batch

N utterances a batch, T frames of 10 ms in the longest.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence

import torch
from lhotse import MonoCut

from rnnt_kd.data.batch_order import plan_batches
from rnnt_kd.data.cuts import load_cuts, read_features
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


@dataclass(frozen=True)
class CutInfo:
    """One cut, without its features."""

    id: str
    text: str
    speaker: str
    duration: float  # seconds
    num_frames: int  # of 10 ms


def load_cuts_info(cuts_path: Path) -> List[CutInfo]:
    """Every cut of a file, in its order.  UserError: missing, corrupt or empty file."""
    return [_info(cut) for cut in load_cuts(cuts_path)]


def cuts_digest(cuts_path: Path) -> str:
    """SHA-256 over what a model can learn from a cuts file: ids, transcripts, lengths and where in their files the
    features lie (which changes with them); not the folders.  UserError as ``load_cuts_info``."""
    digest = hashlib.sha256()
    for cut in load_cuts(cuts_path):
        info = _info(cut)
        digest.update(json.dumps([info.id, info.text, info.num_frames, cut.features.storage_key]).encode() + b"\n")
    return digest.hexdigest()


def read_batches(cuts_path: Path, plan: Iterable[Sequence[int]]) -> Iterator[Batch]:
    """Batches of given cuts, each named by its place in the file (0, 1, ...; the order of ``load_cuts_info``)."""
    cuts = load_cuts(cuts_path)
    return (collate([cuts[place] for place in places], cuts_path) for places in plan)


def make_dataloader(
    cuts_path: Path,
    *,
    batch_seconds: float,
    num_buckets: int = 10,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    keep: Optional[Callable[[CutInfo], Optional[str]]] = None,
    skip_batches: int = 0,
) -> "CutDataLoader":
    """Batches of utterances of like length (Lhotse's dynamic bucketing).

    Args:
      cuts_path:     a cuts file of stage 1.  Its features are read from the folder beside it.
      batch_seconds: audio a batch at most, padding included; a longer utterance is a batch of its own.
      num_buckets:   kinds of length; fewer where there are few cuts.
      shuffle:       random order by ``seed`` and ``epoch``; else always the same order.
      keep:          called with each ``CutInfo``; a string is the reason to leave the cut out.
      skip_batches:  start after so many batches; what was skipped is not read.
    Raises: UserError: missing, corrupt or empty cuts file, no cut left.
    """
    if not batch_seconds > 0:
        raise UserError("batch_seconds", f"found {batch_seconds}", "seconds of audio, more than 0")
    cuts = load_cuts(cuts_path)
    kept: List[MonoCut] = []
    left_out: Dict[str, str] = {}
    for cut in cuts:
        reason = keep(_info(cut)) if keep is not None else None
        if reason is None:
            kept.append(cut)
        else:
            left_out[cut.id] = reason
    if not kept:
        first = next(iter(left_out))
        problem = f"no utterance is left of {len(cuts)} (the first: {first} {left_out[first]})"
        raise UserError(cuts_path, problem, "usable utterances")
    plan = plan_batches(kept, batch_seconds, num_buckets, shuffle, seed, epoch)
    return CutDataLoader(plan, left_out, cuts_path, skip_batches)


class CutDataLoader:
    """Made by ``make_dataloader``.  ``len`` counts all batches of the epoch; iterating yields those not skipped.

    Attributes: plan: the cuts of each batch of the epoch; ``collate`` reads them.
    """

    def __init__(self, plan: List[List[MonoCut]], left_out: Dict[str, str], cuts_path: Path, skip_batches: int):
        self.plan, self._cuts_path = plan, cuts_path
        self.left_out, self.skip_batches = left_out, skip_batches

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def utterance_ids(self) -> List[List[str]]:
        """Ids of each batch of the epoch, without reading features."""
        return [[cut.id for cut in cuts] for cuts in self.plan]

    def __iter__(self) -> Iterator[Batch]:
        return (collate(cuts, self._cuts_path) for cuts in self.plan[self.skip_batches :])


def collate(cuts: Sequence[MonoCut], cuts_path: Path) -> Batch:
    """Read and pad the features of some cuts of a file."""
    matrices = [read_features(cut, cuts_path) for cut in cuts]
    lens = torch.tensor([len(matrix) for matrix in matrices], dtype=torch.int64)
    features = torch.full((len(cuts), int(lens.max()), matrices[0].shape[1]), PADDING_VALUE)
    for index, matrix in enumerate(matrices):
        features[index, : len(matrix)] = matrix
    infos = [_info(cut) for cut in cuts]
    texts, ids = [info.text for info in infos], [info.id for info in infos]
    return Batch(features, lens, texts, ids, [info.duration for info in infos], [info.speaker for info in infos])


def _info(cut: MonoCut) -> CutInfo:
    supervision = cut.supervisions[0]
    return CutInfo(cut.id, supervision.text or "", supervision.speaker or "", cut.duration, cut.num_frames)

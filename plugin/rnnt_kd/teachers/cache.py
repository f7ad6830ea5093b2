"""The teacher on disk: its pruned lattice and its posteriors there, for every training utterance.

    cache = TeacherCache.open("exp/an4/kd_cache", expected={"bpe": tokenizer.checksum, "prune_range": 5})
    cached = cache.lookup(batch.utterance_ids, encoder_lens.tolist(), S)

Made by ``rnnt_kd.bin.cache_teacher`` (stage 4), one file a shard (``shards.py``).  The posteriors are those of clean
features, by utterance id: what a student hears instead (SpecAugment) does not matter, and a speed-perturbed copy
(``..._sp0.9``) has an entry of its own.

Opening reads what the shards say of themselves, a twentieth of them or less; an index of that is held in memory.  Each
utterance is held against its digest whenever it is read.

The weights of the nodes are not stored.  ``packed`` holds the posteriors of blank and label at
temperature 1 on all kept nodes, and the occupancy is what the lattice recursion over these gives.

B = batch, T = encoder frames, S = symbols.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor

from rnnt_kd.data.source import Source
from rnnt_kd.data.stored_frames import AGAIN, Frames, StoredFrames, damaged, is_of_labels
from rnnt_kd.errors import UserError
from rnnt_kd.files import patiently
from rnnt_kd.teachers.shards import CacheFacts, Damaged, Shard, shard_indices, shard_path
from rnnt_kd.teachers.views import CachedTeacher, most_frames


class TeacherCache:
    """Made by ``open``.

    Attributes:
      folder: where it is.
      facts:  how it was made.
      digest: SHA-256, of all contents.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], partial: bool = False):
        self.folder, self._paths, self._told = folder, [shard.path for shard in shards], False
        self.facts: CacheFacts = shards[0].facts
        self.digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
        self._partial = partial
        places = [(name.encode(), number, place) for number, shard in enumerate(shards) for name, place in shard.places]
        ids = np.array([name for name, _, _ in places], dtype=bytes)
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        self._shards = np.array([number for _, number, _ in places], dtype=np.int32)[order]
        self._begins = np.array([place.begin for _, _, place in places], dtype=np.int64)[order]
        self._frames = np.array([place.frames for _, _, place in places], dtype=np.int64)[order]
        digests = b"".join(bytes.fromhex(place.digest.ljust(40, "0")) for _, _, place in places)
        self._digests = np.frombuffer(digests, dtype="V20")[order]

    @classmethod
    def open(cls, folder: Path, expected: Optional[Mapping[str, Any]] = None, partial: bool = False) -> "TeacherCache":
        """Open a finished cache.

        Args:
          folder:   made by stage 4.
          expected: fields of ``CacheFacts`` and the values they must have.
          partial:  shards may be missing.
        Raises:
          UserError: no cache, shards missing or damaged (named), or made with something else than
            ``expected`` (both named).
        """
        folder = Path(folder)
        indices = shard_indices(folder)
        if not indices:
            raise UserError(folder, "no teacher cache here", "the folder of a finished one", AGAIN)
        shards = [_opened(shard_path(folder, index)) for index in indices]
        count = shards[0].count
        missing = sorted(set(range(count)) - set(indices))
        if missing and not partial:
            name = shard_path(folder, missing[0]).name
            problem = (
                f"the teacher cache is not finished: {len(missing)} of {count} shards are missing, the first {name}"
            )
            raise UserError(folder, problem, "", AGAIN)
        shards = [shard for shard, index in zip(shards, indices) if index < count]  # others: of an earlier cache
        for shard in shards:
            check_facts(shard.facts, folder, dict(expected or {}))
        for shard, index in zip(shards, indices):
            if (shard.facts, shard.count, shard.index) != (shards[0].facts, count, index):
                first = shards[0]
                changes = shard.facts.differences(vars(first.facts)) or [("place", str(shard.index), str(index))]
                what, here, there = changes[0]
                raise UserError(shard.path, f"made with {what} {here}", f"{there}, as in {first.path.name}", AGAIN)
        return cls(folder, shards, partial)

    def content_as(self, recorded: Optional[str]) -> str:
        """``digest``; where shards may come later that of the facts alone, but for a record that has the other."""
        of_facts = hashlib.sha256(repr(self.facts).encode()).hexdigest()
        return of_facts if self._partial and self.digest != recorded else self.digest

    def verify(self) -> None:
        """Read all shards once.  Raises UserError naming the one that is not what was written."""
        for path in self._paths:
            _opened(path, verify=True)

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self._ids)

    def places(self, utterance_ids: Sequence[str]) -> List[Optional[StoredFrames]]:
        """Where the frames of each utterance are; None where it has none."""
        width = self.facts.width
        return [
            StoredFrames(
                str(self._paths[self._shards[row]]),
                int(self._begins[row]),
                int(self._frames[row]),
                width,
                self._digests[row].tobytes().hex(),
            )
            if row >= 0
            else None
            for row in self._rows(utterance_ids)
        ]

    def arrays(self, source: Source, places: Sequence[int], cut_ids: Sequence[str]) -> List[Optional[StoredFrames]]:
        """Of ``cut_ids``: what the teacher heard is to be learned of the cuts at ``places`` of ``source``."""
        return self.places(cut_ids)

    def frames(self, source: Source, places: Sequence[int], cut_ids: Sequence[str]) -> np.ndarray:
        """(B,) encoder frames; -1 where it is not there."""
        rows = self._rows(cut_ids)
        return np.where(rows < 0, -1, self._frames[rows] if len(self) else -1)

    def lookup(
        self,
        utterance_ids: Sequence[str],
        num_frames: Sequence[int],
        max_symbols: int,
        missing: str = "skip",
        align: str = "strict",
    ) -> CachedTeacher:
        """``collate_teacher`` of one batch; with ``missing`` "error" all must be there, else the log says once."""
        places = self.places(utterance_ids)
        lacking = [name for name, place in zip(utterance_ids, places) if place is None]
        if lacking and missing == "skip" and not self._told:
            self._told = True
            words = f"{len(lacking)} of {len(places)} utterances of a batch are not there, the first {lacking[0]}"
            logging.warning(f"rnnt-kd: {self.folder}: {words}; such ones are trained without the teacher")
        if missing == "error":
            theirs = np.array([-1 if place is None else place.frames for place in places], dtype=np.int64)
            check_utterances(self.folder, utterance_ids, theirs, num_frames, missing, align)
        made = self.facts.prune_range, self.facts.temperature != 1.0
        return collate_teacher(places, num_frames, max_symbols, *made, utterance_ids, align)

    def check_labels(self, utterance_ids: Sequence[str], labels: Tensor) -> None:
        """As the function below."""
        check_labels(self.places(utterance_ids), labels, self.facts.blank_id, utterance_ids)

    def _rows(self, utterance_ids: Sequence[str]) -> np.ndarray:
        """(B,) places in the index; -1: not there."""
        names = np.array([name.encode() for name in utterance_ids], dtype=bytes)
        if not len(self) or not len(names):
            return np.full(len(names), -1)
        rows = np.minimum(np.searchsorted(self._ids, names), len(self) - 1)
        return np.where(self._ids[rows] == names, rows, -1)


def collate_teacher(
    arrays: Sequence[Union[None, Frames, np.ndarray]],
    num_frames: Sequence[int],
    max_symbols: int,
    prune_range: int,
    is_tempered: bool,
    utterance_ids: Sequence[str],
    align: str = "strict",
) -> CachedTeacher:
    """Posteriors of the teacher for one batch.

    Args:
      arrays:        B, of ``TeacherCache.places`` or carried by cuts; None: no teacher.
      num_frames:    B, the student's encoder frames; T is the largest, of the teacher's where they differ.
      max_symbols:   S of the batch's labels; at most ``S + 1`` positions a frame are given.
      prune_range, is_tempered: how they were made.
      utterance_ids: B, for messages.
      align:         may their numbers of frames differ, see ``views.py``.
    Returns:
      ``CachedTeacher``, s_range = min(prune_range, S + 1).  Padded frames have the last valid frame's start and zeros.
    Raises:
      UserError: a damaged or lost file; another number of frames; a kept position above S.
    """
    read = [array if array is None or isinstance(array, np.ndarray) else array.read() for array in arrays]
    theirs = [own if frames is None else len(frames) for own, frames in zip(num_frames, read)]
    T, s_range = max(*theirs, *num_frames), min(prune_range, max_symbols + 1)
    starts = np.zeros((len(arrays), T), dtype=np.int64)
    kinds = 2 if is_tempered else 1
    width = 1 + 2 * prune_range * kinds
    nodes = np.zeros((kinds, len(arrays), T, s_range, 2), dtype=np.float16)
    for b, frames in enumerate(read):
        if frames is None:
            continue
        if not len(frames) or frames.shape[1] != width or abs(len(frames) - num_frames[b]) > most_frames(align):
            where, problem = f"the teacher's posteriors of {utterance_ids[b]}", f"{frames.shape} frames and numbers"
            expected = f"{num_frames[b], width}: the same features, subsampling and prune range in both"
            raise UserError(where, problem, expected, AGAIN)
        starts[b, : len(frames)] = frames[:, 0]
        starts[b, len(frames) :] = frames[-1, 0]
        values = frames[:, 1:].copy().view(np.float16).reshape(len(frames), kinds, prune_range, 2)
        nodes[:, b, : len(frames)] = values[:, :, :s_range].swapaxes(0, 1)
    lowest, highest = starts.min(axis=1), starts.max(axis=1) + s_range - 1
    for b in np.flatnonzero((lowest < 0) | (highest > max_symbols)).tolist():
        problem = f"symbols {lowest[b]} to {highest[b]}, and this batch has {max_symbols} in all"
        expected = "the transcripts that the teacher was cached with"
        raise UserError(f"the teacher's posteriors of {utterance_ids[b]}", problem, expected, AGAIN)
    known = torch.tensor([frames is not None for frames in read])
    is_known = None if known.all() else known[:, None, None].expand(len(arrays), T, s_range).contiguous()
    packed = torch.from_numpy(nodes)
    differing = None if theirs == list(num_frames) else torch.tensor(theirs)
    return CachedTeacher(torch.from_numpy(starts), packed[0], packed[1] if is_tempered else None, is_known, differing)


def check_labels(arrays: Sequence[object], labels: Tensor, blank_id: int, utterance_ids: Sequence[str]) -> None:
    """UserError: an array of posteriors was made of other labels than its row of (B, S), padded with ``blank_id``.

    Of what was made before digests told, or carried without one, it is not known.
    """
    for array, row, name in zip(arrays, labels.tolist(), utterance_ids, strict=True):
        if not is_of_labels(array, [label for label in row if label != blank_id]):
            where, expected = f"the teacher's posteriors of {name}", "the transcripts that the teacher was cached with"
            raise UserError(where, "made of another transcript", expected, AGAIN)


def check_facts(facts: CacheFacts, where: object, expected: Dict[str, Any]) -> None:
    """UserError: made with something else than ``expected``, fields of ``CacheFacts`` and their values."""
    for what, here, wanted in facts.differences(expected):
        problem = f"the teacher cache was made with {what} {here}"
        raise UserError(where, problem, f"{what} {wanted}, as this training has", AGAIN)


def check_utterances(
    where: object,
    utterance_ids: Sequence[str],
    frames: np.ndarray,
    num_frames: Sequence[int],
    missing: str,
    align: str = "strict",
) -> int:
    """Number of utterances without a teacher, -1 in ``frames`` (B,).

    Raises UserError: there is one and ``missing`` is "error"; or a number of encoder frames further from ``num_frames``
    than ``align`` can do with.
    """
    is_missing = frames < 0
    if is_missing.any() and missing == "error":
        first = utterance_ids[int(is_missing.argmax())]
        problem = f"{is_missing.sum()} of {len(frames)} utterances are missing, the first: {first}"
        expected = "the teacher's posteriors for all"
        raise UserError(where, problem, expected, f"{AGAIN}, or train them without distillation (missing: skip)")
    wrong = np.flatnonzero(~is_missing & (np.abs(frames - np.asarray(num_frames, dtype=np.int64)) > most_frames(align)))
    if len(wrong):
        name, cached, own = utterance_ids[wrong[0]], frames[wrong[0]], num_frames[wrong[0]]
        problem = f"{cached} encoder frames for {name}, and the student makes {own}"
        raise UserError(where, problem, "the same features and the same subsampling in both", AGAIN)
    return int(is_missing.sum())


def _opened(path: Path, verify: bool = False) -> Shard:
    try:
        shard = patiently(lambda: Shard(path))
        if verify:
            shard.verify()
        return shard
    except (Damaged, FileNotFoundError) as error:
        raise damaged(path, "it is gone" if isinstance(error, FileNotFoundError) else str(error)) from None

"""The teacher on disk: its pruned lattice and its posteriors there, for every training utterance.

    cache = TeacherCache.open("exp/an4/kd_cache", expected={"bpe": tokenizer.checksum, "prune_range": 5})
    starts, packed, tempered = cache.lookup(batch.utterance_ids, encoder_lens, T, S)

Made by ``rnnt_kd.bin.cache_teacher`` (stage 4), one file a shard (``teacher_shards.py``).  The
posteriors are those of clean features, by utterance id: what a student hears instead (SpecAugment)
does not matter, and a speed-perturbed copy (``..._sp0.9``) has an entry of its own.

Nothing but an index of the ids is held in memory: frames are read from mapped files as batches
ask for them.  A cache may be pickled or inherited by worker processes; each maps the files itself.

The weights of the nodes are not stored.  ``packed`` holds the posteriors of blank and label at
temperature 1 on all kept nodes, and the occupancy is what the lattice recursion over these gives.

B = batch, T = encoder frames, S = symbols.
"""

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.teachers.shards import CacheFacts, Damaged, Shard, shard_indices, shard_path

AGAIN = "run stage 4 (python -m rnnt_kd.bin.cache_teacher) again"


class Cached(NamedTuple):
    """One batch.  ``starts`` (B, T) int64; ``packed`` and, unless None, ``tempered`` (B, T, s_range, 2) float16."""

    starts: Tensor
    packed: Tensor
    tempered: Optional[Tensor]


class TeacherCache:
    """Made by ``open``.

    Attributes:
      folder: where it is.
      facts:  how it was made.
      digest: SHA-256, of all contents.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self.folder, self._shards = folder, list(shards)
        self.facts: CacheFacts = shards[0].facts
        self.digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
        self._maps: Dict[int, Dict[str, np.ndarray]] = {}
        self._index: Optional[_Index] = None

    @classmethod
    def open(cls, folder: Path, expected: Optional[Mapping[str, Any]] = None, verify: bool = True) -> "TeacherCache":
        """Open a finished cache.

        Args:
          folder:   made by stage 4.
          expected: fields of ``CacheFacts`` and the values they must have.
          verify:   compare the checksum of every shard, which reads all of it once.  Without, call
                    ``verify`` before the first ``lookup``.
        Raises:
          UserError: no cache, shards missing or damaged (named), or made with something else than
            ``expected`` (both named).
        """
        folder = Path(folder)
        indices = shard_indices(folder)
        if not indices:
            raise UserError(folder, "no teacher cache here", "the folder that stage 4 wrote", AGAIN)
        shards = [_opened(shard_path(folder, index)) for index in indices]
        for shard in shards:
            _check_facts(shard, dict(expected or {}))
        count = shards[0].count
        missing = sorted(set(range(count)) - set(indices))
        if missing:
            name = shard_path(folder, missing[0]).name
            problem = (
                f"the teacher cache is not finished: {len(missing)} of {count} shards are missing, the first {name}"
            )
            raise UserError(folder, problem, "", AGAIN)
        shards = shards[:count]
        for shard, index in zip(shards, indices):
            if (shard.facts, shard.count, shard.index) != (shards[0].facts, count, index):
                first = shards[0]
                changes = shard.facts.differences(vars(first.facts)) or [("place", str(shard.index), str(index))]
                what, here, there = changes[0]
                raise UserError(shard.path, f"made with {what} {here}", f"{there}, as in {first.path.name}", AGAIN)
        cache = cls(folder, shards)
        if verify:
            cache.verify()
        return cache

    def verify(self) -> None:
        """Read all shards once.  Raises UserError naming the one that is not what was written."""
        for shard in self._shards:
            try:
                shard.verify()
            except (Damaged, FileNotFoundError) as error:
                raise _damaged(shard.path, error) from None

    def __len__(self) -> int:
        """Number of utterances."""
        return len(self._utterances().frames)

    def check_utterances(self, utterance_ids: Sequence[str], num_frames: Sequence[int]) -> None:
        """Raises UserError if an utterance is missing, or has another number of encoder frames than ``num_frames``."""
        self._rows(utterance_ids, num_frames)

    def lookup(self, utterance_ids: Sequence[str], num_frames: Tensor, T: int, max_symbols: int) -> Cached:
        """Posteriors of the teacher for one batch.

        Args:
          utterance_ids: B ids of cuts.
          num_frames:    (B,) integers, the student's encoder frames.
          T:             to pad to.
          max_symbols:   S of the batch's labels; at most ``S + 1`` positions a frame are given.
        Returns:
          ``Cached``, s_range = min(prune range, S + 1).  Padded frames have the last valid frame's
          start and zeros.
        Raises:
          UserError: as ``check_utterances``; a kept position above S; a file that changed.
        """
        rows = self._rows(utterance_ids, num_frames.tolist())
        index = self._utterances()
        s_range = min(self.facts.prune_range, max_symbols + 1)
        starts = np.zeros((len(rows), T), dtype=np.int64)
        names = ["packed"] if self.facts.temperature == 1.0 else ["packed", "tempered"]
        nodes = {name: np.zeros((len(rows), T, s_range, 2), dtype=np.float16) for name in names}
        for b, row in enumerate(rows):
            mapped = self._mapped(int(index.shards[row]))
            begin, frames = int(index.begins[row]), int(index.frames[row])
            starts[b, :frames] = mapped["starts"][begin : begin + frames]
            starts[b, frames:] = starts[b, frames - 1]
            for name, array in nodes.items():
                array[b, :frames] = mapped[name][begin : begin + frames, :s_range]
        if starts.min() < 0:
            raise _damaged(self.folder, ValueError("negative symbol positions"))
        if starts.max() + s_range > max_symbols + 1:
            b = int(starts.max(axis=1).argmax())
            problem = (
                f"{utterance_ids[b]} has symbol {starts[b].max() + s_range - 1}, and this batch {max_symbols} in all"
            )
            raise UserError(self.folder, problem, "the transcripts that the teacher was cached with", AGAIN)
        tensors = {name: torch.from_numpy(array) for name, array in nodes.items()}
        return Cached(torch.from_numpy(starts), tensors["packed"], tensors.get("tempered"))

    def __getstate__(self) -> Dict[str, Any]:
        return {**vars(self), "_maps": {}}  # a mapping would be pickled by its contents

    def _utterances(self) -> "_Index":
        if self._index is None:
            self._index = _Index(self._shards)
        return self._index

    def _rows(self, utterance_ids: Sequence[str], num_frames: Sequence[int]) -> np.ndarray:
        """(B,) places in the index."""
        index = self._utterances()
        rows, is_found = index.find(utterance_ids)
        if not is_found.all():
            first = utterance_ids[int(np.argmin(is_found))]
            problem = f"{int((~is_found).sum())} of {len(utterance_ids)} utterances are missing, the first: {first}"
            raise UserError(self.folder, problem, f"the teacher's posteriors for all (it has {len(self)})", AGAIN)
        wrong = np.flatnonzero(index.frames[rows] != np.asarray(num_frames, dtype=np.int64))
        if len(wrong):
            name, cached, own = utterance_ids[wrong[0]], index.frames[rows[wrong[0]]], num_frames[wrong[0]]
            problem = f"{cached} encoder frames for {name}, and the student makes {own}"
            raise UserError(self.folder, problem, "the same features and the same subsampling in both", AGAIN)
        return rows

    def _mapped(self, number: int) -> Dict[str, np.ndarray]:
        if number not in self._maps:
            path = self._shards[number].path
            now = _opened(path)
            if now.sha256 != self._shards[number].sha256:
                raise UserError(path, "changed while it was in use", "", "start this command again")
            self._maps[number] = now.map()
        return self._maps[number]


class _Index:
    """Where each utterance is.  Sorted by id; sized for millions of utterances.

    ids (U,) bytes; shards (U,) int32, number of the shard; begins (U,) int64, its first frame there; frames (U,) int64.
    """

    def __init__(self, shards: Sequence[Shard]):
        ids: List[bytes] = []
        places = []
        for number, shard in enumerate(shards):
            try:
                ids += [name.encode() for name in shard.ids()]
            except Damaged as error:
                raise _damaged(shard.path, error) from None
            frames = np.array(shard.map()["num_frames"], dtype=np.int64)
            places.append((np.full(len(frames), number, dtype=np.int32), np.cumsum(frames) - frames, frames))
        array = np.array(ids, dtype=bytes)
        order = np.argsort(array, kind="stable")
        self.ids = array[order]
        self.shards, self.begins, self.frames = (np.concatenate(parts)[order] for parts in zip(*places))

    def find(self, utterance_ids: Sequence[str]):
        """(B,) places, (B,) bool: is it there?"""
        names = np.array([name.encode() for name in utterance_ids], dtype=bytes)
        if not len(self.ids) or not len(names):
            return np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=bool)
        rows = np.minimum(np.searchsorted(self.ids, names), len(self.ids) - 1)
        return rows, self.ids[rows] == names


def _opened(path: Path) -> Shard:
    try:
        return Shard(path)
    except (Damaged, FileNotFoundError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = "it is gone" if isinstance(error, FileNotFoundError) else str(error)
    return UserError(path, f"damaged: {reason}", "a shard as stage 4 wrote it", f"{AGAIN}: it makes this one anew")


def _check_facts(shard: Shard, expected: Dict[str, Any]) -> None:
    for what, here, wanted in shard.facts.differences(expected):
        problem = f"the teacher cache was made with {what} {here}"
        raise UserError(shard.path.parent, problem, f"{what} {wanted}, as this training has", AGAIN)

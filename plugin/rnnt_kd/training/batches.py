"""Batches for the training loop, without the utterances that cannot be trained on.

Reading, SpecAugment, labels and the look-up in the teacher's cache happen in ``training.num_workers`` processes, or in
this one.  A batch is a function of its cuts and its step, so neither their number nor a resumed run changes a bit.
"""

import functools
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rnnt_kd.children import follow_parent, start_method
from rnnt_kd.config import SystemConfig
from rnnt_kd.data import selection
from rnnt_kd.data.babble import mix_babble
from rnnt_kd.data.dataset import Batch, CutDataLoader, collate, make_dataloader
from rnnt_kd.data.features import original_id
from rnnt_kd.data.source import Source, open_source
from rnnt_kd.data.specaugment import spec_augment
from rnnt_kd.errors import UserError
from rnnt_kd.teachers.cache import check_labels, collate_teacher
from rnnt_kd.teachers.carried import StoredTeacher
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.state import draw_seed


class Prepared(NamedTuple):
    """A batch as a step takes it, on the CPU.  ``inputs``: arguments of ``Objective.forward``.

    With ``training.consistency`` the second half is the first once more, in another view.
    """

    utterance_ids: List[str]
    inputs: Dict[str, Any]


class Planned(NamedTuple):
    """A batch to come: ``places`` of its cuts in their source.  ``step``: None for validation; ``teacher``: where its
    cached posteriors are."""

    places: List[int]
    cuts_path: Path
    step: Optional[int]
    teacher: Optional[List[Any]]
    num_frames: List[int]  # of the student's encoder


class Preparation(Dataset):
    """``Planned`` -> ``Prepared``; an error that the user can correct is handed over, not raised."""

    def __init__(self, config: SystemConfig, tokenizer: Tokenizer, rank: int):
        self.config, self.tokenizer, self.rank = config, tokenizer, rank

    def __getitem__(self, planned: Planned) -> Union[Prepared, Exception]:
        try:
            return self._prepared(planned)
        except (UserError, OSError, MemoryError) as error:
            return error

    def _prepared(self, planned: Planned) -> Prepared:
        config, kd, step = self.config, self.config.kd, planned.step
        batch = collate(open_source(planned.cuts_path), planned.places)
        labels, label_lens = padded_labels([self.tokenizer.encode(text) for text in batch.texts], config.blank_id)
        inputs: Dict[str, Any] = dict(
            features=batch.features, feature_lens=batch.feature_lens, labels=labels, label_lens=label_lens
        )
        augmentations = (("babble", mix_babble), ("specaugment", spec_augment))
        for name, augment in augmentations:
            options = getattr(config.training, name)
            if options is not None and step is not None:
                generator = torch.Generator().manual_seed(draw_seed(config.seed, name, step, self.rank))
                augmented = [
                    augment(features, lens, generator, **vars(options))  # no view hears another
                    for features, lens in zip(
                        inputs["features"].chunk(config.training.views), batch.feature_lens.chunk(config.training.views)
                    )
                ]
                inputs["features"] = torch.cat(augmented)
        if step is not None and kd is not None and kd.ranges == "student":  # its teacher runs online
            if kd.hears == "original":
                inputs["clean_features"] = self._originals(planned, batch)
            elif kd.hears == "student" and inputs["features"] is not batch.features:
                inputs["clean_features"] = batch.features
        if planned.teacher is not None and kd is not None:
            made = (labels.size(1), config.training.prune_range, kd.temperature != 1.0)
            check_labels(planned.teacher, labels, config.blank_id, batch.utterance_ids)
            inputs["cached"] = collate_teacher(
                planned.teacher, planned.num_frames, *made, batch.utterance_ids, kd.align
            )
        return Prepared(batch.utterance_ids, inputs)

    def _originals(self, planned: Planned, batch: Batch) -> Tensor:
        """(B, T, 80): the features of what the far copies of a batch are copies of; of others, their own."""
        path, next_step = planned.cuts_path, "run stage 1 again"
        source, ids = open_source(path), [original_id(name) for name in batch.utterance_ids]
        places = [source.find(name) for name in ids]
        if None in places:
            missing = ids[places.index(None)]
            raise UserError(path, f"has no {missing}, and a far copy of it", "the clean cuts, too", next_step)
        clean = collate(source, [place for place in places if place is not None])
        if not torch.equal(clean.feature_lens, batch.feature_lens):
            raise UserError(path, f"far copies of {ids[0]} ... are not as long as it", "", next_step)
        return clean.features


class _Queue:
    """The loader's sampler: what it is to make ready next."""

    planned: Iterable[Planned] = ()

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.planned)


def encoder_frames(source: Source, places: Sequence[int], lengths: Callable[[Tensor], Tensor]) -> List[int]:
    """Of some cuts; ``lengths`` is the encoder's ``output_lengths``."""
    return lengths(torch.from_numpy(source.num_frames[places].astype("int64"))).tolist()


def heard_by_teacher(config: SystemConfig, cut_ids: Sequence[str]) -> List[str]:
    """Of which cuts a student of ``config`` learns the teacher's posteriors (``kd.hears``)."""
    is_original = config.kd is not None and config.kd.hears == "original"
    return [original_id(cut_id) if is_original else cut_id for cut_id in cut_ids]


class TrainingData:
    """Training and development cuts of one system, and the processes that make batches of them.

    Args:
      cache:      what its teacher left, in a cache or with the cuts, or None.
      pin_memory: for a CUDA device.
      rank, size: of several processes that train together, each with its own batches.
    """

    def __init__(
        self,
        config: SystemConfig,
        tokenizer: Tokenizer,
        train_cuts: Path,
        dev_cuts: Path,
        cache: Optional[StoredTeacher] = None,
        pin_memory: bool = False,
        rank: int = 0,
        size: int = 1,
    ):
        self.config, self.tokenizer, self.cache, self.pin_memory = config, tokenizer, cache, pin_memory
        self.rank, self.size = rank, size
        self.paths = {"train": train_cuts, "dev": dev_cuts}
        self.selections: Dict[str, selection.Selection] = {}
        self._queue = _Queue()

    def select(self, encoder_frames: Callable[[Tensor], Tensor], with_ctc: bool) -> None:
        """Leave out what cannot be trained on.  Raises UserError if nothing is left."""
        training, self._encoder_frames = self.config.training, encoder_frames
        for name, path in self.paths.items():
            self.selections[name] = selection.select(
                open_source(path),
                encode=self.tokenizer.encode,
                unk_id=self.tokenizer.unk_id,
                checksum=self.tokenizer.checksum,
                encoder_frames=encoder_frames,
                min_seconds=training.min_seconds,
                max_seconds=training.max_seconds,
                separate_repeats=with_ctc,
            )
            if self.selections[name].kept == 0:
                raise UserError(path, f"nothing is left ({self.selections[name].summary(name)})", "usable utterances")

    def train_batches(self, epoch: int, skip: int, step: int) -> Iterator[Prepared]:
        """What is left of an epoch after ``skip`` batches; ``step`` is that of the first."""
        plan = self._plan("train", shuffle=True, epoch=epoch).plan[skip:]
        return self._ready("train", zip(range(step, step + len(plan)), plan))

    def dev_batches(self) -> Iterator[Prepared]:
        return self._ready("dev", ((None, places) for places in self._plan("dev", shuffle=False).plan))

    def batches_per_epoch(self) -> int:
        return len(self._plan("train", shuffle=True, epoch=0))

    def _plan(self, name: str, **order) -> CutDataLoader:
        training = self.config.training
        order.update(batch_seconds=training.batch_seconds, num_buckets=training.num_buckets, seed=self.config.seed)
        if name == "train":
            order["batch_seconds"] /= training.views
            order.update(rank=self.rank, world_size=self.size)
        loader = make_dataloader(self.paths[name], places=self.selections[name].places, **order)
        if name != "train":  # validation: nobody waits for another one before the end
            loader.plan = loader.plan[self.rank :: self.size]
        return loader

    def _ready(self, name: str, plan: Iterable[Tuple[Optional[int], List[int]]]) -> Iterator[Prepared]:
        source = open_source(self.paths[name])
        self._queue.planned = (self._planned(source, step, places) for step, places in plan)
        try:
            for prepared in self._loader:
                if isinstance(prepared, Exception):
                    raise prepared
                yield prepared
        except (RuntimeError, ConnectionError, EOFError) as error:  # of torch
            if not self.config.training.num_workers or "Caught " in str(error):  # a bug, with its traceback
                raise
            next_step = "run the same command again: it goes on from its last checkpoint"
            raise UserError("a worker process of the data loader", "was killed (memory?)", "", next_step) from None

    def _planned(self, source: Source, step: Optional[int], places: List[int]) -> Planned:
        if step is not None:
            places = list(places) * self.config.training.views
        if step is None or self.cache is None:
            return Planned(places, source.path, step, None, [])
        frames = encoder_frames(source, places, self._encoder_frames)
        heard = heard_by_teacher(self.config, source.ids(places))
        return Planned(places, source.path, step, self.cache.arrays(source, places, heard), frames)

    @functools.cached_property
    def _loader(self) -> DataLoader:
        """One for all epochs: its workers stay.

        They are children of a server that holds neither this process's locks nor its threads or CUDA.
        """
        workers = self.config.training.num_workers
        options: Dict[str, Any] = {}
        if workers:
            context = start_method(__name__)
            options = dict(multiprocessing_context=context, worker_init_fn=follow_parent, persistent_workers=True)
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than there are cores
        return DataLoader(
            Preparation(self.config, self.tokenizer, self.rank),
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),
            **options,
        )

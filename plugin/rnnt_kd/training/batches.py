"""Batches for the training loop, without the utterances that cannot be trained on.

Reading, SpecAugment, labels and the look-up in the teacher's cache happen in ``training.num_workers`` processes, or in
this one.  A batch is a function of its cuts and its step, so neither their number nor a resumed run changes a bit.
"""

import functools
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rnnt_kd.children import follow_parent, start_method
from rnnt_kd.config import SystemConfig
from rnnt_kd.data import selection
from rnnt_kd.data.cuts import load_cuts
from rnnt_kd.data.dataset import CutDataLoader, collate, load_cuts_info, make_dataloader
from rnnt_kd.data.specaugment import spec_augment
from rnnt_kd.errors import UserError
from rnnt_kd.teachers.cache import collate_teacher
from rnnt_kd.teachers.carried import Teacher
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.objective import CachedTeacher
from rnnt_kd.training.state import draw_seed


class Prepared(NamedTuple):
    """A batch as a step takes it, on the CPU.  ``inputs``: arguments of ``Objective.forward``."""

    utterance_ids: List[str]
    inputs: Dict[str, Any]


class _Planned(NamedTuple):
    """A batch to come.  ``step``: None for validation; ``teacher``: where its cached posteriors are."""

    cuts: List[Any]
    cuts_path: Path
    step: Optional[int]
    teacher: Optional[List[Any]]
    num_frames: List[int]  # of the student's encoder


class _Preparation(Dataset):
    """``_Planned`` -> ``Prepared``; an error that the user can correct is handed over, not raised."""

    def __init__(self, config: SystemConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer

    def __getitem__(self, planned: _Planned) -> Union[Prepared, Exception]:
        try:
            return self._prepared(planned)
        except (UserError, OSError, MemoryError) as error:
            return error

    def _prepared(self, planned: _Planned) -> Prepared:
        config, kd, step = self.config, self.config.kd, planned.step
        batch = collate(planned.cuts, planned.cuts_path)
        labels, label_lens = padded_labels([self.tokenizer.encode(text) for text in batch.texts], config.blank_id)
        inputs: Dict[str, Any] = dict(
            features=batch.features, feature_lens=batch.feature_lens, labels=labels, label_lens=label_lens
        )
        if step is not None and config.training.specaugment is not None:
            generator = torch.Generator().manual_seed(draw_seed(config.seed, "specaugment", step))
            options = vars(config.training.specaugment)
            inputs["features"] = spec_augment(batch.features, batch.feature_lens, generator, **options)
            if kd is not None and kd.ranges == "student":  # its teacher runs online
                inputs["clean_features"] = batch.features
        if planned.teacher is not None and kd is not None:
            made = (labels.size(1), config.training.prune_range, kd.temperature != 1.0)
            found = collate_teacher(planned.teacher, planned.num_frames, *made, batch.utterance_ids)
            inputs["cached"] = CachedTeacher(*found)
        return Prepared(batch.utterance_ids, inputs)


class _Queue:
    """The loader's sampler: what it is to make ready next."""

    planned: Iterable[_Planned] = ()

    def __iter__(self) -> Iterator[_Planned]:
        return iter(self.planned)


class TrainingData:
    """Training and development cuts of one system, and the processes that make batches of them.

    Args:
      cache:      what its teacher left, in a cache or with the cuts, or None.
      pin_memory: for a CUDA device.
    """

    def __init__(
        self,
        config: SystemConfig,
        tokenizer: Tokenizer,
        train_cuts: Path,
        dev_cuts: Path,
        cache: Optional[Teacher] = None,
        pin_memory: bool = False,
    ):
        self.config, self.tokenizer, self.cache, self.pin_memory = config, tokenizer, cache, pin_memory
        self.paths = {"train": train_cuts, "dev": dev_cuts}
        self.selections: Dict[str, selection.Selection] = {}
        self._queue = _Queue()

    def select(self, encoder_frames: Callable[[Tensor], Tensor], with_ctc: bool) -> None:
        """Leave out what cannot be trained on.  Raises UserError if nothing is left."""
        training, self._encoder_frames = self.config.training, encoder_frames
        encode = functools.lru_cache(maxsize=None)(self.tokenizer.encode)  # each text once
        for name, path in self.paths.items():
            self.selections[name] = selection.select(
                load_cuts_info(path),
                encode=encode,
                unk_id=self.tokenizer.unk_id,
                encoder_frames=encoder_frames,
                min_seconds=training.min_seconds,
                max_seconds=training.max_seconds,
                separate_repeats=with_ctc,
            )
            if self.selections[name].kept == 0:
                raise UserError(path, f"nothing is left ({self.selections[name].summary(name)})", "usable utterances")

    def kept(self, name: str) -> List[Any]:
        """The cuts of "train" or "dev" that ``select`` left in."""
        reasons = self.selections[name].reasons
        return [cut for cut in load_cuts(self.paths[name]) if cut.id not in reasons]

    def train_batches(self, epoch: int, skip: int, step: int) -> Iterator[Prepared]:
        """What is left of an epoch after ``skip`` batches; ``step`` is that of the first."""
        plan = self._plan("train", shuffle=True, epoch=epoch).plan[skip:]
        return self._ready("train", zip(range(step, step + len(plan)), plan))

    def dev_batches(self) -> Iterator[Prepared]:
        return self._ready("dev", ((None, cuts) for cuts in self._plan("dev", shuffle=False).plan))

    def batches_per_epoch(self) -> int:
        return len(self._plan("train", shuffle=True, epoch=0))

    def _plan(self, name: str, **order) -> CutDataLoader:
        training, reasons = self.config.training, self.selections[name].reasons
        order.update(batch_seconds=training.batch_seconds, num_buckets=training.num_buckets, seed=self.config.seed)
        return make_dataloader(self.paths[name], keep=lambda cut: reasons.get(cut.id), **order)

    def _ready(self, name: str, plan: Iterable[Tuple[Optional[int], List[Any]]]) -> Iterator[Prepared]:
        self._queue.planned = (self._planned(self.paths[name], step, cuts) for step, cuts in plan)
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

    def _planned(self, path: Path, step: Optional[int], cuts: List[Any]) -> _Planned:
        if step is None or self.cache is None:
            return _Planned(cuts, path, step, None, [])
        frames = self._encoder_frames(torch.tensor([cut.num_frames for cut in cuts]))
        return _Planned(cuts, path, step, self.cache.arrays(cuts), frames.tolist())

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
            _Preparation(self.config, self.tokenizer),
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),
            **options,
        )

"""Batches for the training loop, without the utterances that cannot be trained on."""

import functools
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple, TypeVar

from torch import Tensor

from rnnt_kd.config import SystemConfig
from rnnt_kd.data import selection
from rnnt_kd.data.dataset import Batch, CutInfo, load_cuts_info, make_dataloader
from rnnt_kd.errors import UserError
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer

Item = TypeVar("Item")


class TrainingData:
    """Batches with labels, those of process ``rank`` of ``size``.  Tokenises each text once."""

    def __init__(
        self,
        config: SystemConfig,
        tokenizer: Tokenizer,
        train_cuts: Path,
        dev_cuts: Path,
        rank: int = 0,
        size: int = 1,
    ):
        self.config, self.tokenizer, self.rank, self.size = config, tokenizer, rank, size
        self.paths = {"train": train_cuts, "dev": dev_cuts}
        self.selections: Dict[str, selection.Selection] = {}
        self.encode = functools.lru_cache(maxsize=None)(tokenizer.encode)  # text -> labels

    def select(self, encoder_frames: Callable[[Tensor], Tensor], with_ctc: bool) -> None:
        """Leave out what cannot be trained on.  Raises UserError if nothing is left."""
        training = self.config.training
        for name, path in self.paths.items():
            self.selections[name] = selection.select(
                load_cuts_info(path),
                encode=self.encode,
                unk_id=self.tokenizer.unk_id,
                encoder_frames=encoder_frames,
                min_seconds=training.min_seconds,
                max_seconds=training.max_seconds,
                separate_repeats=with_ctc,
            )
            if self.selections[name].kept == 0:
                raise UserError(path, f"nothing is left ({self.selections[name].summary(name)})", "usable utterances")

    def kept(self, name: str) -> List[CutInfo]:
        """The utterances of "train" or "dev" that ``select`` left in."""
        reasons = self.selections[name].reasons
        return [info for info in load_cuts_info(self.paths[name]) if info.id not in reasons]

    def train_batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        return iter(self._loader("train", shuffle=True, epoch=epoch, skip_batches=skip))

    def dev_batches(self) -> Iterator[Batch]:
        return iter(self._loader("dev", shuffle=False, epoch=0, skip_batches=0))

    def batches_per_epoch(self) -> int:
        return len(self._loader("train", shuffle=True, epoch=0, skip_batches=0))

    def labels(self, texts: List[str], padding: int) -> Tuple[Tensor, Tensor]:
        """(B, S) int64 padded with ``padding``, S >= 1, and (B,) int64 lengths."""
        return padded_labels([self.encode(text) for text in texts], padding)

    def _loader(self, name: str, **order):
        training, reasons = self.config.training, self.selections[name].reasons
        order.update(batch_seconds=training.batch_seconds, num_buckets=training.num_buckets, seed=self.config.seed)
        loader = make_dataloader(self.paths[name], keep=lambda cut: reasons.get(cut.id), **order)
        if self.size > 1 and name == "train":
            if self.selections[name].kept < self.size:
                problem = f"{self.selections[name].kept} utterances for {self.size} processes"
                raise UserError(self.paths[name], problem, "one for each at the least", "train with fewer processes")
            loader.plan = [batches[self.rank] for batches in steps(loader.plan, self.size)]
        elif self.size > 1:  # validation: nobody waits for another one before the end
            loader.plan = loader.plan[self.rank :: self.size]
        return loader


def steps(plan: List[List[Item]], size: int) -> List[List[List[Item]]]:
    """The batches of an epoch, one for each of ``size`` processes in each step; every utterance comes once.

    Where too few are left for the last step, the longest are halved; where too few utterances are left, they join the
    batches of the step before.  There are at least ``size`` utterances.
    """
    taken = [plan[begin : begin + size] for begin in range(0, len(plan), size)]
    last = taken[-1]
    while len(last) < size and max(map(len, last)) > 1:
        at = max(range(len(last)), key=lambda index: len(last[index]))
        last[at : at + 1] = [last[at][0::2], last[at][1::2]]
    if len(last) < size:
        taken.pop()
        left = [last[at] if at < len(last) else [] for at in range(size)]
        taken[-1] = [batch + more for batch, more in zip(taken[-1], left)]
    return taken

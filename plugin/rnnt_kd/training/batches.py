"""Batches for the training loop, without the utterances that cannot be trained on."""

import functools
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

from torch import Tensor

from rnnt_kd.config import SystemConfig
from rnnt_kd.data import selection
from rnnt_kd.data.dataset import Batch, make_dataloader
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer


class TrainingData:
    """Batches with labels."""

    def __init__(self, config: SystemConfig, tokenizer: Tokenizer, train_cuts: Path, dev_cuts: Path):
        self.config, self.tokenizer = config, tokenizer
        self.paths = {"train": train_cuts, "dev": dev_cuts}
        self.selections: Dict[str, selection.Selection] = {}
        self.encode = functools.lru_cache(maxsize=10_000)(tokenizer.encode)  # text -> labels

    def select(self, encoder_frames: Callable[[Tensor], Tensor], with_ctc: bool) -> None:
        """Leave out what cannot be trained on.  Raises UserError if nothing is left."""
        training = self.config.training
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
        training = self.config.training
        order.update(batch_seconds=training.batch_seconds, num_buckets=training.num_buckets, seed=self.config.seed)
        return make_dataloader(self.paths[name], places=self.selections[name].places, **order)

"""Batches for the training loop, without the utterances that cannot be trained on."""

import functools
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.config import SystemConfig
from rnnt_kd.data import selection
from rnnt_kd.data.dataset import Batch, CutInfo, load_cuts_info, make_dataloader, read_batches
from rnnt_kd.data.features import original_id
from rnnt_kd.errors import UserError
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer

AGAIN = "run stage 1 again"


class TrainingData:
    """Batches with labels.  Tokenises each text once."""

    def __init__(self, config: SystemConfig, tokenizer: Tokenizer, train_cuts: Path, dev_cuts: Path):
        self.config, self.tokenizer = config, tokenizer
        self.paths = {"train": train_cuts, "dev": dev_cuts}
        self.selections: Dict[str, selection.Selection] = {}
        self._places: Optional[Dict[str, int]] = None  # of cuts, in their file
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

    def originals(self, batch: Batch) -> Tensor:
        """(B, T, 80): the features of what the far copies of a training batch are copies of; of others, their own."""
        if self._places is None:
            self._places = {info.id: place for place, info in enumerate(load_cuts_info(self.paths["train"]))}
        ids = [original_id(name) for name in batch.utterance_ids]
        missing = next((name for name in ids if name not in self._places), None)
        if missing is not None:
            raise UserError(
                self.paths["train"], f"has no {missing}, and a far copy of it", "the clean cuts, too", AGAIN
            )
        (clean,) = read_batches(self.paths["train"], [[self._places[name] for name in ids]])
        if not torch.equal(clean.feature_lens, batch.feature_lens):
            raise UserError(self.paths["train"], f"far copies of {ids[0]} ... are not as long as it", "", AGAIN)
        return clean.features

    def batches_per_epoch(self) -> int:
        return len(self._loader("train", shuffle=True, epoch=0, skip_batches=0))

    def labels(self, texts: List[str], padding: int) -> Tuple[Tensor, Tensor]:
        """(B, S) int64 padded with ``padding``, S >= 1, and (B,) int64 lengths."""
        return padded_labels([self.encode(text) for text in texts], padding)

    def _loader(self, name: str, **order):
        training, reasons = self.config.training, self.selections[name].reasons
        order.update(batch_seconds=training.batch_seconds, num_buckets=training.num_buckets, seed=self.config.seed)
        return make_dataloader(self.paths[name], keep=lambda cut: reasons.get(cut.id), **order)

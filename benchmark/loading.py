"""What a training step loads: batches of given lengths, as cuts on the disk and, for a student, its teacher's cache.

Features, labels and the teacher are random.  A cut is read, augmented, padded and looked up as in training without
workers: in the step's own time.
"""

import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from lhotse import CutSet, LilcomChunkyWriter, MonoCut, SupervisionSegment
from lhotse.features import Features
from torch import Tensor

from benchmark.shapes import Batch
from rnnt_kd.config import KdConfig, SystemConfig, TrainingConfig
from rnnt_kd.data.source import open_source
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.interface import OurTransducer
from rnnt_kd.teachers.write_cache import cache_facts, write_cache
from rnnt_kd.training.batches import Planned, Preparation, Prepared

NUM_BINS = 80


class Loading:
    """``load(0)``: the first batch as arguments of the objective; its files are there as long as this is.

    Args:
      batches: (T, S) of each utterance, encoder frames and symbols.
      lengths: feature frames of an encoder frame.
      teacher: fills the cache of a student of ``kd``; None: no cache.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        training: TrainingConfig,
        kd: Optional[KdConfig],
        *,
        vocab: int,
        subsampling: int,
        seed: int,
        teacher: Optional[Transducer] = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        generator = torch.Generator().manual_seed(seed)
        cuts: List[MonoCut] = []
        self._planned: List[Planned] = []
        with LilcomChunkyWriter(folder / "feats") as writer:
            for batch in batches:
                self._planned.append(Planned([], folder / "cuts.jsonl", seed, None, [T for T, _ in batch]))
                for T, S in batch:
                    name, frames = f"cut{len(cuts)}", T * subsampling
                    seconds = frames * 0.01
                    said = " ".join(map(str, torch.randint(1, vocab, (S,), generator=generator).tolist()))
                    matrix = torch.randn(frames, NUM_BINS, generator=generator) * 4.0 - 5.0  # like log-mel
                    stored = Features(
                        type="kaldi-fbank", num_frames=frames, num_features=NUM_BINS, frame_shift=0.01,
                        sampling_rate=16000, start=0.0, duration=seconds, storage_type=writer.name,
                        storage_path=str(writer.storage_path), storage_key=writer.write(name, matrix.numpy()),
                    )  # fmt: skip
                    spoken = SupervisionSegment(name, name, 0.0, seconds, text=said)
                    self._planned[-1].places.append(len(cuts))
                    cuts.append(MonoCut(name, 0.0, seconds, 0, [spoken], stored))
        CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl")
        config = SystemConfig(training=training, kd=kd, seed=seed, vocab_size=vocab)
        self._preparation = Preparation(config, _Numbers(), 0)  # type: ignore[arg-type]
        if teacher is not None:
            self._fill(OurTransducer(teacher), folder, training)

    def load(self, index: int) -> Dict[str, Any]:
        return self._prepared(self._planned[index]).inputs

    def _prepared(self, planned: Planned) -> Prepared:
        prepared = self._preparation[planned]
        if isinstance(prepared, Exception):
            raise prepared
        return prepared

    def _fill(self, teacher: OurTransducer, folder: Path, training: TrainingConfig) -> None:
        source = open_source(folder / "cuts.jsonl")
        facts = cache_facts(teacher, prune_range=training.prune_range, digest="made up")

        def made() -> Iterator[Tuple[List[str], Tensor, Tensor, List[List[int]]]]:
            for planned in self._planned:
                names, inputs = self._prepared(planned._replace(step=None))
                symbols = [row[:n].tolist() for row, n in zip(inputs["labels"], inputs["label_lens"])]
                yield names, inputs["features"], inputs["feature_lens"], symbols

        with torch.no_grad():
            write_cache(teacher, made(), folder / "kd", facts)
        cache = TeacherCache.open(folder / "kd")
        for number, planned in enumerate(self._planned):
            arrays = cache.arrays(source, planned.places, source.ids(planned.places))
            self._planned[number] = planned._replace(teacher=arrays)


class _Numbers:
    """A tokenizer for texts that are numbers of symbols."""

    encode: Callable[[str], List[int]] = staticmethod(lambda text: [int(number) for number in text.split()])

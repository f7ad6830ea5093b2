"""The choice of utterances that can be trained on; the others are counted and named."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import numpy as np
import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.data.source import Source
from rnnt_kd.text.coverage import unwritable

UNKNOWN_TEXT = "text that the BPE model cannot write"
TOO_SHORT, TOO_LONG = "shorter than min_seconds", "longer than max_seconds"
TOO_FEW_FRAMES = "fewer encoder frames than symbols"
CHUNK = 1 << 20  # cuts at a time, for the memory's sake
REASONS = (UNKNOWN_TEXT, TOO_SHORT, TOO_LONG, TOO_FEW_FRAMES)


@dataclass(frozen=True)
class Selection:
    """Which cuts of a source are left out, and why.

    Attributes:
      why:        (N,) uint8, 0: kept; k: left out for the reason ``REASONS[k - 1]``.
      unwritable: the first thing that the BPE model cannot write.
    """

    source: Source
    why: np.ndarray
    unwritable: str = ""

    @property
    def total(self) -> int:
        return len(self.why)

    @property
    def kept(self) -> int:
        return self.total - int(np.count_nonzero(self.why))

    @functools.cached_property
    def places(self) -> np.ndarray:
        """(M,) int32, of the cuts that are kept, rising."""
        return np.flatnonzero(self.why == 0).astype(np.int32)

    def left_out(self) -> Dict[str, List[str]]:
        """The ids of each reason, sorted."""
        found = {reason: np.flatnonzero(self.why == number) for number, reason in enumerate(REASONS, 1)}
        return {reason: sorted(self.source.ids(places.tolist())) for reason, places in found.items() if len(places)}

    def summary(self, name: str) -> str:
        """One line."""
        counts = sorted(zip(REASONS, np.bincount(self.why, minlength=len(REASONS) + 1)[1:].tolist()))
        parts = [f"{count} ({100 * count / self.total:.1f} %) {reason}" for reason, count in counts if count]
        examples = [f", such as {self.unwritable}" * (reason == UNKNOWN_TEXT) for reason, count in counts if count]
        line = f"{name}: {self.kept} of {self.total} utterances"
        return line + ("; left out: " + ", ".join(map("".join, zip(parts, examples))) if parts else "")


def select(
    source: Source,
    *,
    encode: Callable[[str], Sequence[int]],
    unk_id: int,
    checksum: str,
    encoder_frames: Callable[[Tensor], Tensor],
    min_seconds: float,
    max_seconds: float,
    separate_repeats: bool,
) -> Selection:
    """Sort out what no lattice can be made of.

    Args:
      encode, unk_id, checksum: of the tokenizer.  What it makes of the texts is kept with the source's index.
      encoder_frames: feature frames (N,) -> encoder frames (N,), int64.
      separate_repeats: with a CTC head, a symbol repeated at once needs a blank frame in between.
    """
    encode = functools.lru_cache(maxsize=64)(encode)  # the speeds of an utterance follow each other

    def count() -> np.ndarray:
        rows = np.empty((len(source), 2), dtype=np.int32)
        for place, info in enumerate(source.infos()):
            symbols = encode(info.text)
            needed = [needed_frames(symbols, repeats) for repeats in (False, True)]
            rows[place] = -1 if unk_id in symbols else needed
        return rows

    needed = source.column(f"frames-{checksum[:16]}", count)[:, int(separate_repeats)]
    why = np.zeros(len(source), dtype=np.uint8)
    for begin in range(0, len(source), CHUNK):
        part = slice(begin, begin + CHUNK)
        frames = encoder_frames(torch.from_numpy(source.num_frames[part].astype(np.int64))).numpy()
        too_short, too_long = source.durations[part] < min_seconds, source.durations[part] > max_seconds
        conditions = (needed[part] < 0, too_short, too_long, frames < needed[part])
        for number, condition in reversed([*enumerate(conditions, 1)]):  # the first reason is the one that is told
            why[part][condition] = number
    example = ""
    if (needed < 0).any():
        first = source.info(int(np.argmax(needed < 0)))
        example = f"{unwritable(first.text, lambda text: unk_id in encode(text))} in {first.id}"
    return Selection(source, why, example)


def needed_frames(symbols: Sequence[int], separate_repeats: bool) -> int:
    """Encoder frames that an alignment of ``symbols`` needs."""
    repeats = sum(first == second for first, second in zip(symbols, symbols[1:], strict=False))
    return len(symbols) + (repeats if separate_repeats else 0)


def write_left_out(path: Path, selections: Dict[str, Selection]) -> None:
    """``{"train": {reason: [ids]}, "dev": ...}`` as JSON."""
    content = {name: dict(sorted(chosen.left_out().items())) for name, chosen in selections.items()}
    atomic.write_json(path, content)

"""The choice of utterances that can be trained on; the others are counted and named."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterable, Sequence

import torch
from torch import Tensor

from rnnt_kd import atomic
from rnnt_kd.data.dataset import CutInfo
from rnnt_kd.text.coverage import unwritable

UNKNOWN_TEXT = "text that the BPE model cannot write"
TOO_SHORT, TOO_LONG = "shorter than min_seconds", "longer than max_seconds"
TOO_FEW_FRAMES = "fewer encoder frames than symbols"


@dataclass
class Selection:
    """``reasons`` of the utterances left out, by id; ``total`` counts all that were looked at; ``unwritable``: the
    first thing that the BPE model cannot write."""

    total: int = 0
    reasons: Dict[str, str] = field(default_factory=dict)
    unwritable: str = ""

    @property
    def kept(self) -> int:
        return self.total - len(self.reasons)

    def summary(self, name: str) -> str:
        """One line."""
        counts = sorted(Counter(self.reasons.values()).items())
        parts = [f"{count} ({100 * count / self.total:.1f} %) {reason}" for reason, count in counts]
        examples = [f", such as {self.unwritable}" * (reason == UNKNOWN_TEXT) for reason, _ in counts]
        line = f"{name}: {self.kept} of {self.total} utterances"
        return line + ("; left out: " + ", ".join(map("".join, zip(parts, examples))) if counts else "")


def select(
    utterances: Iterable[CutInfo],
    *,
    encode: Callable[[str], Sequence[int]],
    unk_id: int,
    encoder_frames: Callable[[Tensor], Tensor],
    min_seconds: float,
    max_seconds: float,
    separate_repeats: bool,
) -> Selection:
    """Sort out what no lattice can be made of.

    Args:
      encode, unk_id: of the tokenizer.
      encoder_frames: feature frames (N,) -> encoder frames (N,), int64.
      separate_repeats: with a CTC head, a symbol repeated at once needs a blank frame in between.
    """
    utterances = list(utterances)
    frames = encoder_frames(torch.tensor([one.num_frames for one in utterances], dtype=torch.int64)).tolist()
    selection = Selection(total=len(utterances))
    for utterance, available in zip(utterances, frames, strict=True):
        symbols = encode(utterance.text)
        if unk_id in symbols:
            selection.reasons[utterance.id] = UNKNOWN_TEXT
            if not selection.unwritable:
                word = unwritable(utterance.text, lambda text: unk_id in encode(text))
                selection.unwritable = f"{word} in {utterance.id}"
        elif utterance.duration < min_seconds:
            selection.reasons[utterance.id] = TOO_SHORT
        elif utterance.duration > max_seconds:
            selection.reasons[utterance.id] = TOO_LONG
        elif available < needed_frames(symbols, separate_repeats):
            selection.reasons[utterance.id] = TOO_FEW_FRAMES
    return selection


def needed_frames(symbols: Sequence[int], separate_repeats: bool) -> int:
    """Encoder frames that an alignment of ``symbols`` needs."""
    repeats = sum(first == second for first, second in zip(symbols, symbols[1:], strict=False))
    return len(symbols) + (repeats if separate_repeats else 0)


def write_left_out(path: Path, selections: Dict[str, Selection]) -> None:
    """``{"train": {reason: [ids]}, "dev": ...}`` as JSON."""
    content = {
        name: {
            reason: sorted(i for i, r in chosen.reasons.items() if r == reason)
            for reason in sorted(set(chosen.reasons.values()))
        }
        for name, chosen in selections.items()
    }
    atomic.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

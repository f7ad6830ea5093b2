"""N-best lists, and ``nbest-<test set>.jsonl`` on disk: one JSON object a hypothesis, best first.

    {"id": "an4_fash-cen1", "rank": 1, "text": "YES", "score": -1.25, "tokens": ["\u2581YE", "S"],
     "timestamps": [0.32, 0.48], "token_log_probs": [-0.1, -0.2],
     "words": ["YES"], "word_starts": [0.32], "word_ends": [0.52], "word_confidences": [0.93]}

Times are seconds.  A word lasts from the frame of its first token to the end of the frame of its last one: a
transducer says when a token comes, not how long it lasts.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence, Tuple

from rnnt_kd import atomic


@dataclass(frozen=True)
class Alternative:
    """One hypothesis of an utterance, for people and files."""

    text: str
    score: float  # natural log, as the search ranked it (before dividing by the length)
    tokens: Tuple[str, ...]  # pieces
    timestamps: Tuple[float, ...]
    token_log_probs: Tuple[float, ...]
    words: Tuple[str, ...]
    word_starts: Tuple[float, ...]
    word_ends: Tuple[float, ...]
    word_confidences: Tuple[float, ...]  # in [0, 1], see decoding/confidence.py


def write_nbest(path: Path, lists: Iterable[Tuple[str, Sequence[Alternative]]]) -> None:
    """Write (utterance id, hypotheses, best first), sorted by id, atomically."""
    lines = []
    for utterance_id, found in sorted(lists, key=lambda pair: pair[0]):
        for rank, item in enumerate(found, 1):
            values = {key: _rounded(value) for key, value in vars(item).items()}
            lines.append(json.dumps({"id": utterance_id, "rank": rank, **values}, ensure_ascii=False) + "\n")
    atomic.write_text(path, "".join(lines))


def _rounded(value):
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value

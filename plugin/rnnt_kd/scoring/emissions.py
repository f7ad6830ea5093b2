"""What a system emitted and when, and ``tokens-<test set>.jsonl`` on disk: one JSON object a line, sorted by id.

    {"id": "an4_fash-cen1", "tokens": ["▁YE", "S"], "timestamps": [0.32, 0.48], "words": ["YES"], "word_times": [0.48]}

A token's time is where in the audio the encoder frame begins that emitted it, in seconds, as sherpa-onnx
reports it.  It does not count what a streaming system waits for its chunk to fill.  A word's time is
that of its *last* token: only then is the word there to read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Tuple
from unicodedata import normalize

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.text_files import read_text

_AGAIN = "decode again"


@dataclass(frozen=True)
class Emissions:
    """One utterance: tokens as their pieces, words, and their times in seconds."""

    tokens: Tuple[str, ...]
    timestamps: Tuple[float, ...]
    words: Tuple[str, ...]
    word_times: Tuple[float, ...]


def write_emissions(path: Path, emissions: Iterable[Tuple[str, Emissions]]) -> None:
    """Write (utterance id, emissions) pairs, atomically."""
    lines = [
        json.dumps({"id": utterance_id, **{key: list(value) for key, value in vars(item).items()}}, ensure_ascii=False)
        for utterance_id, item in sorted(emissions, key=lambda pair: pair[0])
    ]
    atomic.write_text(path, "".join(f"{line}\n" for line in lines))


def read_emissions(path: Path) -> Dict[str, Emissions]:
    """Utterance id -> emissions.

    Raises:
      UserError: no such file, or a line (named) that is no such object or has an id twice.
    """
    found: Dict[str, Emissions] = {}
    lines = read_text(path, "the tokens and times that decode writes", _AGAIN).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            utterance_id, item = _parse(parse_json(line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            shown = f'found "{line[:60]}"'
            raise UserError(f"{path}:{number}", shown, "an utterance's tokens, words and times", _AGAIN) from None
        if utterance_id in found:
            raise UserError(f"{path}:{number}", f'"{utterance_id}" a second time', "every id once", _AGAIN)
        found[utterance_id] = item
    return found


def _parse(value: Dict) -> Tuple[str, Emissions]:
    """Raises ValueError, KeyError or TypeError for what is no such line."""
    names = tuple(tuple(map(_text, value[key])) for key in ("tokens", "words"))
    times = tuple(tuple(map(_seconds, value[key])) for key in ("timestamps", "word_times"))
    if [len(x) for x in names] != [len(x) for x in times]:
        raise ValueError("names and times differ in number")
    words = tuple(
        normalize("NFC", word) for word in names[1]
    )  # earlier versions wrote them as the BPE model spells them
    return _text(value["id"]), Emissions(names[0], times[0], words, times[1])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
        raise TypeError(value)
    return float(value)

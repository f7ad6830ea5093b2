"""Words of a transcript that stand for no word: ``<unk>``, ``[noise]``, ``{breath}``."""

import re
from collections import Counter
from typing import Iterable, List, Sequence

MOST_EVENTS = 100  # that get a piece of their own

_EVENT = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\{[^{}\s]+\}")


def is_event(word: str) -> bool:
    """Whether all of ``word`` stands in angle, square or curly brackets."""
    return _EVENT.fullmatch(word) is not None


def count_events(texts: Iterable[str]) -> "Counter[str]":
    """How often each event stands in ``texts``."""
    return Counter(word for text in texts if any(x in text for x in "<[{") for word in text.split() if is_event(word))


def most_frequent(events: "Counter[str]") -> List[str]:
    """The events that get a piece of their own, the most frequent first."""
    return sorted(events, key=lambda word: (-events[word], word))[:MOST_EVENTS]


def without_events(words: Sequence[str]) -> List[str]:
    return [word for word in words if not is_event(word)]

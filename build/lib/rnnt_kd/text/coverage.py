"""What a BPE model can write of a set's transcripts, and whether another case of letters would help."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Iterable, Mapping, Sequence, Set, Tuple

Encode = Callable[[str], Sequence[int]]
_CASES = (("upper", str.upper), ("lower", str.lower))


@dataclass(frozen=True)
class Coverage:
    """Utterances of a set: how many there are, and how many hold what the model cannot write.

    Attributes:
      example: of these the first, in words.
      case:    "upper" or "lower" where the model can write most of these in that case; else "".
    """

    total: int
    unwritable: int
    example: str = ""
    case: str = ""

    def sentence(self, name: str) -> str:
        """One line about the set ``name``."""
        if not self.unwritable:
            return f"{name}: the BPE model can write all {self.total} utterances"
        share = f"{self.unwritable} of {self.total} utterances ({100 * self.unwritable / self.total:.1f} %)"
        advice = f"; in {self.case} case it can: change the case of this set's text, or of the training text"
        line = f"{name}: the BPE model cannot write {share}, such as {self.example}"
        return line + (advice if self.case else "")


def coverage(texts: Mapping[str, str], encode: Encode, unk_id: int) -> Coverage:
    """``texts``: utterance id -> transcript."""
    is_unknown = lru_cache(maxsize=None)(lambda word: unk_id in encode(word))
    bad = {key: text for key, text in texts.items() if any(map(is_unknown, text.split()))}
    if not bad:
        return Coverage(len(texts), 0)
    key, text = next(iter(bad.items()))
    counts = [sum(not any(map(is_unknown, change(text).split())) for text in bad.values()) for _, change in _CASES]
    case = _CASES[counts.index(max(counts))][0] if 2 * max(counts) > len(bad) else ""
    return Coverage(len(texts), len(bad), f"{unwritable(text, is_unknown)} in {key}", case)


def unwritable(text: str, is_unknown: Callable[[str], bool]) -> str:
    """The first word that ``is_unknown``, in quotes, behind its first unknown letter where that is not all of it."""
    word = next((word for word in text.split() if is_unknown(word)), text)
    letter = next((letter for letter in word if is_unknown(letter)), word)
    return f'"{word[:40]}"' if letter == word else f'"{letter}" of "{word[:40]}"'


def case_differs(pairs: Iterable[Tuple[Sequence[str], Sequence[str]]]) -> bool:
    """Whether references and hypotheses have words in common without regard to case alone, and hardly any with it."""
    refs: Set[str] = set()
    hyps: Set[str] = set()
    for ref, hyp in pairs:
        refs.update(ref)
        hyps.update(hyp)
    alike, folded = refs & hyps, set(map(str.casefold, refs)) & set(map(str.casefold, hyps))
    return len(folded) > 10 * len(alike)

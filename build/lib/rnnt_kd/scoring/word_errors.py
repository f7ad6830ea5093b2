"""Counts of word errors, from alignments of least edit distance (kaldialign).

``ins``: a word of hyp that ref lacks; ``del``: a word of ref that hyp lacks; ``sub``: one word
for another.  Word error rate = 100 (ins + del + sub) / words of the references.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import kaldialign

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.recognitions import Recognition

GAP = ""  # stands for the missing word of an insertion or deletion: no word is empty

Alignment = List[Tuple[str, str]]  # (ref word, hyp word)


@dataclass(frozen=True)
class ErrorCounts:
    """Sums over utterances."""

    utterances: int = 0
    words: int = 0  # in the references
    ins: int = 0
    dels: int = 0
    subs: int = 0
    wrong: int = 0  # utterances with an error

    @property
    def errors(self) -> int:
        return self.ins + self.dels + self.subs

    @property
    def correct(self) -> int:
        return self.words - self.dels - self.subs

    @property
    def wer(self) -> Optional[float]:
        """Per cent; None without a reference word (noise: its insertions are counted, a rate they have not)."""
        return 100.0 * self.errors / self.words if self.words else None

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def align(ref: Sequence[str], hyp: Sequence[str]) -> Alignment:
    """Pairs of words, ``GAP`` where one side has none.

    Often several alignments have the fewest errors: two substitutions, say, where one insertion and one
    deletion would do.  sclite, which asks 3 for an insertion or deletion and 4 for a substitution, takes the one
    with more words right; so does this.  An alignment that sclite likes for its price, but that has more errors
    than needed, is not taken: the total is always that of Kaldi's compute-wer.
    """
    ref, hyp = list(ref), list(hyp)
    alignment = kaldialign.align(ref, hyp, GAP)
    like_sclite = kaldialign.align(ref, hyp, GAP, sclite_mode=True)
    return like_sclite if _errors(like_sclite) == _errors(alignment) else alignment


def operation(ref: str, hyp: str) -> str:
    """Kind of an aligned pair: "C" correct, "I" insertion, "D" deletion or "S" substitution."""
    return "D" if hyp == GAP else "I" if ref == GAP else "C" if ref == hyp else "S"


def count(alignment: Alignment) -> ErrorCounts:
    """The errors of one utterance."""
    numbers = Counter(operation(*pair) for pair in alignment)
    words = len(alignment) - numbers["I"]
    return ErrorCounts(1, words, numbers["I"], numbers["D"], numbers["S"], wrong=int(numbers["C"] < len(alignment)))


def count_all(recognitions: Iterable[Recognition]) -> ErrorCounts:
    """The errors of a test set."""
    return sum((count(align(item.ref, item.hyp)) for item in recognitions), ErrorCounts())


def count_by_speaker(recognitions: Iterable[Recognition], speakers: Mapping[str, str]) -> Dict[str, ErrorCounts]:
    """Speaker id -> errors, sorted by speaker.

    Args:
      speakers: utterance id -> speaker id.
    Raises:
      UserError: an utterance without a speaker.
    """
    table: Dict[str, ErrorCounts] = {}
    for item in recognitions:
        speaker = speakers.get(item.utterance_id)
        if speaker is None:
            raise UserError("utt2spk", f'no speaker for "{item.utterance_id}"', "every utterance of the test set")
        table[speaker] = table.get(speaker, ErrorCounts()) + count(align(item.ref, item.hyp))
    return dict(sorted(table.items()))


def _errors(alignment: Alignment) -> int:
    return sum(ref != hyp for ref, hyp in alignment)

"""How much later one system emits its words than another, on words that both recognised correctly.

A reference word counts where both systems have it right and there is no doubt which of their words
it is: every alignment of least edit distance pairs it with the same one.  (Of one "five" where "five
five" was spoken, nobody knows which it is; choosing one would invent a delay.)
"""

from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence, Set

import numpy as np

from rnnt_kd.scoring.bootstrap import mean_interval, too_few
from rnnt_kd.scoring.emissions import Emissions
from rnnt_kd.scoring.recognitions import Recognition


@dataclass(frozen=True)
class WordDelays:
    """
    by_utterance:     utterance id -> seconds, one for each word that counts; > 0: later than the baseline.
    reference_words:  in all.
    unclear:          reference words that both may have right, with a doubt which of their words it is.
    """

    by_utterance: Dict[str, List[float]]
    reference_words: int
    unclear: int


def word_delays(
    recognitions: Sequence[Recognition], ours: Mapping[str, Emissions], baseline: Mapping[str, Emissions]
) -> WordDelays:
    """Pair the words of two systems through the references of ``recognitions``; all have the same utterances."""
    delays: Dict[str, List[float]] = {}
    unclear = 0
    for item in recognitions:
        own, other = ours[item.utterance_id], baseline[item.utterance_id]
        delays[item.utterance_id] = []
        for first, second in zip(places(item.ref, own.words), places(item.ref, other.words)):
            if first == {None} or second == {None}:  # one of them has it wrong
                continue
            if len(first) > 1 or len(second) > 1:
                unclear += 1
                continue
            (place,), (other_place,) = first, second
            assert place is not None and other_place is not None
            delays[item.utterance_id].append(own.word_times[place] - other.word_times[other_place])
    return WordDelays(delays, sum(len(item.ref) for item in recognitions), unclear)


def places(ref: Sequence[str], hyp: Sequence[str]) -> List[Set[Optional[int]]]:
    """What the alignments of least edit distance do with each word of ``ref``.

    The places in ``hyp`` of the equal words that it is paired with; None among them where it is left out
    or paired with another word.
    """
    n, m = len(ref), len(hyp)
    is_wrong = np.array([[one != other for other in hyp] for one in ref], dtype=np.int64).reshape(n, m)
    before, after = _distances(is_wrong), _distances(is_wrong[::-1, ::-1])[::-1, ::-1]
    least = before[n, m]
    found: List[Set[Optional[int]]] = []
    for i in range(n):
        is_paired = before[i, :m] + is_wrong[i] + after[i + 1, 1:] == least
        is_missing = bool((before[i] + 1 + after[i + 1] == least).any())
        found.append({*np.flatnonzero(is_paired & (is_wrong[i] == 0)).tolist()})
        if is_missing or bool((is_paired & (is_wrong[i] == 1)).any()):
            found[-1].add(None)
    return found


def delay_figures(
    delays: WordDelays, replications: int = 10000, seed: int = 0, *, speakers: Collection[str] = ()
) -> Dict[str, Any]:
    """JSON values: ``words`` that count, ``reference_words``, ``unclear``; and of the words, in milliseconds,
    ``mean_ms``, ``median_ms``, ``p90_ms`` (90 % are at most so much later) and ``ci95_ms``, the 95 %
    interval of the mean by bootstrap over utterances.  None where no word counts, and an interval from too few
    utterances or one of the ``speakers`` alone: ``too_few`` says which.
    """
    values = 1000.0 * np.array([delay for utterance in delays.by_utterance.values() for delay in utterance])
    few = too_few(sum(map(bool, delays.by_utterance.values())), speakers)
    figures: Dict[str, Any] = {"words": len(values), "reference_words": delays.reference_words}
    figures.update(unclear=delays.unclear, too_few=few or None)
    if not len(values):
        return {**figures, **dict.fromkeys(("mean_ms", "median_ms", "p90_ms", "ci95_ms"))}
    interval = None if few else mean_interval(list(delays.by_utterance.values()), replications, seed)
    return {
        **figures,
        "mean_ms": round(float(values.mean()), 1),
        "median_ms": round(float(np.median(values)), 1),
        "p90_ms": round(float(np.percentile(values, 90)), 1),
        "ci95_ms": interval and [round(1000.0 * bound, 1) for bound in interval],
    }


def _distances(is_wrong: np.ndarray) -> np.ndarray:
    """(n, m) 0 or 1 -> (n + 1, m + 1): edit distance of the first i and the first j words."""
    n, m = is_wrong.shape
    column = np.arange(m + 1)
    rows = [column]
    for i in range(n):
        best = rows[-1] + 1
        best[1:] = np.minimum(best[1:], rows[-1][:-1] + is_wrong[i])
        rows.append(np.minimum.accumulate(best - column) + column)  # insertions: one more each column
    return np.stack(rows)

"""How sure a word error rate is: bootstrap over utterances (Bisani & Ney, ICASSP 2004; kaldialign).

Utterances are drawn with replacement, as many as the test set has, ``replications``
times; words of one utterance share their luck, so single words are never drawn.
The seed is fixed: the same files give the same figures.
"""

import math
from typing import List, Optional, Sequence, Tuple

import kaldialign

from rnnt_kd.scoring.recognitions import Recognition


def confidence_interval(
    recognitions: Sequence[Recognition], replications: int = 10000, seed: int = 0
) -> Optional[Tuple[float, float]]:
    """95 % interval of the word error rate, per cent: mean of the drawn rates +- 1.96 standard deviations, not below 0.

    None where so few words are spoken that some draws have none.
    """
    refs, hyps = _words(recognitions)
    result = kaldialign.bootstrap_wer_ci(refs, hyps, replications=replications, seed=seed)
    low, high = 100 * result["ci95min"], 100 * result["ci95max"]
    return (max(0.0, low), high) if math.isfinite(low) and math.isfinite(high) else None


def paired_p_value(
    recognitions: Sequence[Recognition], baseline: Sequence[Recognition], replications: int = 10000, seed: int = 0
) -> float:
    """Two-sided p-value of "both systems make equally many errors".

    Both are scored on the same drawn utterances; b is the number of draws in which this system
    is not better than the baseline, w the number in which it is not worse;
    p = min(1, 2 (min(b, w) + 1) / (replications + 1)): small for a clear gain *and* for a clear
    loss, 1 for systems that err alike, never 0.

    Args:
      recognitions, baseline: the same utterances, in the same order, with the same references.
    """
    assert [(item.utterance_id, item.ref) for item in recognitions] == [
        (item.utterance_id, item.ref) for item in baseline
    ]
    refs, hyps = _words(recognitions)
    _, baseline_hyps = _words(baseline)
    not_better, not_worse = (
        replications - round(replications * _share_improved(refs, first, second, replications, seed))
        for first, second in ((baseline_hyps, hyps), (hyps, baseline_hyps))
    )
    return min(1.0, 2 * (min(not_better, not_worse) + 1) / (replications + 1))


def _share_improved(refs: List, hyps: List, other_hyps: List, replications: int, seed: int) -> float:
    """Share of draws in which ``other_hyps`` have fewer errors than ``hyps``."""
    result = kaldialign.bootstrap_wer_ci(refs, hyps, other_hyps, replications=replications, seed=seed)
    return result["p_s2_improv_over_s1"]


def _words(recognitions: Sequence[Recognition]) -> Tuple[List, List]:
    return [list(item.ref) for item in recognitions], [list(item.hyp) for item in recognitions]

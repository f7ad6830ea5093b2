"""Is one system better than another, over several seeds?  Paired bootstrap over utterances (Bisani & Ney 2004).

Every seed of both systems is scored on the same utterances.  In each draw, utterances are drawn with replacement, as
many as there are, and the errors of all seeds on them are added for both systems; as in ``scoring.significance``,
b is the number of draws in which the system is not better than the baseline, w that in which it is not worse, and
p = min(1, 2 (min(b, w) + 1) / (replications + 1)).  Two questions differ in what else is drawn:

``over="utterances"``   nothing: are *these* trained systems better on other speech of this kind?
``over="both"``         also the seeds, with replacement, the same of both systems: are systems *trained like these*
                        better?  Training noise counts.  It takes the seeds for a sample of all seeds, which few
                        of them represent poorly: n seeds show (n - 1) / n of their variance, and with three, one
                        draw in nine has a single seed.  With one seed it is the first question again.

U = utterances, K = seeds, R = replications.
"""

from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np

from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import align, count

_CHUNK = 1 << 20  # draws of utterances at once


def errors_by_utterance(recognitions: Sequence[Recognition]) -> np.ndarray:
    """(U,) int64, errors of each utterance, in the order of the list."""
    return np.array([count(align(item.ref, item.hyp)).errors for item in recognitions], dtype=np.int64)


def paired_p_value(
    errors: Mapping[int, np.ndarray],
    baseline: Mapping[int, np.ndarray],
    *,
    over: str = "utterances",
    replications: int = 10000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of "both make equally many errors".

    Args:
      errors, baseline:   seed -> (U,) errors of its utterances, the same seeds and the same utterances in both.
      over:               "utterances", or "both": utterances and seeds.
      replications, seed: of the bootstrap; the same give the same figure.
    """
    assert over in ("utterances", "both"), over
    assert errors and errors.keys() == baseline.keys(), (list(errors), list(baseline))
    difference = np.stack([errors[key] - baseline[key] for key in sorted(errors)])  # (K, U)
    K, U = difference.shape
    generator = np.random.default_rng(seed)
    not_better = not_worse = 0
    for size in _chunks(replications, U):
        utterances = generator.integers(U, size=(size, U))
        if over == "both":
            seeds = generator.integers(K, size=(size, K))
            times = np.stack([(seeds == k).sum(1) for k in range(K)], axis=1)  # (size, K)
            sums = (difference[:, utterances].sum(2).T * times).sum(1)
        else:
            sums = difference.sum(0)[utterances].sum(1)
        not_better += int((sums >= 0).sum())
        not_worse += int((sums <= 0).sum())
    return min(1.0, 2 * (min(not_better, not_worse) + 1) / (replications + 1))


def spread(values: Sequence[float]) -> Dict[str, Optional[float]]:
    """mean, sd (of a sample; None for one value), min and max."""
    array = np.array(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "min": float(array.min()), "max": float(array.max())}


def _chunks(replications: int, U: int) -> List[int]:
    size = max(1, _CHUNK // max(U, 1))
    return [min(size, replications - done) for done in range(0, replications, size)]

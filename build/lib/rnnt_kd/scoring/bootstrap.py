"""Bootstrap over utterances (Bisani & Ney, ICASSP 2004): how certain the figures of a test set are.

Utterances are drawn with replacement, as many as the test set has, ``replications`` times; the words of an utterance
are not independent, so single words are never drawn.  The seed is fixed: the same files give the same figures.

A p-value is two-sided, for "both systems make equally many errors".  Both are scored on the same drawn utterances;
b is the number of draws in which the system is not better than the baseline, w that in which it is not worse, and
p = min(1, 2 (min(b, w) + 1) / (replications + 1)): small for a clear gain *and* for a clear loss, 1 for systems
that err alike, never 0.

Drawing a few utterances, or those of one speaker, again and again does not show what others would bring: an interval
of width 0 from one utterance, a p-value of 0.0002 from two.  So ``too_few`` names the test sets that have neither, and
of fewer than ``LEAST_UTTERANCES`` every function here returns None.

Over the folds of a cross-validation whole speakers are drawn (``clustered_comparison``): utterances of one speaker are
not independent, nor are words.

U = utterances, K = seeds, S = speakers.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import kaldialign
import numpy as np

from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import align, count

LEAST_UTTERANCES = 20
_AT_ONCE = 1 << 20  # drawn utterances in memory


def too_few(utterances: int, speakers: Collection[str] = ()) -> str:
    """What there is too little of for an interval or a p-value; "" for enough.

    Args:
      speakers: different ones of the test set; none where they are not known.
    """
    if utterances < LEAST_UTTERANCES:
        return f"{utterances} utterance{'s' if utterances != 1 else ''}"
    return "one speaker" if len(speakers) == 1 else ""


def confidence_interval(
    recognitions: Sequence[Recognition], replications: int = 10000, seed: int = 0
) -> Optional[Tuple[float, float]]:
    """95 % interval of the word error rate, per cent: mean of the drawn rates +- 1.96 standard deviations, not below 0.

    None for too few utterances, and where so few words are spoken that some draws have none.
    """
    if too_few(len(recognitions)) or not any(item.ref for item in recognitions):
        return None
    refs, hyps = _words(recognitions)
    result = kaldialign.bootstrap_wer_ci(refs, hyps, replications=replications, seed=seed)
    low, high = 100 * result["ci95min"], 100 * result["ci95max"]
    return (max(0.0, low), high) if math.isfinite(low) and math.isfinite(high) else None


def one_seed_p_value(
    recognitions: Sequence[Recognition], baseline: Sequence[Recognition], replications: int = 10000, seed: int = 0
) -> Optional[float]:
    """p-value of one trained system against another (the draws are kaldialign's).

    None for too few utterances, and where no word is spoken.

    Args:
      recognitions, baseline: the same utterances, in the same order, with the same references.
    """
    if too_few(len(recognitions)) or not any(item.ref for item in recognitions):
        return None
    refs, hyps = _words(recognitions)
    baseline_refs, baseline_hyps = _words(baseline)
    assert refs == baseline_refs
    not_better, not_worse = (
        replications - round(replications * result["p_s2_improv_over_s1"])  # draws without fewer errors than the other
        for result in (
            kaldialign.bootstrap_wer_ci(refs, *pair, replications=replications, seed=seed)
            for pair in ((baseline_hyps, hyps), (hyps, baseline_hyps))
        )
    )
    return _two_sided(not_better, not_worse, replications)


def paired_p_value(
    errors: Mapping[int, np.ndarray],
    baseline: Mapping[int, np.ndarray],
    *,
    over: str = "utterances",
    replications: int = 10000,
    seed: int = 0,
) -> Optional[float]:
    """p-value of a system against another over several seeds, whose errors on the drawn utterances are added.

    None for too few utterances.

    ``over="utterances"``   are *these* trained systems better on other speech of this kind?
    ``over="both"``         the seeds are drawn as well, with replacement, the same of both systems: are systems
                            *trained like these* better?  Training noise counts.  The seeds stand for all seeds,
                            which few of them represent poorly: n seeds show (n - 1) / n of their variance, and with
                            three, one draw in nine has a single seed.  With one seed it is the first question again.

    Args:
      errors, baseline: seed -> (U,) errors of its utterances, the same seeds and the same utterances in both.
    """
    assert over in ("utterances", "both"), over
    assert errors and errors.keys() == baseline.keys(), (list(errors), list(baseline))
    difference = np.stack([errors[key] - baseline[key] for key in sorted(errors)])  # (K, U)
    K, U = difference.shape
    if too_few(U):
        return None
    generator = np.random.default_rng(seed)
    not_better = not_worse = 0
    for utterances in _draws(generator, U, replications):
        if over == "both":
            seeds = generator.integers(K, size=(len(utterances), K))
            times = np.stack([(seeds == k).sum(1) for k in range(K)], axis=1)  # (draws, K)
            sums = (difference[:, utterances].sum(2).T * times).sum(1)
        else:
            sums = difference.sum(0)[utterances].sum(1)
        not_better += int((sums >= 0).sum())
        not_worse += int((sums <= 0).sum())
    return _two_sided(not_better, not_worse, replications)


@dataclass(frozen=True)
class Comparison:
    """A system against its baseline; what is relative is per cent of the baseline's errors, negative is better.

    Attributes:
      p_value: two-sided.
      change, ci95: the relative change, and the 2.5 and 97.5 % points of the drawn ones.
      seen_with_80: the smallest relative change, either way, that a test at 5 % would see with a probability of 80 %:
        (1.96 + 0.84) standard deviations of the drawn ones.
    """

    p_value: float
    change: float
    ci95: Tuple[float, float]
    seen_with_80: float


def clustered_comparison(
    errors: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    *,
    draw_seeds: bool,
    replications: int = 10000,
    seed: int = 0,
) -> Optional[Comparison]:
    """Paired bootstrap over the folds of a cross-validation, clustered by speaker.

    In a draw, as many speakers as there are in all folds together come with replacement, the same for both systems.
    ``draw_seeds``: training noise counts, too; in each fold, independently of the others, K - 1 of its K seeds come
    with replacement, the same for both.  K - 1, not K: then the variance of the mean of K seeds is right, however few
    they are (Rao & Wu, JASA 1988); drawing K shows (K - 1) / K of it, with two seeds the half.  A fold counts by its
    speakers, not by its seeds.

    Args:
      errors, baseline: for each fold (K, S) errors by seed and speaker, the same seeds and speakers in both; K and S
        may differ between folds.
    Returns: None for one speaker, for seeds to draw of which a fold has but one, and where the baseline has no error.
    """
    system, other = ([np.asarray(fold, dtype=np.int64) for fold in given] for given in (errors, baseline))
    assert system and [fold.shape for fold in system] == [fold.shape for fold in other]
    K, S = [fold.shape[0] for fold in system], [fold.shape[1] for fold in system]
    taken = [k - 1 if draw_seeds else k for k in K]
    if sum(S) < 2 or 0 in taken:
        return None
    scale = math.lcm(*taken)  # errors of scale trainings a fold: sums stay whole numbers, ties stay ties
    whole, whole_other = (sum(fold.sum() / k for fold, k in zip(given, K)) for given in (system, other))
    if not whole_other:
        return None
    generator = np.random.default_rng(seed)
    starts = np.cumsum([0, *S])
    differences, changes = [], []
    size = max(1, _AT_ONCE // sum(S))
    for done in range(0, replications, size):
        draws = min(size, replications - done)
        speakers = generator.multinomial(sum(S), np.full(sum(S), 1 / sum(S)), size=draws)  # how often each comes
        sums = np.zeros((2, draws), dtype=np.int64)
        for fold, k in enumerate(K):
            times = generator.multinomial(k - 1, np.full(k, 1 / k), size=draws) if draw_seeds else 1
            own = speakers[:, starts[fold] : starts[fold + 1]]
            for which, given in enumerate((system, other)):
                sums[which] += (own @ given[fold].T * times).sum(1) * (scale // taken[fold])
        differences.append(sums[0] - sums[1])
        changes.append(100 * (sums[0] - sums[1]) / np.maximum(sums[1], 1))
    difference, drawn = np.concatenate(differences), np.concatenate(changes)
    p_value = _two_sided(int((difference >= 0).sum()), int((difference <= 0).sum()), replications)
    low, high = np.percentile(drawn, [2.5, 97.5])
    normal = NormalDist()
    seen = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * float(drawn.std())
    return Comparison(p_value, 100 * (whole - whole_other) / whole_other, (float(low), float(high)), seen)


def mean_interval(groups: Sequence[Sequence[float]], replications: int = 10000, seed: int = 0) -> Optional[List[float]]:
    """[2.5 % point, 97.5 % point] of the mean of all values, drawn by groups (utterances).

    A draw without any value does not count.  None where too few groups have a value.
    """
    if too_few(sum(map(bool, groups))):
        return None
    sums, counts = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    means = []
    for chosen in _draws(np.random.default_rng(seed), len(groups), replications):
        drawn = counts[chosen].sum(axis=1)
        means.append(sums[chosen].sum(axis=1)[drawn > 0] / drawn[drawn > 0])
    return np.percentile(np.concatenate(means), [2.5, 97.5]).tolist()


def errors_by_utterance(recognitions: Sequence[Recognition]) -> np.ndarray:
    """(U,) int64, errors of each utterance, in the order of the list."""
    return np.array([count(align(item.ref, item.hyp)).errors for item in recognitions], dtype=np.int64)


def spread(values: Sequence[float]) -> Dict[str, Optional[float]]:
    """mean, sd (of a sample; None for one value), min and max."""
    array = np.array(values, dtype=np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "min": float(array.min()), "max": float(array.max())}


def _draws(generator: np.random.Generator, U: int, replications: int) -> Iterator[np.ndarray]:
    """(draws, U) places of drawn utterances, ``replications`` draws in all, some at once."""
    size = max(1, _AT_ONCE // max(U, 1))
    for done in range(0, replications, size):
        yield generator.integers(U, size=(min(size, replications - done), U))


def _two_sided(not_better: int, not_worse: int, replications: int) -> float:
    return min(1.0, 2 * (min(not_better, not_worse) + 1) / (replications + 1))


def _words(recognitions: Sequence[Recognition]) -> Tuple[List, List]:
    return [list(item.ref) for item in recognitions], [list(item.hyp) for item in recognitions]

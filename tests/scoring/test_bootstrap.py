"""The bootstrap against plain loops and against what it gave before; over seeds, on one it is kaldialign's."""

import random

import numpy as np
import pytest
from sclite_cases import utterances

from rnnt_kd.scoring.bootstrap import (
    clustered_comparison,
    confidence_interval,
    errors_by_utterance,
    mean_interval,
    one_seed_p_value,
    paired_p_value,
    spread,
    too_few,
)
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import align, count, count_all


def noisy(seed, rate, size=150):
    """References of 1 to 6 words, of which about ``rate`` are wrong."""
    generator = random.Random(0)
    refs = [[generator.choice("abcdef") for _ in range(generator.randint(1, 6))] for _ in range(size)]
    generator = random.Random(seed)
    hyps = [["x" if generator.random() < rate else word for word in ref] for ref in refs]
    return [Recognition(f"u{i:03d}", tuple(r), tuple(h)) for i, (r, h) in enumerate(zip(refs, hyps, strict=True))]


def test_figures_do_not_change_from_version_to_version():
    """To the bit: nobody's p-value changes with an update."""
    items, other = noisy(1, 0.3), noisy(4, 0.26)
    assert confidence_interval(items) == (26.867697152191216, 35.2801661247194)
    assert one_seed_p_value(other, items) == 0.1663833616638336
    generator = np.random.default_rng(2)
    errors, baseline = ({seed: generator.poisson(1.0, 300) for seed in (1, 2, 3)} for _ in range(2))
    found = [paired_p_value(errors, baseline, over=over) for over in ("utterances", "both")]
    assert found == [0.24197580241975802, 0.36376362363763626]
    generator = np.random.default_rng(7)
    groups = [list(generator.normal(0.1, 0.05, size=u % 4)) for u in range(60)]
    assert mean_interval(groups) == [0.08343699220226883, 0.10038871413596534]


def test_interval_is_that_of_a_plain_bootstrap_and_repeats_itself():
    items = noisy(1, 0.2)
    counted = [count(align(item.ref, item.hyp)) for item in items]
    generator = random.Random(5)
    rates = []
    for _ in range(3000):
        drawn = generator.choices(counted, k=len(counted))
        rates.append(100 * sum(c.errors for c in drawn) / sum(c.words for c in drawn))
    mean = sum(rates) / len(rates)
    spread = 1.96 * (sum((rate - mean) ** 2 for rate in rates) / len(rates)) ** 0.5
    low, high = confidence_interval(items)
    assert (low, high) == pytest.approx((mean - spread, mean + spread), abs=0.25)
    assert low < count_all(items).wer < high
    assert confidence_interval(items) == (low, high) != confidence_interval(items, seed=1)


def test_interval_stays_above_zero_and_is_none_where_draws_have_no_word():
    assert confidence_interval(utterances(*[("a b", "a b")] * 19, ("a", "b")))[0] == 0.0
    assert confidence_interval(utterances(("a", "b"), *[("", "c")] * 19)) is None
    assert confidence_interval(utterances(*[("a", "a")] * 20)) == (0.0, 0.0)


@pytest.mark.parametrize("size, few", [(1, "1 utterance"), (2, "2 utterances"), (19, "19 utterances"), (20, "")])
def test_too_few_utterances_have_neither_interval_nor_p_value(size, few):
    items, other = noisy(1, 0.3, size), noisy(2, 0.1, size)
    errors, groups = {1: errors_by_utterance(items)}, [[0.1, 0.2]] * size + [[]] * 9
    found = [confidence_interval(items), one_seed_p_value(items, other), paired_p_value(errors, errors)]
    found.append(mean_interval(groups))
    assert too_few(size) == few and {value is None for value in found} == {bool(few)}
    assert too_few(20, {"anna"}) == "one speaker" and not too_few(20, {"anna", "bert"})


def of_one_seed(system, baseline):
    return paired_p_value({1: errors_by_utterance(system)}, {1: errors_by_utterance(baseline)})


@pytest.mark.parametrize("p_value", [one_seed_p_value, of_one_seed])
def test_p_value_is_two_sided_paired_repeatable_and_never_zero(p_value):
    base, better, alike = noisy(1, 0.3), noisy(2, 0.1), noisy(3, 0.3)
    assert p_value(base, base) == 1.0
    assert 0.0 < p_value(better, base) == p_value(base, better) < 0.001
    assert p_value(alike, base) == p_value(alike, base) > 0.05


def test_p_value_pairs_utterances():
    """One more error in each of 8 of 150 utterances: far within the interval, yet clear when paired."""
    base = noisy(1, 0.3)
    worse = [Recognition(i.utterance_id, i.ref, i.hyp + ("x",) * (n % 19 == 0)) for n, i in enumerate(base)]
    low, high = confidence_interval(base)
    assert low < count_all(worse).wer < high
    assert one_seed_p_value(worse, base) < 0.01


def loops(errors, baseline, over, replications=3000):
    """The definition, draw by draw."""
    generator = random.Random(5)
    seeds, U = sorted(errors), len(next(iter(errors.values())))
    not_better = not_worse = 0
    for _ in range(replications):
        drawn = [generator.choice(seeds) for _ in seeds] if over == "both" else seeds
        utterances = [generator.randrange(U) for _ in range(U)]
        total = sum(int(errors[seed][u]) - int(baseline[seed][u]) for seed in drawn for u in utterances)
        not_better += total >= 0
        not_worse += total <= 0
    return min(1.0, 2 * (min(not_better, not_worse) + 1) / (replications + 1))


def test_errors_by_utterance_add_up_to_the_scorers():
    items = noisy(1, 0.2)
    errors = errors_by_utterance(items)
    assert errors.sum() == count_all(items).errors > 0
    assert [int(value) for value in errors] == [count_all([item]).errors for item in items]


@pytest.mark.parametrize("rate", [0.12, 0.16, 0.2, 0.3])
def test_one_seed_is_what_kaldialign_says(rate):
    system, baseline = noisy(1, rate), noisy(2, 0.2)
    expected = one_seed_p_value(system, baseline)
    errors, others = {7: errors_by_utterance(system)}, {7: errors_by_utterance(baseline)}
    for over in ("utterances", "both"):  # with one seed there is none to draw
        p = paired_p_value(errors, others, over=over)
        sigma = max(1e-3, (expected * (2 - expected) / 10000) ** 0.5)
        assert p == pytest.approx(expected, abs=4 * sigma)  # of both


@pytest.mark.parametrize("over", ["utterances", "both"])
@pytest.mark.parametrize("shift", [0, 3, 10])
def test_several_seeds_are_what_plain_loops_say(over, shift):
    generator = np.random.default_rng(shift)
    errors = {seed: generator.poisson(1.0, 50) for seed in (1, 2, 3)}
    baseline = {seed: generator.poisson(1.0 + 0.02 * shift, 50) for seed in (1, 2, 3)}
    p, expected = paired_p_value(errors, baseline, over=over), loops(errors, baseline, over)
    assert p == pytest.approx(expected, abs=5 * max(1e-3, (expected * (2 - expected) / 3000) ** 0.5))


def test_chunks_do_not_change_what_is_drawn_in_the_long_run(monkeypatch):
    generator = np.random.default_rng(1)
    first, second = ({seed: generator.poisson(1.0, 40) for seed in (1, 2)} for _ in range(2))
    whole = paired_p_value(first, second)
    monkeypatch.setattr("rnnt_kd.scoring.bootstrap._AT_ONCE", 40 * 7)
    assert paired_p_value(first, second) == pytest.approx(whole, abs=0.05)


def test_spread_is_that_of_a_sample():
    expected = {"mean": 7 / 3, "sd": 1.5275252, "min": 1.0, "max": 4.0}
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(expected)
    assert spread([5.0]) == {"mean": 5.0, "sd": None, "min": 5.0, "max": 5.0}


def folds_of(generator, shift, seeds=(3, 2), speakers=(6, 5)):
    """(errors, baseline) of two folds: each (K, S), with a part that seeds share and one that speakers share."""
    pair = []
    for more in (shift, 0.0):
        pair.append([
            generator.poisson(8.0 + more, size=(k, s)) + generator.integers(0, 4, size=(k, 1)) for k, s in zip(seeds, speakers)
        ])  # fmt: skip
    return pair


def clustered_loops(system, baseline, draw_seeds, replications):
    """The definition, draw by draw, in plain lists and fractions of a mean."""
    generator = random.Random(3)
    places = [(fold, s) for fold, errors in enumerate(system) for s in range(errors.shape[1])]
    changes, not_better, not_worse = [], 0, 0
    for _ in range(replications):
        seeds = [range(len(fold)) for fold in system]
        if draw_seeds:
            seeds = [[generator.randrange(len(fold)) for _ in range(len(fold) - 1)] for fold in system]
        own = other = 0.0
        for fold, s in [generator.choice(places) for _ in places]:
            own += sum(int(system[fold][k][s]) for k in seeds[fold]) / len(seeds[fold])
            other += sum(int(baseline[fold][k][s]) for k in seeds[fold]) / len(seeds[fold])
        not_better += own >= other - 1e-9
        not_worse += own <= other + 1e-9
        changes.append(100 * (own - other) / other)
    p = min(1.0, 2 * (min(not_better, not_worse) + 1) / (replications + 1))
    return p, np.percentile(changes, [2.5, 97.5]), np.std(changes)


@pytest.mark.parametrize("draw_seeds", [False, True])
@pytest.mark.parametrize("shift", [0.0, -1.0, 3.0])
def test_folds_are_what_plain_loops_say(draw_seeds, shift):
    system, baseline = folds_of(np.random.default_rng(4), shift)
    found = clustered_comparison(system, baseline, draw_seeds=draw_seeds)
    p, (low, high), sd = clustered_loops(system, baseline, draw_seeds, 3000)
    assert found.p_value == pytest.approx(p, abs=5 * max(1e-3, (p * (2 - p) / 3000) ** 0.5))
    assert found.ci95 == pytest.approx((low, high), abs=0.3 * sd)
    assert found.seen_with_80 == pytest.approx(2.80159 * sd, rel=0.08)
    means = [sum(fold.sum() / len(fold) for fold in given) for given in (system, baseline)]
    assert found.change == pytest.approx(100 * (means[0] / means[1] - 1))


def test_two_seeds_show_the_whole_variance_of_their_mean():
    """Known: one fold, errors that differ between seeds alone.  The variance of a mean of two is half of a sample's."""
    baseline = [np.full((2, 10), 100)]
    system = [np.stack([np.full(10, 90), np.full(10, 104)])]
    found = clustered_comparison(system, baseline, draw_seeds=True, replications=20000)
    sample_variance = ((90 - 97) ** 2 + (104 - 97) ** 2) / (2 - 1)
    assert found.seen_with_80 == pytest.approx(2.80159 * (sample_variance / 2) ** 0.5, rel=0.02)
    assert found.change == pytest.approx(-3.0) and found.p_value > 0.9  # one seed better, one worse
    alone = clustered_comparison(system, baseline, draw_seeds=False)
    assert alone.seen_with_80 == pytest.approx(0.0, abs=1e-9) and alone.p_value < 0.001


def test_speakers_are_drawn_whole():
    """All of the difference is one speaker's: utterances would say it is clear, speakers do not."""
    baseline = [np.full((1, 12), 10)]
    system = [np.array([[4] + [10] * 11])]
    found = clustered_comparison(system, baseline, draw_seeds=False)
    left_out = (1 - 1 / 12) ** 12  # of the draws
    assert found.p_value == pytest.approx(2 * left_out, abs=0.03)


def test_folds_are_compared_only_where_there_is_something_to_draw():
    one_seed, two = [np.ones((1, 5), int)], [np.ones((2, 5), int)]
    assert clustered_comparison(one_seed, one_seed, draw_seeds=True) is None
    assert clustered_comparison([*two, *one_seed], [*two, *one_seed], draw_seeds=True) is None
    assert clustered_comparison([np.ones((2, 1), int)], [np.ones((2, 1), int)], draw_seeds=True) is None
    assert clustered_comparison(two, [np.zeros((2, 5), int)], draw_seeds=False) is None
    same = clustered_comparison(two, two, draw_seeds=True)
    assert (same.p_value, same.change, same.ci95) == (1.0, 0.0, (0.0, 0.0))
    system, baseline = folds_of(np.random.default_rng(9), 1.0)
    again = [clustered_comparison(system, baseline, draw_seeds=True) for _ in range(2)]
    back = clustered_comparison(baseline, system, draw_seeds=True)
    assert again[0] == again[1] and back.p_value == again[0].p_value

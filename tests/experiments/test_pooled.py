"""Pooled significance: on one seed it is kaldialign's, on several that of plain loops."""

import random

import numpy as np
import pytest

from rnnt_kd.experiments.pooled import errors_by_utterance, paired_p_value, spread
from rnnt_kd.scoring import significance
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import count_all


def recognised(seed, utterances=60, error_rate=0.2):
    generator = random.Random(seed)
    items = []
    for index in range(utterances):
        ref = [random.Random(index).choice("abcdefgh") for _ in range(3 + index % 5)]
        hyp = [generator.choice("xyz") if generator.random() < error_rate else word for word in ref]
        items.append(Recognition(f"u{index:03d}", tuple(ref), tuple(hyp)))
    return items


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


def test_errors_are_those_of_the_scorer():
    items = recognised(1)
    errors = errors_by_utterance(items)
    assert errors.sum() == count_all(items).errors > 0
    assert [int(value) for value in errors] == [count_all([item]).errors for item in items]


@pytest.mark.parametrize("rate", [0.12, 0.16, 0.2, 0.3])
def test_one_seed_is_what_kaldialign_says(rate):
    system, baseline = recognised(1, error_rate=rate), recognised(2)
    expected = significance.paired_p_value(system, baseline)
    errors, others = {7: errors_by_utterance(system)}, {7: errors_by_utterance(baseline)}
    for over in ("utterances", "both"):  # with one seed there is none to draw
        p = paired_p_value(errors, others, over=over)
        assert p == pytest.approx(
            expected, abs=4 * max(1e-3, (expected * (2 - expected) / 10000) ** 0.5)
        )  # 4 sigma of both


@pytest.mark.parametrize("over", ["utterances", "both"])
@pytest.mark.parametrize("shift", [0, 3, 10])
def test_several_seeds_are_what_plain_loops_say(over, shift):
    generator = np.random.default_rng(shift)
    errors = {seed: generator.poisson(1.0, 50) for seed in (1, 2, 3)}
    baseline = {seed: generator.poisson(1.0 + 0.02 * shift, 50) for seed in (1, 2, 3)}
    p, expected = paired_p_value(errors, baseline, over=over), loops(errors, baseline, over)
    assert p == pytest.approx(expected, abs=5 * max(1e-3, (expected * (2 - expected) / 3000) ** 0.5))


def test_seeds_that_disagree_count_only_when_seeds_are_drawn():
    """One seed much better, two a little worse: sure of these systems, unsure of systems like these."""
    baseline = {seed: np.full(200, 2) for seed in (1, 2, 3)}
    errors = {
        1: np.full(200, 1),
        2: baseline[2] + (np.arange(200) % 4 == 0),
        3: baseline[3] + (np.arange(200) % 4 == 0),
    }
    assert paired_p_value(errors, baseline) < 0.001
    assert paired_p_value(errors, baseline, over="both") > 0.2  # 8 in 27 draws lack seed 1


def test_it_is_two_sided_repeatable_and_never_zero():
    better, baseline = {1: np.zeros(30, int)}, {1: np.ones(30, int)}
    assert 0 < paired_p_value(better, baseline) == paired_p_value(baseline, better) < 0.001
    assert paired_p_value(baseline, baseline) == 1.0
    generator = np.random.default_rng(0)
    first, second = ({seed: generator.poisson(1.0, 40) for seed in (1, 2)} for _ in range(2))
    assert paired_p_value(first, second, seed=3) == paired_p_value(first, second, seed=3)


def test_chunks_do_not_change_what_is_drawn_in_the_long_run(monkeypatch):
    generator = np.random.default_rng(1)
    first, second = ({seed: generator.poisson(1.0, 40) for seed in (1, 2)} for _ in range(2))
    whole = paired_p_value(first, second)
    monkeypatch.setattr("rnnt_kd.experiments.pooled._CHUNK", 40 * 7)
    assert paired_p_value(first, second) == pytest.approx(whole, abs=0.05)


def test_spread_is_that_of_a_sample():
    assert spread([1.0, 2.0, 4.0]) == {
        "mean": pytest.approx(7 / 3),
        "sd": pytest.approx(1.5275252),
        "min": 1.0,
        "max": 4.0,
    }
    assert spread([5.0]) == {"mean": 5.0, "sd": None, "min": 5.0, "max": 5.0}

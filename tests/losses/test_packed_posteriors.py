"""Two float16 numbers a node: the error that the module states, and what cannot be stored exactly."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnt_kd.losses.node_scores import NodeScores
from rnnt_kd.losses.packed_posteriors import LARGEST, pack, unpack

ROUNDING = 2.0**-11  # of float16, relative
TINY = 2.0**-25  # of float16 where it has no exponent left, absolute
many = settings(max_examples=200)


def posteriors(blank: float, label: float, rest: float) -> NodeScores:
    """(1,) each, float64, from three un-normalised logarithms."""
    logs = torch.tensor([[blank, label, rest]], dtype=torch.float64).log_softmax(dim=1)
    return NodeScores(*logs.unbind(dim=1))


def odds(scores: NodeScores):
    """The two numbers, in float64, by their definition."""
    log_blank, log_label, log_rest = scores
    return log_blank - torch.logaddexp(log_label, log_rest), log_label - log_rest


@many
@given(*(st.floats(-400.0, 400.0) for _ in range(3)))
def test_error_of_each_logarithm(blank, label, rest):
    """log p(blank) by 2^-11 of the first number, the others by 2^-11 of both; plus float32's own rounding."""
    true = posteriors(blank, label, rest)
    first, second = (float(x.abs()) for x in odds(true))
    found = unpack(pack(NodeScores(*(x.float() for x in true))))
    for name, allowed in (("log_blank", first), ("log_label", first + second), ("log_rest", first + second)):
        right, ours = float(getattr(true, name)), float(getattr(found, name))
        of_float32 = 4 * 2.0**-23 * (abs(right) + first + second + 1)
        assert abs(ours - right) <= ROUNDING * allowed + 2 * TINY + of_float32, (name, ours, right)


@many
@given(st.floats(-30.0, -5.0), st.floats(-3.0, 3.0))
def test_small_posteriors_keep_their_digits(rest, between):
    """A rest of 1e-3 to 1e-13 beside blank and label: a relative error of 2 percent, where 1 - p - q has none right.

    Of float16 log-probabilities of blank and label, the rest could not be told from 0 below 1e-3.
    """
    true = posteriors(0.0, between, rest)
    found = unpack(pack(NodeScores(*(x.float() for x in true))))
    assert math.isclose(math.exp(found.log_rest), math.exp(true.log_rest), rel_tol=0.02)


@many
@given(*(st.floats(-6e4, 6e4) for _ in range(2)))
def test_three_posteriors_of_any_two_numbers_sum_to_one(first, second):
    scores = unpack(torch.tensor([[first, second]]).to(torch.float16))
    assert all(score.dtype == torch.float32 for score in scores)
    assert all(bool((score <= 0).all()) and bool(torch.isfinite(score).all()) for score in scores)
    assert abs(sum(float(score.exp()) for score in scores) - 1.0) < 1e-6


@pytest.mark.parametrize("scores, expected", [
    ((math.log(0.25), -1e30, math.log(0.75)), (0.25, 0.0, 0.75)),  # no symbol arc leaves
    ((math.log(0.25), math.log(0.75), -1e30), (0.25, 0.75, 0.0)),  # no rest
    ((0.0, -1e30, -1e30), (1.0, 0.0, 0.0)),  # neither
    ((0.0, float("-inf"), float("-inf")), (1.0, 0.0, 0.0)),
    ((-1e30, 0.0, -1e30), (0.0, 1.0, 0.0)),
    ((float("-inf"), -1e30, 0.0), (0.0, 0.0, 1.0)),
])  # fmt: skip
def test_empty_classes(scores, expected):
    packed = pack(NodeScores(*(torch.tensor([score]) for score in scores)))
    assert packed.shape == (1, 2) and packed.dtype == torch.float16
    assert bool((packed.abs() <= LARGEST).all()) and torch.isfinite(packed).all()
    found = unpack(packed)
    assert all(torch.isfinite(score).all() for score in found)
    torch.testing.assert_close(torch.cat(found).exp(), torch.tensor(expected), rtol=1e-3, atol=1e-9)


def test_what_is_no_number_stays_none():
    """So that a broken teacher shows, instead of becoming even odds."""
    nan = torch.tensor([float("nan")])
    scores = unpack(pack(NodeScores(nan, nan, nan)))
    assert all(torch.isnan(score).all() for score in scores)


def test_packing_again_changes_a_last_digit_at_most():
    """Both numbers of usual size; in nine of ten no bit at all."""
    generator = torch.Generator().manual_seed(0)
    packed = (torch.rand(1000, 2, generator=generator) * 30 - 15).to(torch.float16)
    assert (pack(unpack(packed)).float() - packed.float()).abs().max() <= 2**-7  # a last digit at 8 to 16
    assert (pack(unpack(packed)) == packed).float().mean() > 0.9

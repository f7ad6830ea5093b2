"""Recognisers in turns, and the rows that come of their times."""

import numpy as np
import pytest

from rnnt_kd.benchmark.decoder_rows import HEADER, LOOP, OURS, SHERPA, decoder_rows, decoder_table, goal_lines
from rnnt_kd.benchmark.decoders import Pass, Turns, make_batches, time_in_turns
from rnnt_kd.data.speech import Speech


def speech(*lengths):
    return [Speech(f"u{n}", "a b", "s", np.zeros(length, np.float32)) for n, length in enumerate(lengths)]


def test_batches_hold_every_utterance_once_and_those_of_like_length_together():
    batches = make_batches(speech(5, 1, 4, 2, 3), 2)
    assert [[len(item.samples) for item in batch] for batch in batches] == [[1, 2], [3, 4], [5]]
    assert [len(batch) for batch in make_batches(speech(5, 1, 4), 1)] == [1, 1, 1]


def test_everybody_has_a_turn_on_every_batch_each_time_another_first():
    calls = []

    def decoder(name, **parts):
        def decode(batch):
            calls.append((name, len(batch)))
            return Pass([f"{name} {item.id}" for item in batch], float(len(calls)), **parts)

        return decode

    ticks = []
    batches = make_batches(speech(1, 2, 3), 2)
    found = time_in_turns(
        [decoder("x", encoder_search=2.0, search=1.0), decoder("y")], batches, 2, lambda: ticks.append(1)
    )
    assert len(ticks) == 6 and len(calls) == 12
    assert [name for name, _ in calls] == ["y", "x", "x", "y", "x", "y", "y", "x", "y", "x", "x", "y"]
    assert found[0].texts == {"u0": "x u0", "u1": "x u1", "u2": "x u2"}
    assert found[0].seconds["whole"] == [[5.0, 10.0], [8.0, 11.0]]  # the first round is not on the clock
    assert found[0].seconds["search"] == [[1.0, 1.0], [1.0, 1.0]] and found[1].seconds["search"] == [[], []]


def turns(texts, whole, encoder_search=((), ()), search=((), ())):
    seconds = {"whole": whole, "encoder_search": encoder_search, "search": search}
    seconds = {part: [list(batch) for batch in value] for part, value in seconds.items()}
    return Turns(dict(zip(("u0", "u1"), texts)), seconds)


@pytest.fixture
def rows():
    """Two batches, three rounds."""
    ours = turns(["a b", "c"], ((3, 4, 8), (1, 1, 1)), ((2, 3, 7), (1, 1, 1)), ((1, 2, 6), (0.5, 0.5, 0.5)))
    loop = turns(["a b", "c"], ((9, 9, 9), (2, 2, 2)), ((8, 8, 8), (2, 2, 2)), ((6, 12, 6), (2, 3, 4)))
    sherpa = turns(["a x", ""], ((6, 4, 4), (3, 3, 3)))
    keys = [("greedy_search", OURS), ("greedy_search", LOOP), ("greedy_search", SHERPA), ("other_search", OURS)]
    return decoder_rows("small", 16, keys, [ours, loop, sherpa, ours], {"u0": "a b", "u1": "c d"}, seconds=10.0)


def test_real_time_factors_and_ratios(rows):
    ours, loop, sherpa, other = rows
    assert (ours["search_rtf"], ours["search_rtf_low"], ours["search_rtf_high"]) == (0.25, 0.15, 0.65)
    assert (ours["encoder_search_rtf"], ours["whole_rtf"], ours["rounds"]) == (0.4, 0.5, 3)
    assert ours["loop_ratio"] == 6.0  # the median of 6, 6, 1, 4, 6, 8
    assert ours["sherpa_ratio"] == 2.5  # of 2, 1, 0.5, 3, 3, 3
    assert loop["loop_ratio"] == 1.0 and sherpa["sherpa_ratio"] == 1.0
    assert sherpa["search_rtf"] is None and sherpa["loop_ratio"] is None and sherpa["whole_rtf"] == 0.7
    assert other["loop_ratio"] is None and other["sherpa_ratio"] is None


def test_words_are_counted_and_compared_with_ours(rows):
    ours, _, sherpa, _ = rows
    assert (ours["wer"], ours["words"], ours["ins"], ours["del"], ours["sub"]) == (25.0, 4, 0, 1, 0)
    assert (sherpa["wer"], sherpa["del"], sherpa["sub"]) == (75.0, 2, 1)
    assert [row["other_words"] for row in rows] == [0, 0, 2, 0]


def test_the_goal_is_told_for_batch_16_and_greedy_search_only(rows):
    (line,) = goal_lines(rows)
    assert "small, batch 16" in line and "at least 5 x" in line and "6.0 x, reached" in line
    assert "NOT reached" in goal_lines([{**rows[0], "loop_ratio": 4.9}])[0]
    assert goal_lines([{**rows[0], "batch": 1}, rows[1], {**rows[0], "loop_ratio": None}]) == []


def test_tables(rows):
    text, markdown = decoder_table(rows), decoder_table(rows, markdown=True).splitlines()
    assert "0.25000  0.15000..0.65000" in text and text.count("\n") == 4
    assert len(markdown) == 6 and all(line.count("|") == len(HEADER) + 1 for line in markdown)
    assert "| - | - | - | 0.70000 | - | 1.00 | 75.00 | 0 | 2 | 1 | 2 |" in markdown[4]

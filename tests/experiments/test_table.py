"""The table of one seed: whose p it is, and the spread between seeds beside it."""

import json
from collections import defaultdict
from statistics import fmean, stdev

import pytest

from rnnt_kd.experiments.table import known_spread, markdown


def row(**values):
    """A row of a table, as far as it is printed."""
    return {**defaultdict(lambda: None), **dict.fromkeys(
        "characters delay_ms delay_ci95_ms too_few params nonzero_params sparsity_measured wer wer_sd ci95 ins_mean del_mean "
        "sub_mean baseline relative_change p_value p_value_seeds train_seconds rtf words".split()
    ), "system": "half", "test_set": "test", "search": "greedy_search", "token_bonus": "", "unfinished": {}, "compared_seeds": [1], **values}  # fmt: skip


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_one_seed_has_a_p_of_two_trainings_and_the_known_spread_beside_it():
    one = row(seeds=[1], seeds_wanted=[1], wer=20.0, ci95=[18.0, 22.0], p_value=0.0123, words=773, relative_change=-5.0)
    text = markdown([one], "A table", by_seed=0.06)
    head, _, found = cells(text)
    assert head[13:15] == ["p (these two trainings)", "other seeds"] and found[13:15] == ["0.0123", "+- 1.20"]
    assert "p (these two trainings): two-sided" in text and "differs between them on this corpus" in text
    unknown = markdown([one], "A table")
    assert cells(unknown)[2][14] == "-" and "not known yet" in unknown
    several = row(**{**one, "seeds": [1, 2], "seeds_wanted": [1, 2], "wer_sd": 1.0, "wer_min": 19.0, "wer_max": 21.0})
    assert cells(markdown([several], "A table"))[0][13:15] == ["p (these trainings)", "p (seeds too)"]


def test_the_known_spread_is_the_root_mean_square_over_systems_with_several_seeds(tmp_path):
    rates = {"half": [10.0, 12.0, 14.0], "half_kd": [9.0, 9.5], "teacher": [8.0], "still": [0.0, 0.0]}
    rows = [{"system": name, "test_set": "test", "wer": wer} for name, found in rates.items() for wer in found]
    rows += [{"system": name, "test_set": "noise", "wer": None} for name in rates]  # without a word there is no rate
    (tmp_path / "results.json").write_text(json.dumps(rows))
    shares = [stdev(rates[name]) / fmean(rates[name]) for name in ("half", "half_kd")]
    assert known_spread(tmp_path / "results.json") == pytest.approx(fmean(share**2 for share in shares) ** 0.5)


@pytest.mark.parametrize("content", [None, "[]", "{", "[3]", '[{"wer": null}]', '[{"wer": 3.0}]'])
def test_a_spread_that_is_not_known_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert known_spread(tmp_path / "results.json") is None

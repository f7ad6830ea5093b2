"""Counts and reports against a plain Levenshtein table that keeps every optimal split."""

import random
import re

import kaldialign
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.error_report import format_errors
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.results import describe, kaldi_line, score
from rnnt_kd.scoring.significance import confidence_interval, paired_p_value
from rnnt_kd.scoring.word_errors import GAP, align, count, count_all, count_by_speaker

words = st.lists(st.sampled_from(["a", "b", "c", "*", "->", "ß", "日本"]), max_size=8)


def optimal_splits(ref, hyp):
    """All (ins, del, sub) with the least sum, by Wagner & Fischer's table, sets in its cells."""
    row = [{(j, 0, 0)} for j in range(len(hyp) + 1)]
    for i, r in enumerate(ref, 1):
        new = [{(0, i, 0)}]
        for j, h in enumerate(hyp, 1):
            options = {(a, b, c + (r != h)) for a, b, c in row[j - 1]}
            options |= {(a, b + 1, c) for a, b, c in row[j]} | {(a + 1, b, c) for a, b, c in new[j - 1]}
            least = min(map(sum, options))
            new.append({option for option in options if sum(option) == least})
        row = new
    return row[-1]


def utterances(*pairs):
    return [Recognition(f"u{i:03d}", tuple(r.split()), tuple(h.split())) for i, (r, h) in enumerate(pairs)]


@given(ref=words, hyp=words)
def test_counts_are_an_optimal_split(ref, hyp):
    counts = count(align(ref, hyp))
    assert (counts.ins, counts.dels, counts.subs) in optimal_splits(ref, hyp)
    assert counts.words == len(ref) and counts.correct == len(ref) - counts.dels - counts.subs
    distance = kaldialign.edit_distance(ref, hyp)
    assert (counts.errors, counts.words) == (distance["total"], distance["ref_len"])


@given(ref=words, hyp=words)
def test_alignment_spells_both_sides(ref, hyp):
    alignment = align(ref, hyp)
    assert [r for r, _ in alignment if r != GAP] == ref
    assert [h for _, h in alignment if h != GAP] == hyp
    assert (GAP, GAP) not in alignment


def test_totals_and_kaldi_line():
    items = utterances(("a b c d", "a x c"), ("", "q"), ("ü ö", "ü ö"), ("z", ""))
    total = count_all(items)
    assert (total.words, total.ins, total.dels, total.subs, total.utterances) == (7, 1, 2, 1, 4)
    figures = {"wer": 100 * 4786 / 52576, "errors": 4786, "words": 52576, "ins": 708, "del": 464, "sub": 3614}
    assert kaldi_line(figures) == "%WER 9.10 [ 4786 / 52576, 708 ins, 464 del, 3614 sub ]"
    assert kaldi_line(score(items, utt2spk={})) == "%WER 57.14 [ 4 / 7, 1 ins, 2 del, 1 sub ]"


def test_speakers_sum_up_to_the_total():
    items = utterances(("a b", "a"), ("c", "d"), ("", "e"), ("f", "f"))
    table = count_by_speaker(items, {"u000": "s2", "u001": "s1", "u002": "s0", "u003": "s1"})
    assert list(table) == ["s0", "s1", "s2"]
    assert sum(counts.errors for counts in table.values()) == count_all(items).errors
    assert (table["s1"].utterances, table["s1"].wer) == (2, 50.0)
    with pytest.raises(UserError, match='no speaker for "u001"'):
        count_by_speaker(items, {"u000": "s2"})


def test_error_report_in_icefalls_form():
    text = format_errors(utterances(("a b c d", "a x c"), ("b y", "x y"), ("e", "e f g"), ("* h", "h"), ("", "")))
    assert text == (
        "%WER = 66.67\n"
        "Errors: 2 insertions, 2 deletions, 2 substitutions, over 9 reference words (5 correct)\n"
        "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, "
        "PER-WORD STATS:\n\n"
        "PER-UTT DETAILS: corr or (ref->hyp)  \n"
        "u000:\ta (b->x) c (d->*)\nu001:\t(b->x) y\nu002:\te (*->f g)\nu003:\t(*->*) h\nu004:\t\n\n"
        "SUBSTITUTIONS: count ref -> hyp\n2   b -> x\n\n"
        "DELETIONS: count ref\n1   *\n1   d\n\n"
        "INSERTIONS: count hyp\n1   f\n1   g\n\n"
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp\n"
        "b   0 2 2 0\nx   0 2 0 2\n*   0 1 1 0\nd   0 1 1 0\nf   0 1 0 1\ng   0 1 0 1\n"
        "a   1 0 1 1\nc   1 0 1 1\ne   1 0 1 1\nh   1 0 1 1\ny   1 0 1 1\n"
    )


@given(items=st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_error_report_agrees_with_itself(items):
    items = [Recognition(f"u{i}", tuple(r), tuple(h)) for i, (r, h) in enumerate(items)]
    titles = r"(?m)^(?:PER-UTT DETAILS|SUBSTITUTIONS|DELETIONS|INSERTIONS|PER-WORD STATS):.*\n"
    header, _, subs, dels, ins, by_word = re.split(titles, format_errors(items))
    found = [int(number) for number in re.findall(r"\d+", header.split("Errors:")[1])]
    sums = [sum(int(line.split()[0]) for line in block.splitlines() if line) for block in (ins, dels, subs)]
    assert sums == found[:3]
    rows = [[int(n) for n in line.split()[-4:]] for line in by_word.splitlines()]
    assert sum(row[2] for row in rows) == sum(len(item.ref) for item in items) == found[3]
    assert sum(row[3] for row in rows) == sum(len(item.hyp) for item in items)


def noisy(seed, rate, size=150):
    """References of 1 to 6 words, of which about ``rate`` are wrong."""
    generator = random.Random(0)
    refs = [[generator.choice("abcdef") for _ in range(generator.randint(1, 6))] for _ in range(size)]
    generator = random.Random(seed)
    hyps = [["x" if generator.random() < rate else word for word in ref] for ref in refs]
    return [Recognition(f"u{i:03d}", tuple(r), tuple(h)) for i, (r, h) in enumerate(zip(refs, hyps, strict=True))]


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
    assert confidence_interval(utterances(*[("a b", "a b")] * 9, ("a", "b")))[0] == 0.0
    assert confidence_interval(utterances(("a", "b"), ("", "c"))) is None
    assert confidence_interval(utterances(("a", "a"))) == (0.0, 0.0)


def test_p_value_is_two_sided_paired_and_never_zero():
    base, better, alike = noisy(1, 0.3), noisy(2, 0.1), noisy(3, 0.3)
    assert paired_p_value(base, base) == 1.0
    assert 0.0 < paired_p_value(better, base) < 0.001
    assert paired_p_value(base, better) == paired_p_value(better, base)
    assert paired_p_value(alike, base) > 0.05
    assert paired_p_value(alike, base) == paired_p_value(alike, base)


def test_p_value_is_that_of_a_plain_paired_bootstrap():
    base, other = noisy(1, 0.3), noisy(4, 0.26)
    errors = [[count(align(item.ref, item.hyp)).errors for item in items] for items in (base, other)]
    gains = [ours - theirs for ours, theirs in zip(*errors, strict=True)]
    generator = random.Random(5)
    sums = [sum(generator.choices(gains, k=len(gains))) for _ in range(4000)]
    expected = 2 * min(sum(s <= 0 for s in sums), sum(s >= 0 for s in sums)) / len(sums)
    assert 0.01 < expected < 0.9
    assert paired_p_value(other, base) == pytest.approx(expected, abs=0.04)


def test_p_value_pairs_utterances():
    """One more error in each of 8 of 150 utterances: far within the interval, yet clear when paired."""
    base = noisy(1, 0.3)
    worse = [Recognition(i.utterance_id, i.ref, i.hyp + ("x",) * (n % 19 == 0)) for n, i in enumerate(base)]
    low, high = confidence_interval(base)
    assert low < count_all(worse).wer < high
    assert paired_p_value(worse, base) < 0.01


def test_description_tells_what_is_compared_and_left_out():
    base, better = noisy(1, 0.3), noisy(2, 0.1)
    speakers = {item.utterance_id: "s" + item.utterance_id[-1] for item in base}
    result = {**score(better, utt2spk=speakers, baseline=base), "baseline": "exp/twin", "not_decoded": ["bad-1"]}
    lines = describe(result).splitlines()
    assert lines[0].startswith("%WER ") and lines[1].startswith("95 % interval")
    assert "exp/twin" in lines[2] and "p = 0.000" in lines[2] and "1 utterances left out: bad-1" in lines[3]
    table = [line.split() for line in lines[5:]]
    assert table[0] == ["speaker", "utterances", "words", "%WER", "ins", "del", "sub"] and len(table) == 11
    assert sum(int(row[2]) for row in table[1:]) == result["words"]

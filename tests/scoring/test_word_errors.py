"""Counts and reports: alignments of both sides with as few errors as kaldialign finds."""

import re

import kaldialign
from command_cases import told
from hypothesis import given
from hypothesis import strategies as st
from sclite_cases import noisy_recognitions, utterances

from rnnt_kd.scoring.error_report import format_errors
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.results import describe, kaldi_line, score
from rnnt_kd.scoring.word_errors import GAP, align, count, count_all, count_by_speaker

words = st.lists(st.sampled_from(["a", "b", "c", "*", "->", "ß", "日本"]), max_size=8)


@given(ref=words, hyp=words)
def test_counts_add_up_to_the_edit_distance(ref, hyp):
    counts = count(align(ref, hyp))
    assert counts.ins + counts.dels + counts.subs == counts.errors
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
    assert 'no speaker for "u001"' in told(count_by_speaker, items, {"u000": "s2"})


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
    header, _, subs, dels, ins, by_word = re.split(titles, format_errors(items).partition("\n%CER")[0])
    found = [int(number) for number in re.findall(r"\d+", header.split("Errors:")[1])]
    sums = [sum(int(line.split()[0]) for line in block.splitlines() if line) for block in (ins, dels, subs)]
    assert sums == found[:3]
    rows = [[int(n) for n in line.split()[-4:]] for line in by_word.splitlines()]
    assert sum(row[2] for row in rows) == sum(len(item.ref) for item in items) == found[3]
    assert sum(row[3] for row in rows) == sum(len(item.hyp) for item in items)


def test_description_tells_what_is_compared_and_left_out():
    better = noisy_recognitions(1, 6, 6)
    base = [Recognition(item.utterance_id, item.ref, ()) for item in better]
    speakers = {item.utterance_id: "s" + item.utterance_id[-1] for item in base}
    result = {**score(better, utt2spk=speakers, baseline=base), "baseline": "exp/twin", "not_decoded": ["bad-1"]}
    lines = describe(result).splitlines()
    assert lines[0].startswith("%WER ") and lines[1].startswith("95 % interval")
    assert "exp/twin" in lines[2] and "p = 0.000" in lines[2] and "1 utterances left out: bad-1" in lines[3]
    table = [line.strip("| ").split() for line in lines[5:]]
    assert table[0][::2] == ["speaker", "utterances", "words", "%WER", "ins", "del", "sub"] and len(table) == 12
    assert sum(int(row[4]) for row in table[2:]) == result["words"]

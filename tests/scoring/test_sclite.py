"""Our counts are sclite's (Debian package sctk), on generated texts and on every trained system that is there.

Another place for trained systems: RNNT_KD_EXP=exp/an4:exp/an4_seed2 pytest tests/scoring/test_sclite.py
"""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sclite_cases import noisy_recognitions, scores, trained, write_sides

from rnnt_kd.scoring.alternatives import Alternative
from rnnt_kd.scoring.ctm import write_ctm
from rnnt_kd.scoring.recognitions import Recognition, read_recogs
from rnnt_kd.scoring.trn import escaped, unescaped
from rnnt_kd.scoring.word_errors import align, count


def our_scores(items):
    counts = {item.utterance_id: count(align(item.ref, item.hyp)) for item in items}
    return {f"s-{key}": (c.correct, c.subs, c.dels, c.ins) for key, c in counts.items()}


@pytest.mark.parametrize("vocabulary, longest", [(3, 8), (8, 12), (40, 20)])
def test_counts_of_every_utterance_are_sclites(tmp_path, vocabulary, longest):
    items = noisy_recognitions(vocabulary, vocabulary, longest)
    ref, hyp = write_sides(tmp_path, items)
    assert scores(ref, "trn", hyp, "trn") == our_scores(items)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1), max_size=4))
@example(["%", "%28", "%%28", "(", "{A}", "@", "A*", "\\", "<ALT>"])
def test_what_is_escaped_is_read_again_and_has_nothing_that_sclite_knows(words):
    assert [unescaped(escaped(word)) for word in words] == words
    assert not re.search(r"[{}();\\]|(^| )@( |$)|\*( |$)|(?i:(^| )<alt)", " ".join(map(escaped, words)))


@pytest.mark.parametrize("word", ["YES", "100%", "%hesitation", "A/B", "a@b", "<unk>", "[noise]", "don't", "B-", "零"])
def test_other_words_stay_as_they_are(word):
    assert escaped(word) == word


MEANT = [*"{}()/@;*\\%<>&#~`^+=?!|[]:,.'\"_-$", "(UH)", "{ A / B }", "A;B;C", ";;", "B*", "100%", "%28", "%%28", "%hesitation",
         "<ALT_BEGIN>", "<alt>", "<unk>", "-B", "B-", "A/B", "B)", "(B", "零(一)"]  # fmt: skip


@pytest.mark.parametrize("word", MEANT)
def test_words_that_sclite_reads_otherwise_are_escaped_and_counted_as_ours(tmp_path, word):
    item = Recognition("u0", ("A", *word.split(), "B", "C"), ("A", "X", *word.split(), "C"))
    other = Recognition("u1", ("A", "B", "C"), ("A", *word.split(), "C"))
    alone = Recognition("u2", tuple(word.split()), tuple(word.split()))
    ref, hyp = write_sides(tmp_path, [item, other, alone])
    assert scores(ref, "trn", hyp, "trn") == our_scores([item, other, alone])
    words = [
        Alternative("", 0, (), (), (), i.hyp, *(tuple(range(k, k + len(i.hyp))) for k in (0, 1, 0)))
        for i in (item, other)
    ]
    write_ctm(tmp_path / "hyp.ctm", [("u0", words[0]), ("u1", words[1])])
    stm = [f"{i.utterance_id} 1 s 0.0 99.0 {' '.join(map(escaped, i.ref))}\n" for i in (item, other)]
    (tmp_path / "ref.stm").write_text("".join(stm))
    by_ctm = scores(tmp_path / "ref.stm", "stm", tmp_path / "hyp.ctm", "ctm")
    assert [sum(c) for c in zip(*by_ctm.values())] == [sum(c) for c in zip(*our_scores([item, other]).values())]


def test_among_alignments_with_equally_many_errors_the_most_words_are_right(tmp_path):
    """Two substitutions and an insertion, or one deletion and two insertions around a word that is right."""
    item = Recognition("u0", ("rubout", "w", "twenty", "six"), ("rubout", "l", "e", "w", "six"))
    assert our_scores([item]) == {"s-u0": (3, 0, 1, 2)}
    assert scores(*[x for path in write_sides(tmp_path, [item]) for x in (path, "trn")]) == our_scores([item])


def test_counts_of_trained_systems_are_sclites(tmp_path):
    differ, compared = [], 0
    for path in trained("recogs-*.txt"):
        items = read_recogs(path)
        ref, hyp = write_sides(tmp_path, items)
        compared += 1
        if scores(ref, "trn", hyp, "trn") != our_scores(items):
            differ.append(str(path))
    assert compared and not differ, f"{len(differ)} of {compared} differ: {differ}"


def test_files_of_trained_systems_have_as_many_errors(tmp_path):
    """The trn and ctm files that decode wrote, with references of our own for the ctm."""
    differ, compared = [], 0
    for hyp in trained("hyp-*.trn"):
        test_set = hyp.name[len("hyp-") : -len(".trn")]
        items = read_recogs(hyp.with_name(f"recogs-{test_set}.txt"))
        stm = [f"{item.utterance_id} 1 {item.utterance_id} 0.0 999.0 {' '.join(item.ref)}\n" for item in items]
        (tmp_path / "ref.stm").write_text("".join(sorted(stm)))
        by_trn = scores(hyp.with_name(f"ref-{test_set}.trn"), "trn", hyp, "trn")
        by_ctm = scores(tmp_path / "ref.stm", "stm", hyp.with_name(f"{test_set}.ctm"), "ctm")
        ours = [sum(column) for column in zip(*our_scores(items).values())]
        compared += 1
        if not ours == [sum(column) for column in zip(*by_trn.values())] == [sum(c) for c in zip(*by_ctm.values())]:
            differ.append(str(hyp))
    assert compared and not differ, f"{len(differ)} of {compared} differ: {differ}"

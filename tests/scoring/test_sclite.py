"""Our counts are sclite's (Debian package sctk), on generated texts and on every trained system that is there.

Another place for trained systems: RNNT_KD_EXP=exp/an4:exp/an4_seed2 pytest tests/scoring/test_sclite.py
"""

import pytest
from sclite_cases import noisy_recognitions, scores, trained, write_sides

from rnnt_kd.scoring.recognitions import Recognition, read_recogs
from rnnt_kd.scoring.word_errors import align, count


def our_scores(items):
    counts = {item.utterance_id: count(align(item.ref, item.hyp)) for item in items}
    return {f"s-{key}": (c.correct, c.subs, c.dels, c.ins) for key, c in counts.items()}


@pytest.mark.parametrize("vocabulary, longest", [(3, 8), (8, 12), (40, 20)])
def test_counts_of_every_utterance_are_sclites(tmp_path, vocabulary, longest):
    items = noisy_recognitions(vocabulary, vocabulary, longest)
    ref, hyp = write_sides(tmp_path, items)
    assert scores(ref, "trn", hyp, "trn") == our_scores(items)


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

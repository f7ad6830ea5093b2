"""Confidences: a share of the n-best list and a choice among labels, each against plain loops."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from search_cases import BLANK, UNK, Model, encoder_output, log_probs

from rnnt_kd.decoding.confidence import label_posteriors, list_posteriors
from rnnt_kd.decoding.modified_beam_search import search


@given(seed=st.integers(0, 999), lens=st.lists(st.integers(0, 7), min_size=1, max_size=4), unk=st.booleans())
@example(seed=0, lens=[0, 0], unk=True)
def test_label_posteriors_leave_out_what_is_not_said(seed, lens, unk):
    model, unk_id = Model(seed), UNK if unk else None
    frames, lengths = encoder_output(seed, lens)
    hypotheses = [found[-1] for found in search(model, frames, lengths, beam=4, unk_id=unk_id, nbest=4)]
    found = label_posteriors(model, frames, hypotheses, blank_id=BLANK, unk_id=unk_id)
    for row, (item, posteriors) in enumerate(zip(hypotheses, found, strict=True)):
        assert len(posteriors) == len(item.tokens) and all(value <= 1.0 + 1e-9 for value in posteriors)
        for place, (token, frame) in enumerate(zip(item.tokens, item.timestamps)):
            values = log_probs(model, frames[row, frame], item.tokens[:place])
            said = [math.exp(v) for label, v in enumerate(values) if label not in (BLANK, unk_id)]
            assert posteriors[place] == pytest.approx(math.exp(values[token]) / math.fsum(said))


def test_words_share_the_list_by_probability():
    texts = ["A B C".split(), "A C".split(), "A X C".split(), []]
    scores = [math.log(weight) for weight in (0.4, 0.2, 0.1, 0.1)]
    found = list_posteriors(texts, scores, 3)
    assert len(found) == 3
    assert found[0] == pytest.approx([7 / 8, 4 / 8, 7 / 8])  # B only in the first; the empty one has none of them
    assert found[1] == pytest.approx([7 / 8, 7 / 8])
    assert found[2] == pytest.approx([7 / 8, 1 / 8, 7 / 8])


def test_the_same_words_by_other_tokens_count_together():
    assert list_posteriors([["A"], ["A"], ["B"]], [0.0, 0.0, math.log(2.0)], 1) == [[pytest.approx(0.5)]]


def test_a_list_of_one_is_sure_and_impossible_hypotheses_do_not_count():
    assert list_posteriors([["A", "B"]], [-1e5], 1) == [[1.0, 1.0]]
    assert list_posteriors([["A"], ["B"]], [-5.0, -math.inf], 2) == [[1.0], [0.0]]

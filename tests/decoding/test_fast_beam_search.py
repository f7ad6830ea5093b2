"""k2's search against plain loops over every path, and against modified beam search."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import BLANK, UNK, Model, encoder_output, log_probs

from rnnt_kd.decoding import modified_beam_search
from rnnt_kd.decoding.graphs import Graph, any_tokens
from rnnt_kd.errors import UserError

k2 = pytest.importorskip("k2", reason="k2 is not in this environment")

from rnnt_kd.decoding import fast_beam_search  # noqa: E402

WIDE = 64  # more contexts than there are below
# Words [2], [3 2] and [3 3 2]; state 1: after 3, state 2: after 3 3.
WORDS = Graph(*torch.tensor([[0, 0, 2], [0, 1, 3], [1, 0, 2], [1, 2, 3], [2, 0, 2]]).T)


def every_text(model, frames, graph, unk_id=UNK):
    """What the lattice of all paths holds, by plain loops: tokens -> (log of the sum, best path's log-probability, its
    times, its tokens' log-probabilities).  Paths that end in state 0; all of them where none does."""
    arcs = list(zip(*(column.tolist() for column in (graph.sources, graph.destinations, graph.labels))))
    reached = {((), 0): (0.0, 0.0, (), ())}
    for time, frame in enumerate(frames):
        before, reached = reached, {}
        for (tokens, state), (total, best, times, parts) in before.items():
            values = log_probs(model, frame, list(tokens))
            stay = values[BLANK]
            if unk_id is not None:
                stay = math.log(math.exp(stay) + math.exp(values[unk_id]))
            steps = [((tokens, state), stay, times, parts)]
            for source, end, token in arcs:
                if source == state:
                    value = values[token]
                    steps.append((((*tokens, token), end), value, (*times, time), (*parts, value)))
            for key, value, new_times, new_parts in steps:
                add_path(reached, key, (total + value, best + value, new_times, new_parts))
    at_end = any(state == 0 for _, state in reached)
    found = {}
    for (tokens, state), path in reached.items():
        if state == 0 or not at_end:
            add_path(found, tokens, path)
    return found


def add_path(table, key, path):
    """Sums are added up, and the better best path stays."""
    if key in table:
        one, other = sorted((table[key], path), key=lambda p: -p[1])
        path = (math.log(math.exp(one[0]) + math.exp(other[0])), *one[1:])
    table[key] = path


def rank(score, tokens, context_size):
    return score / (len(tokens) + context_size)


def assert_in(hypothesis, texts):
    total, _, times, parts = texts[tuple(hypothesis.tokens)]
    dropped = math.exp(-fast_beam_search.LOG_BEAM - total)  # of its probability, paths that are improbable
    assert hypothesis.score == pytest.approx(total, abs=1e-5 + 50 * dropped)
    assert hypothesis.timestamps == list(times)
    assert hypothesis.token_log_probs == pytest.approx(parts, abs=1e-5)


def search(model, frames, lens, **options):
    return fast_beam_search.search(model, frames, lens, **{"beam": WIDE, **options})


lengths = st.lists(st.integers(0, 5), min_size=1, max_size=4)


@pytest.mark.parametrize("graph", [None, WORDS], ids=["trivial", "words"])
@pytest.mark.parametrize("context_size", [1, 2, 3])
@given(seed=st.integers(0, 999), lens=lengths, peak=st.sampled_from([0.1, 1.0, 3.0]), unk_id=st.sampled_from([1, None]))
@settings(max_examples=10)
def test_scores_times_and_order_are_those_of_all_paths(graph, context_size, seed, lens, peak, unk_id):
    model = Model(seed, vocab_size=4, peak=peak, context_size=context_size)
    frames, frame_lens = encoder_output(seed, lens)
    found = search(model, frames, frame_lens, nbest=1000, graph=graph, unk_id=unk_id)
    assert len(found) == len(lens)
    for hypotheses, utterance, length in zip(found, frames, lens):
        texts = every_text(model, utterance[:length], graph or any_tokens(4, BLANK, unk_id), unk_id)
        for hypothesis in hypotheses:
            assert_in(hypothesis, texts)
        assert len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses) <= len(texts)
        ranks = [rank(h.score, h.tokens, context_size) for h in hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        most_probable_path = max(texts, key=lambda tokens: texts[tokens][1])
        assert list(most_probable_path) in [h.tokens for h in hypotheses]
        best = max(texts, key=lambda tokens: rank(texts[tokens][0], tokens, context_size))
        if peak == 3.0:
            assert hypotheses[0].tokens == list(best)


@pytest.mark.parametrize("seed", range(8))
def test_wide_modified_beam_search_finds_the_same(seed):
    model = Model(seed, vocab_size=5, peak=2.0)
    frames, lens = encoder_output(seed, [4, 3])
    ours = modified_beam_search.search(model, frames, lens, beam=5**4, nbest=2)
    for theirs, expected in zip(search(model, frames, lens, nbest=2), ours, strict=True):
        assert [h.tokens for h in theirs] == [h.tokens for h in expected]
        assert [h.score for h in theirs] == pytest.approx([h.score for h in expected], abs=1e-5)


def test_half_a_word_where_no_path_ends():
    model = Model(0, vocab_size=4)
    with torch.no_grad():  # 3 is always said where it may be, and 2 never: 3 3 is no word
        model.joiner.output_linear.bias[3] += 200.0
        model.joiner.output_linear.bias[2] -= 200.0
    frames, lens = encoder_output(0, [4, 3])
    assert [best.tokens for (best,) in search(model, frames, lens, graph=WORDS)] == [[3, 3]] * 2


@given(seed=st.integers(0, 999), lens=lengths, beam=st.integers(1, 6))
def test_batch_equals_alone(seed, lens, beam):
    model = Model(seed)
    frames, frame_lens = encoder_output(seed, lens)
    together = search(model, frames, frame_lens, beam=beam, nbest=3)
    for i, length in enumerate(lens):
        alone = search(model, frames[i : i + 1, :length], frame_lens[i : i + 1], beam=beam, nbest=3)[0]
        assert [(h.tokens, h.timestamps) for h in alone] == [(h.tokens, h.timestamps) for h in together[i]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[i]], abs=1e-5)


def test_nbest_1_is_the_first_of_nbest_5():
    model = Model(2)
    frames, lens = encoder_output(2, [8, 7, 5])
    many = search(model, frames, lens, beam=4, nbest=5)
    assert min(len(some) for some in many) > 1
    assert search(model, frames, lens, beam=4) == [some[:1] for some in many]


@pytest.mark.parametrize("options, message", [
    ({"beam": 0}, "beam: 0"),
    ({"nbest": 0}, "nbest: 0"),
    ({"blank_id": 5}, "blank_id: 5 in fast_beam_search; expected 0"),
    ({"scorers": [object()]}, "fast_beam_search: .*take modified_beam_search"),
    ({"graph": any_tokens(9, 0, 1)}, "graph: token 8; expected tokens below 6"),
])  # fmt: skip
def test_options_that_it_cannot_honour_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        search(Model(0), *encoder_output(0, [3]), **options)

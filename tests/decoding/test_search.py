"""Both searches against a second implementation: one utterance at a time, plain Python, lists and dicts."""

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import BLANK, UNK, Model, assert_equal, assert_plain_python_finds, encoder_output, reference_search

from rnnt_kd.decoding import compiled, greedy_search, modified_beam_search
from rnnt_kd.decoding.graphs import any_tokens
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.decoding.options import SearchOptions
from rnnt_kd.errors import UserError

SEARCHES = {"greedy_search": greedy_search.search, "modified_beam_search": modified_beam_search.search}
ALL = [*SEARCHES, "fast_beam_search"]


@pytest.fixture(scope="module", autouse=True, params=["compiled", "tensors"])
def way(request):
    """All promises hold both ways; without numba, and where the case is not plain, tensors it is."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tensors":
            patch.setattr(compiled, "loop_for", lambda *_: None)
        yield request.param


lengths = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def search_of(name):
    if name == "fast_beam_search":
        pytest.importorskip("k2", reason="k2 is not in this environment")
    return get_search(name)


@given(
    seed=st.integers(0, 999),
    lens=lengths,
    beam=st.integers(1, 8),  # of a vocabulary of 6
    nbest=st.integers(1, 9),
    peak=st.sampled_from([0.1, 0.3, 1.0, 20.0]),
)
def test_beam_search_equals_plain_python(seed, lens, beam, nbest, peak):
    model = Model(seed, peak=peak)
    encoder_out, encoder_out_lens = encoder_output(seed, lens)
    found = modified_beam_search.search(
        model, encoder_out, encoder_out_lens, beam=beam, blank_id=BLANK, unk_id=UNK, nbest=nbest
    )
    assert_plain_python_finds(found, model, encoder_out, lens, beam, nbest)
    for hypotheses in found:
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == len(hypotheses)


@pytest.mark.parametrize("seed", range(6))
def test_long_utterances_equal_plain_python(seed):
    """Hypotheses that were long are dropped, shorter ones grow: nothing of the old may be left in their places."""
    model = Model(seed, vocab_size=4, peak=0.3)
    with torch.no_grad():
        model.joiner.output_linear.bias[BLANK] += 0.5
    encoder_out, lens = encoder_output(seed, [70, 16, 17, 43])
    found = modified_beam_search.search(model, encoder_out, lens, beam=6, nbest=6)
    assert_plain_python_finds(found, model, encoder_out, lens, 6)


@pytest.mark.parametrize("blank_bias", [-100.0, 0.0, 100.0], ids=["a token a frame", "some", "all blank"])
@pytest.mark.parametrize("vocab_size, dim, peak", [(3, 1, 1.0), (70, 19, 1.0), (131, 36, 1e4)])
def test_sizes_of_all_kinds_equal_plain_python(blank_bias, vocab_size, dim, peak):
    """More than a vector of numbers and a rest, one number, and probabilities that are 0 in float64."""
    model = Model(5, vocab_size, peak, dim=dim)
    with torch.no_grad():
        model.joiner.output_linear.bias[[BLANK, UNK]] += blank_bias * peak
    frames, lens = encoder_output(5, [25, 0, 1, 8], dim)
    for name, beam in (("greedy_search", 1), ("modified_beam_search", 4)):
        found = SEARCHES[name](model, frames, lens, beam=beam, nbest=beam)
        assert_plain_python_finds(found, model, frames, lens, beam)
        if blank_bias:
            assert [len(best.tokens) for best, *_ in found] == ([0] * 4 if blank_bias > 0 else lens.tolist())


def test_contexts_that_share_a_place_are_told_apart(monkeypatch):
    monkeypatch.setattr(compiled, "CONTEXTS", 3)
    model = Model(6, vocab_size=40)
    frames, lens = encoder_output(6, [30, 30])
    found = modified_beam_search.search(model, frames, lens, beam=5, nbest=5)
    assert_plain_python_finds(found, model, frames, lens, 5)


@given(seed=st.integers(0, 999), lens=lengths, beam=st.integers(1, 6), vocab_size=st.integers(3, 60))
def test_float32_says_what_float64_says(seed, lens, beam, vocab_size):
    model = Model(seed, vocab_size, peak=2.0, dim=16)
    frames, lens = encoder_output(seed, lens, 16)
    for search in SEARCHES.values():
        expected = search(model.double(), frames, lens, beam=beam)
        found = search(model.float(), frames.float(), lens, beam=beam)
        for (ours,), (theirs,) in zip(found, expected, strict=True):
            assert (ours.tokens, ours.timestamps) == (theirs.tokens, theirs.timestamps)
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
            assert ours.token_log_probs == pytest.approx(theirs.token_log_probs, abs=1e-4)


def test_the_plain_case_is_compiled_and_others_are_tensors(way, monkeypatch):
    def is_compiled(model=None, frames=None, **options):
        frames = encoder_output(0, [1])[0] if frames is None else frames
        return compiled.loop_for(model or Model(0), frames, SearchOptions(**options)) is not None

    if way == "tensors":
        return
    assert is_compiled() and is_compiled(Model(0).float(), torch.zeros(1, 1, 8))
    assert not is_compiled(scorers=[object()])
    assert not is_compiled(Model(0).bfloat16(), torch.zeros(1, 1, 8).bfloat16())
    assert not is_compiled(frames=torch.zeros(1, 1, 8, device="meta"))
    for part, other in (("joiner", "Joiner"), ("predictor", "Predictor")):
        model = Model(0)
        getattr(model, part).__class__ = type(other, (type(getattr(model, part)),), {})  # may do anything
        assert not is_compiled(model)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "MOST_WEIGHTS", 47)  # 6 x 8 it is
        assert not is_compiled()
    monkeypatch.setitem(sys.modules, "numba", None)  # import numba fails
    monkeypatch.delitem(sys.modules, "rnnt_kd.decoding.compiled_loop", raising=False)
    assert not is_compiled()
    assert greedy_search.search(Model(0), *encoder_output(0, [3]))


@given(seed=st.integers(0, 999), lens=lengths, unk_id=st.sampled_from([UNK, None]), context_size=st.integers(1, 3))
def test_greedy_is_beam_1_and_equals_plain_python(seed, lens, unk_id, context_size):
    model = Model(seed, context_size=context_size)
    encoder_out, encoder_out_lens = encoder_output(seed, lens)
    greedy = greedy_search.search(model, encoder_out, encoder_out_lens, blank_id=BLANK, unk_id=unk_id)
    beam_1 = modified_beam_search.search(model, encoder_out, encoder_out_lens, beam=1, blank_id=BLANK, unk_id=unk_id)
    for ours, theirs in zip(greedy, beam_1, strict=True):
        assert_equal(ours, [tuple(vars(hypothesis).values()) for hypothesis in theirs])
    assert_plain_python_finds(greedy, model, encoder_out, lens, 1, unk_id=unk_id)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("blank_id", [0, 5])
def test_any_blank_id(name, blank_id):
    model = Model(7, blank_id=blank_id)
    encoder_out, lens = encoder_output(7, [6, 4])
    beam = 1 if name == "greedy_search" else 3
    found = SEARCHES[name](model, encoder_out, lens, beam=beam, blank_id=blank_id, unk_id=None)
    assert_plain_python_finds(found, model, encoder_out, lens, beam, 1, blank_id=blank_id, unk_id=None)
    assert not any(blank_id in hypotheses[0].tokens for hypotheses in found)


@pytest.mark.parametrize("name", ALL)
def test_no_frames_give_an_empty_hypothesis(name):
    model = Model(0)
    empty = search_of(name)(model, *encoder_output(0, [0, 0]))
    assert [[(h.tokens, h.timestamps, h.score) for h in hypotheses] for hypotheses in empty] == [[([], [], 0.0)]] * 2
    assert search_of(name)(model, torch.zeros(0, 5, 8, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)) == []


@pytest.mark.parametrize("name", SEARCHES)
def test_unk_with_the_highest_probability_is_not_emitted_and_leaves_the_context(name):
    model = Model(3)
    with torch.no_grad():
        model.joiner.output_linear.bias[UNK] += 100.0
    encoder_out, lens = encoder_output(3, [7])
    found = SEARCHES[name](model, encoder_out, lens, beam=4)[0][0]
    assert found.tokens == [] and found.score == pytest.approx(0.0, abs=1e-6)
    as_token = SEARCHES[name](model, encoder_out, lens, beam=4, unk_id=None)[0][0]
    assert as_token.tokens == [UNK] * 7 and as_token.timestamps == list(range(7))


@pytest.mark.parametrize("name", SEARCHES)
def test_among_equals_the_lowest_token_wins(name):
    model = Model(0, peak=0.0)  # every token has the same logit ...
    with torch.no_grad():
        model.joiner.output_linear.bias.fill_(-9.0)
        model.joiner.output_linear.bias[[3, 5]] = 9.0  # ... but two, which are the best
    frames, lens = encoder_output(0, [1, 3])
    found = SEARCHES[name](model, frames, lens, beam=4)
    assert found[0][0].tokens == [3]
    assert found == SEARCHES[name](model, frames, lens, beam=4)
    beam = 1 if name == "greedy_search" else 4
    assert_equal(found[1], reference_search(model, frames[1], beam)[:1])


@pytest.mark.parametrize("name", ALL)
def test_float32_models_work_and_no_gradient_is_kept(name):
    model = Model(2).float()
    frames, lens = encoder_output(2, [6, 3])
    found = search_of(name)(model, frames.float().requires_grad_(), lens, beam=4)
    expected = search_of(name)(model.double(), frames, lens, beam=4)
    assert [best.tokens for (best,) in found] == [best.tokens for (best,) in expected]


@pytest.mark.parametrize("name", ALL)
def test_nan_is_an_error_that_names_the_utterance(name):
    model = Model(2)
    frames, lens = encoder_output(2, [6, 3])
    padded = frames.clone()
    padded[1, 3:] = math.nan
    assert search_of(name)(model, padded, lens, beam=4) == search_of(name)(model, frames, lens, beam=4)
    frames[1, 1] = math.nan
    with pytest.raises(UserError, match="utterance 1 of the batch.*not a number"):
        search_of(name)(model, frames, lens, beam=4)


def test_a_wide_beam_gives_every_hypothesis_once():
    model = Model(4, vocab_size=3)
    frames, lens = encoder_output(4, [3])
    found = modified_beam_search.search(model, frames, lens, beam=3**3, unk_id=None, nbest=100)[0]
    assert sorted(h.tokens for h in found) == sorted(
        list(tokens) for length in range(4) for tokens in itertools.product([1, 2], repeat=length)
    )
    assert math.fsum(math.exp(h.score) for h in found) == pytest.approx(1.0)  # nothing is lost, nothing counts twice


def test_greedy_search_takes_no_scorers():
    with pytest.raises(UserError, match="greedy_search: follows one path.*take modified_beam_search"):
        greedy_search.search(Model(0), *encoder_output(0, [1]), scorers=[object()])


def test_without_k2_there_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)  # import k2 fails
    monkeypatch.delitem(sys.modules, "rnnt_kd.decoding.fast_beam_search", raising=False)
    assert "fast_beam_search" in available_searches()
    with pytest.raises(UserError, match="'fast_beam_search' cannot be used here.*k2.*take modified_beam_search"):
        get_search("fast_beam_search")


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(
    "options, message",
    [({"beam": 0}, "beam: 0"), ({"nbest": 0}, "nbest: 0"), ({"graph": any_tokens(6, 0, 1)}, "take fast_beam_search")],
)
def test_options_that_a_search_cannot_honour_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        SEARCHES[name](Model(0), *encoder_output(0, [1]), **options)

"""Language models in beam search, against back-off and beam search in plain Python."""

import random

import pytest
import torch
from arpa_cases import PlainArpa, make_arpa
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import Model, assert_equal, assert_plain_python_finds, encoder_output, reference_search

from rnnt_kd.decoding.modified_beam_search import search
from rnnt_kd.decoding.ngram_lm import read_arpa
from rnnt_kd.decoding.scorers import TokenBonus, lm_scorer
from rnnt_kd.errors import UserError

pytest.importorskip("kaldilm", reason="kaldilm, which reads ARPA files, is not installed")

PIECES = ["<blk>", "<unk>", "▁", "▁A", "▁AB", "A", "B", "BA", "▁C"]  # spells what is not in the model, too
WORDS = ["A", "AB", "ABBA", "BA", "C", "CABÄ"]  # the last one cannot be spelled


def sentences(seed, words, size=30):
    generator = random.Random(seed)
    return [generator.choices(words, range(len(words), 0, -1), k=generator.randint(0, 5)) for _ in range(size)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(words or pieces, order, unknown word) -> the file's plain reading and ours."""
    folder, found = tmp_path_factory.mktemp("arpa"), {}
    for number, (kind, words) in enumerate([("words", WORDS), ("pieces", PIECES[2:])]):
        for order, unknown in [(1, "<unk>"), (2, None), (3, "<unk>"), (3, "<UNK>")]:
            path = make_arpa(folder / f"{kind}{order}{unknown}.arpa", sentences(number, words), order, unknown)
            found[kind, order, unknown] = PlainArpa(path, unknown), read_arpa(path)
    return found


CASES = [(1, "<unk>"), (2, None), (3, "<unk>"), (3, "<UNK>")]


@pytest.mark.parametrize("order, unknown", CASES)
def test_lookup_is_back_off(models, order, unknown):
    plain, lm = models["words", order, unknown]
    labels = {**lm.words, "</s>": lm.end}
    assert lm.words.keys() == plain.words == set(WORDS)
    generator = random.Random(1)
    for _ in range(100):
        words = generator.choices([*WORDS, "OTHER"], k=generator.randint(0, 6))
        state = torch.tensor(lm.start)
        for word in words:
            _, state = lm.lookup(state, torch.tensor(labels.get(word, lm.unknown)))
        for word in ("A", "CABÄ", "OTHER", "</s>"):
            found, _ = lm.lookup(state, torch.tensor(labels.get(word, lm.unknown)))
            assert float(found) == pytest.approx(plain.log_prob(("<s>", *words), word), abs=1e-4), (words, word)


@pytest.mark.parametrize("order, unknown", CASES)
def test_probabilities_add_up(models, order, unknown):
    _, lm = models["words", order, unknown]
    labels = torch.tensor([*lm.words.values(), lm.end, *([lm.unknown] if unknown else [])])
    states = torch.arange(len(lm.shorter))
    sums = lm.lookup(states[:, None], labels)[0].exp().sum(1)
    reachable = lm.keys.div(lm.labels, rounding_mode="floor").unique()
    assert sums[reachable[reachable != lm.lookup(states, torch.tensor(lm.end))[1][0]]] == pytest.approx(1.0, abs=1e-4)


def words_of(tokens):
    """Finished words, and the letters of the one that is being spelled (None: none is)."""
    text = "".join(PIECES[token] for token in tokens).replace("▁", " ")
    words = text.split()
    return (words[:-1], words[-1]) if words and not text.endswith(" ") else (words, None)


def word_bonus(plain, scale):
    def bonus(tokens, ended):
        words, letters = words_of(tokens)
        if ended:
            return scale * plain.sentence([*words, *([letters] if letters else [])], True)
        total = plain.sentence(words, False)
        if letters:
            likely = [word for word in plain.words if word.startswith(letters) and set(word) <= set("ABC")]
            total += max(plain.log_prob((), word) for word in [*likely, "OTHER"])
        return scale * total

    return bonus


def token_bonus(plain, scale):
    return lambda tokens, ended: scale * plain.sentence([PIECES[token] for token in tokens], ended)


BONUS = {"words": word_bonus, "pieces": token_bonus}


@pytest.mark.parametrize("kind", ["words", "pieces"])
@pytest.mark.parametrize("order, unknown", CASES)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 999),
    lens=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    beam=st.integers(1, 5),
    scale=st.sampled_from([0.3, 2.0]),
)
def test_beam_search_with_a_language_model_equals_plain_python(models, kind, order, unknown, seed, lens, beam, scale):
    plain, lm = models[kind, order, unknown]
    model = Model(seed, vocab_size=len(PIECES))
    frames, lengths = encoder_output(seed, lens)
    found = search(model, frames, lengths, beam=beam, nbest=beam, scorers=[lm_scorer(lm, PIECES, scale)])
    for hypotheses, utterance, length in zip(found, frames, lens, strict=True):
        expected = reference_search(model, utterance[:length], beam, bonus=BONUS[kind](plain, scale))
        assert len(hypotheses) == len(expected)
        for ours, (tokens, times, score, _) in zip(hypotheses, expected):
            assert (ours.tokens, ours.timestamps) == (tokens, times)
            assert ours.score == pytest.approx(score, abs=1e-3)  # the file has six digits


@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_two_scorers_add_up_and_scale_0_is_none(models, kind):
    _, lm = models[kind, 3, "<unk>"]
    model = Model(5, vocab_size=len(PIECES))
    frames, lengths = encoder_output(5, [7, 4])
    half, whole = lm_scorer(lm, PIECES, 0.5), lm_scorer(lm, PIECES, 1.0)
    twice = search(model, frames, lengths, nbest=4, scorers=[half, half])
    once = search(model, frames, lengths, nbest=4, scorers=[whole])
    without = search(model, frames, lengths, nbest=4)
    assert [[h.tokens for h in found] for found in twice] == [[h.tokens for h in found] for found in once]
    assert [[h.tokens for h in found] for found in without] != [[h.tokens for h in found] for found in once]
    nothing = search(model, frames, lengths, nbest=4, scorers=[lm_scorer(lm, PIECES, 0.0)])
    for found, expected in zip(nothing, without, strict=True):
        assert_equal(found, [(h.tokens, h.timestamps, h.score, h.token_log_probs) for h in expected])


@given(seed=st.integers(0, 999), lens=st.lists(st.integers(0, 7), min_size=1, max_size=4))
def test_a_bonus_for_every_token_equals_plain_python(seed, lens):
    model = Model(seed)
    frames, lengths = encoder_output(seed, lens)
    found = search(model, frames, lengths, beam=3, nbest=3, scorers=[TokenBonus(0.7, 6)])
    assert_plain_python_finds(found, model, frames, lens, 3, bonus=lambda tokens, ended: 0.7 * len(tokens))


def test_a_word_counts_alike_however_it_is_spelled(models):
    _, lm = models["words", 3, "<unk>"]
    scorer = lm_scorer(lm, PIECES, 1.0)
    totals = []
    for tokens in (["▁AB", "BA"], ["▁A", "B", "BA"], ["▁", "A", "B", "B", "A"], ["▁AB", "B", "A"]):
        state, total = torch.tensor(scorer.start), 0.0
        for token in map(PIECES.index, tokens):
            total += float(scorer.scores(state)[token])
            state = scorer.advance(state, torch.tensor(token))
        totals.append(total + float(scorer.finals(state)))
    assert totals == pytest.approx([totals[0]] * 4)
    assert totals[0] == pytest.approx(models["words", 3, "<unk>"][0].sentence(["ABBA"], True), abs=1e-4)


def test_a_file_that_is_no_model_or_of_other_pieces_is_one_line(models, tmp_path):
    for name, content, message in [
        ("none", None, "no such file; expected an n-gram language model in ARPA format"),
        ("empty", "", "has no line .data"),
        ("cut", "\n\\data\\\nngram 1=3\n\n\\1-grams:\n-1.0\t<s>\n", "ends before .end"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{tmp_path / name}.*{message}"):
            read_arpa(tmp_path / name)
    pieces = models["pieces", 2, None][1]
    with pytest.raises(UserError, match='lm.arpa: has 1 pieces that the BPE model lacks, the first is "▁C"'):
        lm_scorer(pieces, PIECES[:-1], 1.0, "lm.arpa")
    lower = make_arpa(tmp_path / "lower.arpa", [["one", "two"]], 2)
    with pytest.raises(UserError, match='none of its 2 words can be spelled by the BPE model, such as "one"'):
        lm_scorer(read_arpa(lower), PIECES, 1.0)


def test_without_kaldilm_the_error_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as error:
        read_arpa(tmp_path / "x.arpa")
    assert error.value.name == "kaldilm"

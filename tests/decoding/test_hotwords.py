"""Hot words in beam search: every occurrence counts, what is under way is lent; against plain Python."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import Model, assert_plain_python_finds, encoder_output

from rnnt_kd.decoding import hotwords
from rnnt_kd.decoding.hotwords import HotWords, read_hotwords
from rnnt_kd.decoding.modified_beam_search import search
from rnnt_kd.errors import UserError
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

phrase_lists = st.lists(st.lists(st.integers(2, 4), min_size=1, max_size=4), min_size=1, max_size=5)


def plain_bonus(phrases, score):
    """Of a hypothesis: every occurrence of every phrase and, until it ends, the longest beginning at its end."""
    phrases = {tuple(phrase) for phrase in phrases}

    def bonus(tokens, ended):
        tokens = tuple(tokens)
        places = range(len(tokens) + 1)
        found = sum(len(p) for p in phrases for i in places if tokens[i : i + len(p)] == p)
        ends = (tokens[i:] for i in places)  # longest first
        lent = next(len(end) for end in ends if not end or any(phrase[: len(end)] == end for phrase in phrases))
        return score * (found + (0 if ended else lent))

    return bonus


@given(phrases=phrase_lists, tokens=st.lists(st.integers(2, 5), max_size=12), score=st.sampled_from([1.5, -0.5]))
def test_scores_of_any_tokens(phrases, tokens, score):
    words, bonus = HotWords([(phrase, score) for phrase in phrases], 6), plain_bonus(phrases, score)
    state = torch.tensor(words.start)
    for place, token in enumerate(tokens):
        expected = [bonus([*tokens[:place], c], False) - bonus(tokens[:place], False) for c in range(6)]
        assert words.scores(state).tolist() == pytest.approx(expected)
        state = words.advance(state, torch.tensor(token))
    assert float(words.finals(state)) == pytest.approx(bonus(tokens, True) - bonus(tokens, False))


@given(seed=st.integers(0, 999), lens=st.lists(st.integers(0, 8), min_size=1, max_size=4), phrases=phrase_lists)
def test_beam_search_equals_plain_python(seed, lens, phrases):
    model = Model(seed)
    frames, lengths = encoder_output(seed, lens)
    scorer = HotWords([(phrase, 0.7) for phrase in phrases], 6)
    found = search(model, frames, lengths, beam=3, nbest=3, scorers=[scorer])
    assert_plain_python_finds(found, model, frames, lens, 3, bonus=plain_bonus(phrases, 0.7))


def test_a_phrase_of_its_own_score_and_beginnings_that_are_shared():
    words = HotWords([([2, 3], 1.0), ([2, 4], 3.0), ([5], 10.0)], 6)
    first = words.scores(torch.tensor(0))
    assert first.tolist() == [0.0, 0.0, 3.0, 0.0, 0.0, 20.0]  # 5 is paid at once, and lent beside
    after = words.advance(torch.tensor(0), torch.tensor(2))
    assert words.scores(after).tolist() == [-3.0, -3.0, 0.0, 1.0 + 4.0, 3.0 + 6.0, -3.0 + 20.0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(train_bpe(["ONE TWO THREE", "FOUR FIVE"], 20, tmp_path_factory.mktemp("bpe") / "bpe"))


def test_the_file_is_read(tokenizer, tmp_path):
    path = tmp_path / "hot"
    path.write_text("ONE TWO\n\n  THREE :2.5\nFOUR FIVE :-1  \n")
    phrases = (("ONE TWO", 1.5), ("THREE", 2.5), ("FOUR FIVE", -1.0))
    assert read_hotwords(path, tokenizer, 1.5) == [(tokenizer.encode(text), score) for text, score in phrases]


def test_the_file_may_come_from_any_editor(tmp_path):
    tokenizer = Tokenizer.load(train_bpe(["ÉTÉ ONE"], 20, tmp_path / "bpe", shrink_to_fit=True))
    path = tmp_path / "hot"
    path.write_bytes("\ufeffE\u0301TE\u0301\u00a0ONE\r\nONE :2\r\n".encode())
    assert read_hotwords(path, tokenizer, 1.5) == [(tokenizer.encode("ÉTÉ ONE"), 1.5), (tokenizer.encode("ONE"), 2.0)]
    with pytest.raises(UserError, match="hot:1: the BPE model cannot spell"):
        read_hotwords(path, tokenizer, 1.5, "none")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_phrase_of_text_without_blanks_counts_wherever_it_stands(tmp_path, kind):
    texts = ["北京天气很好", "我在北京", "今天我去北京看天气", "上海"]
    tokenizer = Tokenizer.load(train_bpe(texts, 26, tmp_path / "bpe", kind, shrink_to_fit=True))
    (tmp_path / "hot").write_text("北京 :2\n")
    scorer = HotWords(read_hotwords(tmp_path / "hot", tokenizer, 1.0), tokenizer.vocab_size)
    gained = {}
    for text in texts:
        state, total = torch.tensor(scorer.start), 0.0
        for token in tokenizer.encode(text):
            total += float(scorer.scores(state)[token])
            state = scorer.advance(state, torch.tensor(token))
        gained[text] = total + float(scorer.finals(state))
    assert gained.pop("上海") == 0 and all(gain > 0 for gain in gained.values()), gained


def test_more_phrases_than_the_table_holds_are_named_before_it_is_made(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(hotwords, "_LARGEST_TABLE", 3 * tokenizer.vocab_size)
    (tmp_path / "hot").write_text("ONE TWO THREE\n")
    with pytest.raises(UserError, match="hot:1: there are too many phrases; expected at most 3 tokens"):
        read_hotwords(tmp_path / "hot", tokenizer, 1.5)


@pytest.mark.parametrize("text, message", [
    ("ONE\none\n", ':2: the BPE model cannot spell "one"'),
    ("ONE :x\n", ':1: the score is "x"; expected a number'),
    ("ONE :nan\n", ':1: the score is "nan"; expected a number'),
    ("ONE :-1e300\n", ':1: the score is "-1e300"; expected a number behind the colon, 1e+06 at most'),
    ("ONE :\n", ':1: the score is ""'),
    (" :2.0\n", ":1: no phrase"),
    ("\n\n", ": is empty"),
    (None, ": no such file"),
])  # fmt: skip
def test_user_errors_name_file_and_line(tokenizer, tmp_path, text, message):
    path = tmp_path / "hot"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{path}{message}")):
        read_hotwords(path, tokenizer, 1.5)

"""Graphs of what may be said, read arc by arc."""

import pytest
from command_cases import told

from rnnt_kd.decoding.graphs import any_tokens, words_of
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

TEXT = ["ONE TWO", "TWO TWENTY", "TWENTY TWELVE ONE", "  ", "NINE NINETY"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    return Tokenizer.load(train_bpe(TEXT, 24, folder / "bpe"))


def arcs_of(graph):
    return list(zip(graph.sources.tolist(), graph.destinations.tolist(), graph.labels.tolist()))


def accepts(graph, tokens):
    states = {0}
    for token in tokens:
        states = {end for start, end, label in arcs_of(graph) if start in states and label == token}
    return 0 in states


def test_any_tokens_but_blank_and_unk():
    assert arcs_of(any_tokens(5, 0, 1)) == [(0, 0, 2), (0, 0, 3), (0, 0, 4)]
    assert arcs_of(any_tokens(4, 2, None)) == [(0, 0, 0), (0, 0, 1), (0, 0, 3)]
    assert "no token may be said" in told(any_tokens, 2, 0, 1)


def test_sentences_of_the_texts_words_are_accepted_and_nothing_else(tokenizer):
    graph = words_of(TEXT, tokenizer)
    for sentence in (*TEXT, "TWELVE NINE NINE TWO", "NINETY", ""):
        assert accepts(graph, tokenizer.encode(sentence))
    for sentence in ("NINET", "TW", "ON E", "ONETWO", "TWENTYONE", "WO", "TWO NINET"):
        assert not accepts(graph, tokenizer.encode(sentence)), sentence


def test_words_share_their_first_tokens(tokenizer):
    graph = words_of(TEXT, tokenizer)
    spellings = {tuple(tokenizer.encode(word)) for line in TEXT for word in line.split()}
    beginnings = {tokens[:end] for tokens in spellings for end in range(len(tokens))}
    assert graph.num_states == len(beginnings)  # the empty one is the root
    assert len(arcs_of(graph)) == len(spellings) + len(beginnings) - 1
    assert arcs_of(graph) == sorted(arcs_of(graph), key=lambda arc: (arc[0], arc[2], arc[1]))


def test_words_that_cannot_be_spelled_are_left_out_and_order_does_not_matter(tokenizer):
    assert arcs_of(words_of(TEXT[::-1] * 2, tokenizer)) == arcs_of(words_of(TEXT, tokenizer))
    assert arcs_of(words_of([*TEXT, "日本 ZZZ"], tokenizer)) == arcs_of(words_of(TEXT, tokenizer))
    for text in ([], ["日本"], [" "]):
        assert "no token may be said" in told(words_of, text, tokenizer)

"""Graphs of what ``fast_beam_search`` may recognise: any tokens, or the words of some text only.

A graph is a finite-state acceptor over tokens, blank left out: state 0 is where an utterance starts and where
it may end; every arc is a token.  Of a frame's tokens a search takes those that leave the state it is in;
blank keeps the state.
"""

from dataclasses import dataclass
from typing import Iterable, List, Optional, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.trie import Trie
from rnnt_kd.errors import UserError


@dataclass(frozen=True)
class Graph:
    """(A,) int64 ``sources``, ``destinations`` and ``labels`` of the arcs, sorted by source and label.

    State 0 is the start and the end; no label is blank.
    """

    sources: Tensor
    destinations: Tensor
    labels: Tensor

    @property
    def num_states(self) -> int:
        return int(torch.cat((self.sources, self.destinations)).max()) + 1


def any_tokens(vocab_size: int, blank_id: int, unk_id: Optional[int]) -> Graph:
    """The trivial graph: one state, every token but blank and ``<unk>`` leads back to it.

    Raises:
      UserError: no token is left.
    """
    return _graph((0, 0, token) for token in range(vocab_size) if token not in (blank_id, unk_id))


def words_of(text: Iterable[str], tokenizer, *, source: object = "graph") -> Graph:
    """Words of ``text`` in any order: a tree of their tokens that they share from the front, its leaves at the root.

    An utterance that ends within a word has no path to the end; see ``fast_beam_search`` for what it gives then.

    Args:
      text:      transcripts, or words.
      tokenizer: ``Tokenizer`` of the system; words that it cannot spell are left out.
      source:    where ``text`` comes from, for the error.

    Raises:
      UserError: no word is left.
    """
    spelled = (tokenizer.encode(word) for word in sorted({word for line in text for word in line.split()}))
    return _graph(_word_arcs(tokens for tokens in spelled if tokens and tokenizer.unk_id not in tokens), source)


def _word_arcs(spellings: Iterable[List[int]]) -> Iterable[Tuple[int, int, int]]:
    beginnings: Trie[int] = Trie()
    for tokens in spellings:
        states = beginnings.add(tokens[:-1])
        yield from zip(states, [*states[1:], 0], tokens)


def _graph(arcs: Iterable[Tuple[int, int, int]], source: object = "graph") -> Graph:
    """The graph of (source, destination, label) triples; arcs that are there twice become one."""
    ordered = sorted({(source, label, destination) for source, destination, label in arcs})
    if not ordered:
        raise UserError(source, "no token may be said", "text with words of this system", "check the text")
    sources, labels, destinations = (torch.tensor(column) for column in zip(*ordered))
    return Graph(sources, destinations, labels)

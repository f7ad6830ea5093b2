"""Scorers, which add to the model's scores in beam search: an n-gram language model, a bonus for length.

A scorer sees hypotheses as states, one int64 each, so that all of a batch are scored by a few tensor operations:

    start                     the state of a hypothesis without tokens
    scores(states)            (..., C) float64: what each token would add to the score; the search leaves
                              out those that are not said
    advance(states, tokens)   (...) the states after one token each
    finals(states)            (...) float64: what the end of the utterance adds

Its sum over a hypothesis depends on the tokens alone, not on their times: merging stays right.
"""

from typing import List, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.ngram_lm import NgramLm, OnDevice
from rnnt_kd.decoding.trie import Trie
from rnnt_kd.errors import UserError
from rnnt_kd.text.tokenizer import SPACE


def lm_scorer(lm: NgramLm, pieces: Sequence[str], scale: float, name: object = "language model"):
    """The scorer for a model of words or of pieces, whichever its vocabulary shows it is.

    Args:
      pieces: C, ``Tokenizer.pieces()``; blank and ``<unk>`` first.
      scale:  of its log-probabilities.
      name:   of the file, for errors.
    Raises:
      UserError: pieces of another BPE model; no word can be spelled by these pieces.
    """
    if any(word.startswith(SPACE) for word in lm.words):
        foreign = sorted(set(lm.words) - set(pieces))
        if foreign:
            problem = f'has {len(foreign)} pieces that the BPE model lacks, the first is "{foreign[0]}"'
            raise UserError(
                name, problem, "the pieces of the system's own BPE model", "train it on that model's pieces"
            )
        return TokenLm(lm, pieces, scale)
    scorer = WordLm(lm, pieces, scale)
    if not scorer.spelled:
        problem = (
            f'none of its {len(lm.words)} words can be spelled by the BPE model, such as "{min(lm.words, default="")}"'
        )
        raise UserError(name, problem, "words as in the transcripts", "check upper and lower case")
    return scorer


class TokenBonus(OnDevice):
    """A constant for every token.

    The likeliest words of a transducer are often too few: every token costs, and blanks are cheap.  A language model
    makes that worse, as each of its factors is below 1.  A positive bonus is the counterweight.
    """

    start = 0

    def __init__(self, bonus: float, vocab_size: int):
        self._added = torch.full((vocab_size,), bonus, dtype=torch.float64)

    def scores(self, states: Tensor) -> Tensor:
        return self._added.expand(*states.shape, -1)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        return states

    def finals(self, states: Tensor) -> Tensor:
        return torch.zeros_like(states, dtype=torch.float64)


class TokenLm(OnDevice):
    """An n-gram model of pieces: every token is scored at once, the end of the utterance, too."""

    def __init__(self, lm: NgramLm, pieces: Sequence[str], scale: float):
        self._lm, self._scale, self.start = lm, scale, lm.start
        self._labels = torch.tensor([lm.words.get(piece, lm.unknown) for piece in pieces])

    def scores(self, states: Tensor) -> Tensor:
        return self._scale * self._lm.lookup(states[..., None], self._labels)[0]

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        return self._lm.lookup(states, self._labels[tokens])[1]

    def finals(self, states: Tensor) -> Tensor:
        return self._scale * self._lm.lookup(states, torch.full_like(states, self._lm.end))[0]


class WordLm(OnDevice):
    """An n-gram model of words, for hypotheses of pieces.

    The score of a word is certain when the next one begins.  Until then a hypothesis holds, on loan, the
    log-probability without history of the likeliest word that begins with its letters so far (look-ahead;
    Ortmanns et al., ICSLP 1996); what the words do not spell is the unknown word.  Whichever pieces
    spell a word, its score is the same.

    Attributes:
      spelled: words that the pieces' letters can spell.

    Nodes are the beginnings of words, the empty one first, and, last, "no word begins like this".
    A state is (state of the language model) * nodes + node.
    """

    def __init__(self, lm: NgramLm, pieces: Sequence[str], scale: float):
        self._lm, self._scale = lm, scale
        letters = set("".join(pieces[2:])) - {SPACE}
        words = {word: label for word, label in lm.words.items() if letters.issuperset(word)}
        self.spelled = len(words)
        tree: Trie[str] = Trie()
        labels = {tree.add(word)[-1]: label for word, label in words.items()}
        self._nodes = len(tree) + 1
        self._labels = torch.tensor([labels.get(node, lm.unknown) for node in range(self._nodes)])
        self._begins = torch.tensor([piece.startswith(SPACE) for piece in pieces])
        self._first, keys, nexts = _arcs(tree, pieces)
        self._C = len(pieces)
        self._keys, self._nexts = torch.tensor(keys or [-1]), torch.tensor(nexts or [0])
        self._ahead = self._look_ahead(tree)
        self.start = lm.start * self._nodes

    def scores(self, states: Tensor) -> Tensor:
        node = states % self._nodes
        finished, _ = self._finish(states)
        tokens = torch.arange(self._C, device=states.device)
        after = self._spell(node[..., None], tokens)
        added = torch.where(self._begins, finished[..., None], 0.0) + self._ahead[after]
        return self._scale * (added - self._ahead[node][..., None])

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        _, after = self._finish(states)
        history = torch.where(self._begins[tokens], after, states // self._nodes)
        return history * self._nodes + self._spell(states % self._nodes, tokens)

    def finals(self, states: Tensor) -> Tensor:
        finished, after = self._finish(states)
        ended, _ = self._lm.lookup(after, torch.full_like(after, self._lm.end))
        return self._scale * (finished + ended - self._ahead[states % self._nodes])

    def _finish(self, states: Tensor) -> Tuple[Tensor, Tensor]:
        """log p of the word that is being spelled, and the history with it; 0 and the old one where there is none."""
        history, node = states // self._nodes, states % self._nodes
        log_probs, after = self._lm.lookup(history, self._labels[node])
        return torch.where(node == 0, 0.0, log_probs), torch.where(node == 0, history, after)

    def _spell(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        nodes, tokens = torch.broadcast_tensors(nodes, tokens)
        keys = nodes * self._C + tokens
        places = torch.searchsorted(self._keys, keys.contiguous()).clamp(max=len(self._keys) - 1)
        found = torch.where(self._keys[places] == keys, self._nexts[places], self._nodes - 1)
        return torch.where(self._begins[tokens], self._first[tokens], found)

    def _look_ahead(self, tree: Trie) -> Tensor:
        """(nodes,) log-probability of the likeliest word below each node; 0 for the empty beginning."""
        shortest = torch.full((self._nodes,), self._lm.shortest)
        ahead = self._lm.lookup(shortest, self._labels)[0].tolist()  # prefixes that are no word: the unknown word's
        for node in range(len(tree) - 1, 0, -1):  # children come behind their parents
            ahead[node] = max([ahead[node], *(ahead[child] for child in tree.children[node].values())])
        return torch.tensor([0.0, *ahead[1:]], dtype=torch.float64)


def _arcs(tree: Trie[str], pieces: Sequence[str]) -> Tuple[Tensor, List[int], List[int]]:
    """Nodes that pieces lead to: those that begin a word; and of the others, from each node, by node * C + token."""
    C, nowhere = len(pieces), len(tree)
    first = torch.full((C,), nowhere)
    by_letters: Trie[str] = Trie()  # the pieces that go on with a word
    tokens = {by_letters.add(piece)[-1]: token for token, piece in enumerate(pieces) if token > 1 and piece[0] != SPACE}
    arcs: List[Tuple[int, int]] = []
    for token, piece in enumerate(pieces):
        if piece.startswith(SPACE):
            node = tree.find(piece[1:])
            first[token] = nowhere if node is None else node
    for node in range(len(tree)):
        pairs = [(node, 0)]  # a node of the words and a node of the pieces, reached by the same letters
        while pairs:
            word_node, piece_node = pairs.pop()
            if piece_node in tokens:
                arcs.append((node * C + tokens[piece_node], word_node))
            ways = tree.children[word_node]
            pairs += [(ways[x], child) for x, child in by_letters.children[piece_node].items() if x in ways]
    arcs.sort()
    return first, [key for key, _ in arcs], [node for _, node in arcs]

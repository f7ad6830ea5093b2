"""Hot words: phrases that a search is to prefer, as sherpa-onnx has them.

    TWO HUNDRED :3.5
    RUBOUT

A phrase a line, as in the transcripts; `` :score`` is that of each of its tokens, else a common one is.

In text without blanks (Chinese, say) a phrase may stand anywhere, as far as the BPE model spells it there alike.

Every occurrence of a phrase in a hypothesis adds score * tokens, occurrences that overlap too; phrases that begin alike
have the higher score there.  While a phrase is under
way, what its tokens so far are worth is lent, and taken back where it goes on otherwise: an Aho-Corasick automaton
(CACM 18(6), 1975) over tokens, as a table.  Unlike in sherpa-onnx, whose searches pick tokens first and
add the score to those that were picked, the score counts when tokens are picked: a token that the beam would drop
can be kept.
"""

import re
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.ngram_lm import OnDevice
from rnnt_kd.decoding.trie import Trie
from rnnt_kd.errors import UserError
from rnnt_kd.text.normalization import normalized
from rnnt_kd.text.scripts import is_unspaced
from rnnt_kd.text.tokenizer import SPACE
from rnnt_kd.text_files import read_text

_HIGHEST_SCORE = 1e6
_LARGEST_TABLE = 250_000_000  # numbers of 4 bytes

Phrase = Tuple[Sequence[int], float]  # tokens, score of each


def read_hotwords(path: Path, tokenizer, score: float, normalization: str = "nfc") -> List[Phrase]:
    """Read the file.

    Args:
      tokenizer: ``text.tokenizer.Tokenizer`` of the system.
      score:     of the tokens of a phrase that has none of its own.
      normalization: of the phrases; see ``text.normalization``.
    Raises:
      UserError: no such file, nothing in it, a score that is no number, a phrase that the BPE model cannot spell, more
        phrases than the table holds.
    """
    lines = read_text(path, "hot words, one phrase a line").split("\n")
    tokens_read = 0
    phrases: List[Phrase] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = re.fullmatch(r"(.*?)(?:(?:^|\s)(:)(\S*))?\s*", line)
        assert parts is not None  # any line fits
        text, marked, own = parts.groups()
        try:
            value = float(own) if marked else score
            if not abs(value) <= _HIGHEST_SCORE:  # nor NaN
                raise ValueError(own)
        except ValueError:
            expected = f"a number behind the colon, {_HIGHEST_SCORE:g} at most"
            raise UserError(f"{path}:{number}", f'the score is "{own}"', expected) from None
        text = normalized(text, normalization)
        tokens = tokenizer.encode(text)
        if not tokens or tokenizer.unk_id in tokens:
            problem = f'the BPE model cannot spell "{text[:60]}"' if tokens else "no phrase"
            raise UserError(f"{path}:{number}", problem, "words as in the transcripts", "check upper and lower case")
        ways = _ways(text, tokens, tokenizer)
        tokens_read += sum(map(len, ways))
        if tokens_read * tokenizer.vocab_size > _LARGEST_TABLE:
            most = f"at most {_LARGEST_TABLE // tokenizer.vocab_size} tokens in all phrases"
            raise UserError(f"{path}:{number}", "there are too many phrases", most, "use a language model (--lm)")
        phrases += [(spelled, value) for spelled in ways]
    if not phrases:
        raise UserError(path, "is empty", "hot words, one phrase a line")
    return phrases


def _ways(text: str, tokens: List[int], tokenizer) -> List[List[int]]:
    """How a phrase is spelled: as a word, and where text has no blanks in the middle of one, too."""
    if not is_unspaced([text]):
        return [tokens]
    pieces, (first, *rest) = tokenizer.pieces(), tokens
    if pieces[first] == SPACE:  # a boundary that is a piece of its own
        return [rest or tokens]
    if not pieces[first].startswith(SPACE):
        return [tokens]
    inside = pieces[first].removeprefix(SPACE)
    number = {piece: place for place, piece in enumerate(pieces)}
    letters = [inside] if inside in number else list(inside)
    if not {*letters} <= {*number}:
        return [tokens]
    return [tokens, [number[letter] for letter in letters] + rest]


class HotWords(OnDevice):
    """The scorer (see ``scorers.py``) of phrases; its states are the automaton's, M of them.

    Args:
      phrases:    tokens, none of them blank, and the score of each of these.
      vocab_size: C.

    The table is M * C numbers: 20 MB for a thousand phrases of ten tokens out of 500.
    """

    start = 0

    def __init__(self, phrases: Sequence[Phrase], vocab_size: int):
        tree: Trie[int] = Trie()
        gains: Dict[int, float] = {}  # of a state: the largest score of the phrases that begin with it
        ends = set()
        for tokens, score in phrases:
            _, *path = tree.add(tokens)
            gains.update((state, max(gains.get(state, score), score)) for state in path)
            ends.add(path[-1])
        worth, paid = [0.0] * len(tree), [0.0] * len(tree)  # what is lent in a state; what matches there give
        shorter = [0] * len(tree)  # the longest end of this state's tokens that is a beginning, too
        table = torch.zeros(len(tree), vocab_size, dtype=torch.int32)
        for state in tree.by_depth():
            paid[state] = (worth[state] if state in ends else 0.0) + paid[shorter[state]]
            table[state] = table[shorter[state]]
            for token, child in tree.children[state].items():
                shorter[child] = int(table[state, token]) if state else 0
                worth[child] = worth[state] + gains[child]
                table[state, token] = child
        self._table = table
        self._worth = torch.tensor(worth, dtype=torch.float64)
        self._paid = torch.tensor(paid, dtype=torch.float64)

    def scores(self, states: Tensor) -> Tensor:
        after = self._table[states].long()
        return (self._worth + self._paid)[after] - self._worth[states][..., None]

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        return self._table[states, tokens].long()

    def finals(self, states: Tensor) -> Tensor:
        return -self._worth[states]

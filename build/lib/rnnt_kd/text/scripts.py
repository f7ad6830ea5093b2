"""What the script of a text says about its words."""

import unicodedata
from functools import cache
from typing import Iterable

# The first word of a character's Unicode name, and what one such letter weighs against a blank: a word of Chinese or
# Japanese has two letters, one of Thai, Lao, Khmer or Burmese four or more.
_WEIGHTS = {"CJK": 2, "IDEOGRAPHIC": 2, "HIRAGANA": 2, "KATAKANA": 2, "THAI": 1, "LAO": 1, "KHMER": 1, "MYANMAR": 1}
_BETWEEN_BLANKS = 8  # weight of the letters between two blanks; words on their own stay below, phrases lie above


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether ``texts`` are written without blanks between words, so that characters are to be counted instead.

    True where most letters are Han, Hiragana, Katakana, Thai, Lao, Khmer or Burmese, and blanks between two of these
    stand between phrases at most: not where words or characters are set apart.
    """
    letters = weights = gaps = 0
    for text in texts:
        before = 0  # weight of the last letter of the word before
        for word in text.split():
            own = [_weight(letter) for letter in word if unicodedata.category(letter)[0] == "L" or _weight(letter)]
            letters += sum(1 if weight else -1 for weight in own)
            weights += sum(own)
            gaps += bool(before and own and own[0])
            before = own[-1] if own else 0
    return letters > 0 and weights > _BETWEEN_BLANKS * gaps


@cache
def _weight(letter: str) -> int:
    if unicodedata.category(letter)[0] not in "LN":
        return 0
    first, _, rest = unicodedata.name(letter, "").partition(" ")
    if first in ("HALFWIDTH", "FULLWIDTH"):  # forms of Katakana, and of Latin
        first = rest.partition(" ")[0]
    return _WEIGHTS.get(first.partition("-")[0], 0)

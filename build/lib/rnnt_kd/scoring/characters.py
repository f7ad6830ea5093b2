"""Characters in the place of words: %CER, for text of which nobody counts words.

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no blanks between words, and Korean has them between phrases of
several words: where most letters of the references are of these scripts, %CER stands beside %WER, whether blanks were
put between the words or not.  A character is a Unicode code point, a word of another script as many as it has letters;
blanks do not count.
"""

import unicodedata
from typing import Iterable, List, Sequence

from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.text.scripts import is_unspaced


def counts_characters(recognitions: Sequence[Recognition]) -> bool:
    """Whether %CER belongs beside %WER, by the references."""
    texts = ["".join(item.ref) for item in recognitions]
    letters = [letter for text in texts for letter in text if unicodedata.category(letter)[0] == "L"]
    hangul = sum(unicodedata.name(letter, "").startswith("HANGUL") for letter in letters)
    return 2 * hangul > len(letters) or is_unspaced(texts)


def as_characters(recognitions: Sequence[Recognition]) -> List[Recognition]:
    """The same utterances with a character in the place of each word."""
    return [Recognition(item.utterance_id, tuple("".join(item.ref)), tuple("".join(item.hyp))) for item in recognitions]


def has_no_blanks(refs: Iterable[Sequence[str]]) -> bool:
    """Whether single errors are to be shown by characters: the words of ``refs`` are whole sentences."""
    return is_unspaced(" ".join(ref) for ref in refs)

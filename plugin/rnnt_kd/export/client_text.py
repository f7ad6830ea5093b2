"""What sherpa-onnx makes of tokens: the symbols and the text that it gives back, and the ``tokens.txt`` that it reads.

The rule of its versions from 1.13.4 to 2.0.1 at least (``tests/export/test_client_text.py`` holds it against the one
that is installed).  Tokens and text belong together: ``text_of`` gives the same for pieces and for the client's tokens.
"""

import re
from typing import Iterable, List, Sequence

_EAST_ASIAN = "\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff"
_PUNCTUATION = "!-/:-@\\[-`{-~\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_CLOSED = re.compile(f"(?<=[{_EAST_ASIAN}]) (?=[{_EAST_ASIAN}])|(?<=.) (?=[{_PUNCTUATION}])", re.DOTALL)
_BYTE = re.compile("<0x([1-9A-F][0-9A-F])>")  # of byte_fallback; the client leaves <0x00> to <0x0F> as they are
_NO_CHARACTER = re.compile("[\udc80-\udcff]")
_BYTE_BPE = "\u01bf"  # the highest character that the client takes for one of byte-level BPE, which needs a byte 0xC6


def without_blanks(text: str) -> str:
    """``text`` as sherpa-onnx writes it: no blank between two East Asian characters, none before punctuation.

    East Asian are the scripts of Chinese, Japanese and Korean; punctuation is ASCII's (so "ROCK 'N ROLL" becomes
    "ROCK'N ROLL") and that of those scripts, U+3000 to U+303F and the wide forms.  Other blanks stay.
    """
    return _CLOSED.sub("", text)


def words_of(tokens: Sequence[str]) -> List[str]:
    """The words that pieces, or tokens of the client, spell: what recognition is scored by."""
    return _spelled(tokens).split()


def words_in(segments: Iterable[Sequence[str]]) -> List[str]:
    """The same of several segments, by their tokens: each begins a new word."""
    return words_of([token for tokens in segments for token in (" ", *tokens)])


def text_of(tokens: Sequence[str], streaming: bool = False) -> str:
    """The text that sherpa-onnx gives for pieces, or for its own tokens, without blanks at its ends.

    Bytes that are no UTF-8 are U+FFFD, each by itself.  Where it streams, it also leaves out a punctuation mark at the
    beginning of a segment: "'TIS" is "TIS" there.
    """
    spelled = _spelled(tokens)
    text = "" if spelled == "\ufffd" else without_blanks(spelled).strip()
    return re.sub(f"^[{_PUNCTUATION}]", "", text).strip() if streaming else text


def tokens_of(pieces: Sequence[str]) -> List[str]:
    """The tokens that sherpa-onnx gives for pieces: a blank for U+2581; bytes that are printable, as characters."""
    contents = map(_content, pieces)
    return [c.decode() if len(c) > 1 or 0x20 <= c[0] <= 0x7E else f"<0x{c[0]:X}>" for c in contents]


def tokens_txt(pieces: Sequence[str]) -> str:
    """A line "symbol id" for each piece.

    Where the client would take the vocabulary for byte-level BPE, and write other letters, one more line follows, with
    an id that no model says.  That is where a byte of the pieces is 0xC6 and none is higher: "\u018f" of Azerbaijani.
    """
    characters = set("".join(pieces)) - {"\u2581"}
    taken_for_bytes = max(characters, default="") <= _BYTE_BPE and any(c >= "\u0180" for c in characters)
    return "".join(f"{piece} {index}\n" for index, piece in enumerate([*pieces, *["\ufffd"] * taken_for_bytes]))


def _content(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else re.sub("^\u2581", " ", piece).encode()


def _spelled(tokens: Sequence[str]) -> str:
    return _NO_CHARACTER.sub("\ufffd", b"".join(map(_content, tokens)).decode("utf-8", "surrogateescape"))

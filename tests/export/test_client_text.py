"""The client's rules for tokens and text, against the sherpa-onnx that is installed."""

import re

import numpy as np
import pytest
from talker_cases import client_says

from rnnt_kd.export import client_text
from rnnt_kd.export.client_text import text_of, tokens_of, tokens_txt, without_blanks, words_of
from rnnt_kd.text.tokenizer import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # as byte_fallback has them, one after the other


def spelled(text: str):
    """The byte pieces of ``text``."""
    return [f"<0x{byte:02X}>" for byte in text.encode()]


SAID = {
    "English": ("▁DO N' T ▁'TIS ▁ROCK ▁'N ▁ROLL ▁DOGS'", "DON'T'TIS ROCK'N ROLL DOGS'"),
    "hyphens and digits": ("▁MID - ▁- TERM ▁5 ▁$ 3 ▁% ▁A . B", "MID--TERM 5$3% A.B"),
    "quotes of typographers": ("▁d ’ ▁’ a ▁« ▁¿ ▁…", "d’ ’a « ¿ …"),
    "Chinese": ("▁零 ▁一 二 ▁OK ▁三 ▁， ▁四 ▁。", "零一二 OK 三， 四。"),
    "Japanese": ("▁これ ▁は 、 ▁ペン ▁ｶﾅ ▁「 です ▁」", "これは、ペンｶﾅ「です」"),
    "Korean": ("▁한 국 ▁어 ▁KBS ▁뉴스", "한국어 KBS 뉴스"),
    "Thai": ("▁กา ▁ขา ร", "กา ขาร"),
    "combining marks": ("▁nai \u0308 ve ▁e\u0301", "nai\u0308ve e\u0301"),
    "a blank alone": ("▁A ▁ ▁ ▁, ▁B", "A  , B"),
}


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_and_text_are_the_clients_in_every_script(tmp_path, streaming):
    pieces = " ▁x ".join(said for said, _ in SAID.values()).split()
    said = client_says(tmp_path / "talker", pieces, streaming)
    assert said.text.split(" x ") == [text for _, text in SAID.values()]
    assert said.text == text_of(pieces, streaming) == text_of(said.tokens, streaming)
    assert said.tokens == tokens_of(pieces)
    assert words_of(said.tokens) == words_of(pieces) == "".join(pieces).replace("▁", " ").split()


def test_where_blanks_are_closed_is_where_the_client_closes_them(tmp_path):
    """At the bounds of every range of characters of the rule, one character on either side."""
    bounds = map(ord, re.findall(r"[^\\-]", client_text._EAST_ASIAN + client_text._PUNCTUATION))
    characters = sorted({bound + step for bound in bounds for step in (-1, 0, 1)} - set(range(0x21)))
    characters += [0x7F, 0xA0, 0xBF, 0x2019, 0x2026, 0x10FFFF]
    pieces = [piece for code in characters for piece in ("▁a", f"▁{chr(code)}", "▁中", f"▁{chr(code)}")]
    said = client_says(tmp_path / "talker", pieces)
    assert said.tokens == tokens_of(pieces)
    assert said.text == text_of(pieces)
    assert said.text.count(" ") > 200 and len(without_blanks(said.text)) == len(said.text)


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_are_put_together_or_replaced_as_the_client_does(tmp_path, streaming):
    """All of them in order, then characters of several, whole and cut."""
    cases = {
        tuple(BYTES): None,
        (
            "▁中",
            *spelled("好"),
            "▁文",
            *spelled("们")[:2],
            "b",
            *spelled("é\n\x7f B"),
        ): "中好文\ufffd\ufffdbé<0x0A>\x7f B",
        tuple(spelled("好")[:1]): "",
    }
    for number, (pieces, text) in enumerate(cases.items()):
        said = client_says(tmp_path / str(number), pieces, streaming, BYTES)
        assert said.text == text_of(pieces, streaming) == text_of(said.tokens, streaming)
        assert said.tokens == tokens_of(pieces) and text in (None, said.text)
    assert words_of(["▁中", *spelled("好"), "▁文"]) == ["中好", "文"]


@pytest.mark.parametrize("pieces", ["▁'TIS ▁A", "▁, ▁' ▁a", "▁« ▁a", "。 中"])
def test_a_streaming_client_omits_a_punctuation_mark_at_the_beginning(tmp_path, pieces):
    assert client_says(tmp_path / "talker", pieces.split(), True).text == text_of(pieces.split(), streaming=True)


@pytest.mark.parametrize("pieces, is_bbpe", [
    ("▁ƏLİ ▁GƏ L ▁İŞ", True), ("▁ÇAĞ ▁İŞ", False), ("▁ƙ a ▁ɓ", False),
])  # fmt: skip
def test_a_vocabulary_that_the_client_would_take_for_bytes_is_written_so_that_it_is_not(tmp_path, pieces, is_bbpe):
    """Of byte-level BPE it would write other letters."""
    pieces = pieces.split()
    said = [
        client_says(tmp_path / str(write), pieces, write=write).text
        for write in (tokens_txt, lambda vocabulary: "".join(f"{p} {i}\n" for i, p in enumerate(vocabulary)))
    ]
    assert said[0] == text_of(pieces) and (said[1] != text_of(pieces)) == is_bbpe


def test_text_is_what_sentencepiece_decodes_but_for_the_blanks(workplace):
    tokenizer, random = Tokenizer.load(workplace / "bpe"), np.random.default_rng(0)
    for length in range(1, 20):
        ids = random.integers(2, tokenizer.vocab_size, length).tolist()
        pieces = [tokenizer.pieces()[index] for index in ids]
        assert words_of(pieces) == tokenizer.decode(ids).split() == text_of(pieces).split()

"""BPE: deterministic, any script comes back, blank and <unk> in their places, wrong sizes named."""

import hashlib
import io
import os
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.errors import UserError
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe
from rnnt_kd.text.transcripts import read_transcripts

ENGLISH = ["THE QUICK BROWN FOX", "JUMPS OVER THE LAZY DOG", "SPELL T H E", "IT'S THE DOG", ""] * 3
MANY = [
    "größer Straße",
    "Ελληνικά λόγος",
    "русский язык",
    "東京 二三",
    "مرحبا بالعالم",
    "ｆｕｌｌ　ｗｉｄｔｈ ﬁ",
    "naïve café",
]


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return Tokenizer.load(train_bpe(ENGLISH, 45, tmp_path_factory.mktemp("bpe") / "bpe"))


@given(st.lists(st.integers(2, 44), max_size=12))
def test_words_and_the_places_of_their_last_tokens(english, ids):
    """Any tokens: the words of ``decode``, and after the last token of a word it is there, one before it is not."""
    spans = english.word_spans(ids)
    found = [(word, last) for word, _, last in spans]
    assert [word for word, _ in found] == english.decode(ids).split()
    for number, (word, last) in enumerate(found):
        assert english.decode(ids[: last + 1]).split()[: number + 1] == [name for name, _ in found[: number + 1]]
        assert english.decode(ids[:last]).split()[number : number + 1] != [word]
    assert all(english.decode(ids[first : last + 1]) == word for word, first, last in spans)
    ends = [last for _, last in found]
    assert ends == sorted(set(ends)) and english.word_spans([]) == []


def test_in_letters_a_word_ends_with_its_last_letter(tmp_path):
    tokenizer = Tokenizer.load(train_bpe(["A BC D", "BC"], 7, tmp_path / "bpe", "char"))
    ids = tokenizer.encode("BC A")
    assert [tokenizer.pieces()[token] for token in ids] == ["▁", "B", "C", "▁", "A"]
    assert tokenizer.word_spans(ids) == [("BC", 0, 2), ("A", 3, 4)]
    assert tokenizer.word_spans([*ids, ids[0]])[-1] == ("A", 3, 4)


def test_blank_is_0_and_unk_is_1_and_tokens_txt_says_so(tmp_path):
    folder = train_bpe(ENGLISH, 45, tmp_path / "bpe")
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["<blk> 0", "<unk> 1"]
    assert [line.split(" ")[1] for line in lines] == [str(index) for index in range(45)]
    assert not any(name in line for line in lines for name in ("<s>", "</s>", "<pad>"))
    assert any(line.startswith("▁THE ") for line in lines)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bpe", "bpe.model", "tokens.txt"]


def test_text_comes_back(english):
    for text in ENGLISH:
        assert english.decode(english.encode(text)) == text
    assert english.encode("") == [] and english.decode([]) == ""
    assert english.vocab_size == 45 and (english.blank_id, english.unk_id) == (0, 1)


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_any_script_comes_back_as_it_was(tmp_path, model_type):
    tokenizer = Tokenizer.load(train_bpe(MANY, 60, tmp_path / "bpe", model_type))
    for text in MANY:
        text = " ".join(text.split())
        assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.unk_id not in tokenizer.encode(text)


@given(text=st.text(max_size=20))
def test_no_text_yields_blank(english, text):
    assert 0 not in english.encode(text)


def test_the_names_of_blank_and_unk_in_a_transcript_are_not_blank(english):
    assert 0 not in english.encode("THE <blk> DOG") and 1 in english.encode("THE <blk> DOG")
    assert english.decode([0, *english.encode("THE DOG"), 0]) == "THE DOG"


def test_unknown_characters_are_seen(english):
    assert [1 in english.encode(text) for text in ("THÉ DOG", "THE DOG", "")] == [True, False, False]


def test_the_same_text_gives_the_same_bytes_in_another_process(tmp_path, root, english):
    code = "import sys; from rnnt_kd.text.train_bpe import train_bpe; train_bpe(eval(sys.argv[1]), 45, sys.argv[2])"
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin"), "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, repr(ENGLISH), str(tmp_path / "bpe")], check=True, env=environment)
    model = tmp_path / "bpe" / "bpe.model"
    assert hashlib.sha256(model.read_bytes()).hexdigest() == english.checksum == Tokenizer.load(model).checksum


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_larger_than_the_text_allows_says_the_largest_or_shrinks_to_it(tmp_path, model_type):
    message = r"vocab_size: 5000 is larger than the text allows; expected at most (\d+)"
    with pytest.raises(UserError, match=message) as error:
        train_bpe(ENGLISH, 5000, tmp_path / "bpe", model_type)
    largest = int(str(error.value).split("at most ")[1].split(";")[0])
    assert list(tmp_path.iterdir()) == []
    assert Tokenizer.load(train_bpe(ENGLISH, largest, tmp_path / "bpe", model_type)).vocab_size == largest
    with pytest.raises(UserError, match="larger"):
        train_bpe(ENGLISH, largest + 1, tmp_path / "bpe", model_type)
    assert Tokenizer.load(tmp_path / "bpe").vocab_size == largest  # the old one stays
    for size in (5000, largest - 1):
        made = train_bpe(ENGLISH, size, tmp_path / "fit", model_type, shrink_to_fit=True)
        assert Tokenizer.load(made).vocab_size == min(size, largest)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("size", [-1, 0, 1, 2, 10])
def test_a_vocabulary_smaller_than_the_characters_says_the_smallest(tmp_path, model_type, size):
    message = r"vocab_size: -?\d+ is too small for the characters of the text; expected at least 30"
    with pytest.raises(UserError, match=message):
        train_bpe(ENGLISH, size, tmp_path / "bpe", model_type)
    assert list(tmp_path.iterdir()) == []
    assert Tokenizer.load(train_bpe(ENGLISH, 30, tmp_path / "bpe", model_type)).vocab_size == 30


def test_no_text_and_unknown_types_are_errors(tmp_path):
    with pytest.raises(UserError, match="there is no text"):
        train_bpe(["", "  "], 10, tmp_path / "bpe")
    with pytest.raises(UserError, match='found "wordpiece"; expected one of bpe, unigram, char'):
        train_bpe(ENGLISH, 45, tmp_path / "bpe", "wordpiece")


def test_a_long_transcript_counts_too(tmp_path):
    """sentencepiece's default skips lines of more than 4192 bytes without a word."""
    tokenizer = Tokenizer.load(train_bpe([*ENGLISH, "Ü " * 4000], 45, tmp_path / "bpe"))
    assert tokenizer.unk_id not in tokenizer.encode("Ü")


def test_missing_foreign_and_corrupt_models_are_one_line(tmp_path):
    with pytest.raises(UserError, match="bpe/bpe.model: no such file|bpe: no such file"):
        Tokenizer.load(tmp_path / "bpe")
    folder = train_bpe(ENGLISH, 45, tmp_path / "bpe")
    content = (folder / "bpe.model").read_bytes()
    for broken in (b"", b"words", content[: len(content) // 2], b"\0" * 100):
        (folder / "bpe.model").write_bytes(broken)
        with pytest.raises(UserError, match="bpe.model: .*stage 2") as error:
            Tokenizer.load(folder)
        assert "\n" not in str(error.value)
    foreign = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH), model_writer=foreign, vocab_size=45, model_type="bpe", minloglevel=2
    )
    (folder / "bpe.model").write_bytes(foreign.getvalue())
    with pytest.raises(UserError, match="its first pieces are <unk> <s>; expected <blk> <unk>"):
        Tokenizer.load(folder)


def test_transcripts_are_read_without_ids_and_without_empty_ones(tmp_path):
    (tmp_path / "one").write_text("\ufeffa-1 ONE  TWO\na-2\n\na-3 \u3000\nb-1\tÜ 日本\n", encoding="utf-8")
    (tmp_path / "two").write_text("c-1 x", encoding="utf-8")
    assert read_transcripts([tmp_path / "one", tmp_path / "two"]) == ["ONE TWO", "Ü 日本", "x"]


def test_transcripts_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(UserError, match="text: no such file; expected the text file of a Kaldi data directory"):
        read_transcripts([tmp_path / "text"])
    (tmp_path / "text").write_bytes(b"a-1 \xff\n")
    with pytest.raises(UserError, match="text:1: is not UTF-8"):
        read_transcripts([tmp_path / "text"])

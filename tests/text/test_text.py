"""BPE: deterministic, any script comes back, blank and <unk> in their places, wrong sizes named."""

import hashlib
import io
import os
import random
import subprocess
import sys

import pytest
import sentencepiece
from command_cases import told
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.bin import train_bpe as command
from rnnt_kd.errors import UserError
from rnnt_kd.record import Record, record_path
from rnnt_kd.text.coverage import case_differs, coverage
from rnnt_kd.text.events import MOST_EVENTS, count_events, most_frequent, without_events
from rnnt_kd.text.normalization import normalized
from rnnt_kd.text.pieces import read_pieces
from rnnt_kd.text.tokenizer import RECORD, Tokenizer
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
    assert "larger" in told(train_bpe, ENGLISH, largest + 1, tmp_path / "bpe", model_type)
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
    assert "there is no text" in told(train_bpe, ["", "  "], 10, tmp_path / "bpe")
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
        with pytest.raises(UserError, match="bpe.model: .*stage 2"):
            Tokenizer.load(folder)
    foreign = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH), model_writer=foreign, vocab_size=45, model_type="bpe", minloglevel=2
    )
    (folder / "bpe.model").write_bytes(foreign.getvalue())
    with pytest.raises(
        UserError, match="its first pieces are <unk> <s> </s>; expected <blk> <unk> or <blk> <sos/eos> <unk>"
    ):
        Tokenizer.load(folder)


@pytest.fixture(scope="module")
def of_icefall(tmp_path_factory):
    """As its local/train_bpe_model.py makes one: another type, another normalization, <sos/eos> before <unk>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH), model_writer=model, vocab_size=33, model_type="unigram",
        character_coverage=1.0, user_defined_symbols=["<blk>", "<sos/eos>"], unk_id=2, bos_id=-1, eos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("lang_bpe_33") / "bpe.model"
    path.write_bytes(model.getvalue())
    return path


def test_a_model_of_icefall_is_taken_as_it_is(of_icefall, tmp_path, capsys):
    words = ["--bpe-model", str(of_icefall), "--out-dir", str(tmp_path / "bpe")]
    command.main.__wrapped__(words)
    assert f"33 pieces, those of {of_icefall}" in capsys.readouterr().out
    tokenizer = Tokenizer.load(tmp_path / "bpe")
    assert (tmp_path / "bpe/bpe.model").read_bytes() == of_icefall.read_bytes()
    assert (tmp_path / "bpe/tokens.txt").read_text().splitlines()[:3] == ["<blk> 0", "<sos/eos> 1", "<unk> 2"]
    assert (tokenizer.blank_id, tokenizer.unk_id, tokenizer.vocab_size) == (0, 2, 33)
    for text in filter(None, ENGLISH):
        ids = tokenizer.encode(text)
        assert min(ids) > 2 and tokenizer.decode([0, *ids]) == text
    assert min(tokenizer.encode("THE <blk> <sos/eos> ß")) == 2  # neither blank nor a symbol that no model of ours says
    command.main.__wrapped__(words)
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="--text, --vocab-size: not given; expected both, or --bpe-model"):
        command.main.__wrapped__(["--out-dir", str(tmp_path / "bpe")])


def test_transcripts_are_read_without_ids_and_without_empty_ones(tmp_path):
    (tmp_path / "one").write_text("\ufeffa-1 ONE  TWO\na-2\n\na-3 \u3000\nb-1\tÜ 日本\n", encoding="utf-8")
    (tmp_path / "two").write_text("c-1 x", encoding="utf-8")
    assert read_transcripts([tmp_path / "one", tmp_path / "two"]) == ["ONE TWO", "Ü 日本", "x"]


def test_transcripts_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(UserError, match="text: no such file; expected the text file of a Kaldi data directory"):
        read_transcripts([tmp_path / "text"])
    (tmp_path / "text").write_bytes(b"a-1 \xff\n")
    assert "text:1: is not UTF-8" in told(read_transcripts, [tmp_path / "text"])


def test_one_form_whatever_an_editor_made_of_it():
    assert normalized("cafe\u0301\u00a0\u3000 o\u0308l ") == "caf\u00e9 \u00f6l"
    assert normalized(" cafe\u0301\u3000x", "none") == "cafe\u0301 x"


def test_transcripts_are_read_in_one_form(tmp_path):
    (tmp_path / "text").write_bytes("\ufeffa cafe\u0301\u3000x\r\nb y\r\n".encode())
    assert read_transcripts([tmp_path / "text"]) == ["caf\u00e9 x", "y"]
    assert read_transcripts([tmp_path / "text"], "none") == ["cafe\u0301 x", "y"]


@pytest.mark.parametrize("blank, name", [
    ("\u3000", "U+3000 (ideographic space)"),
    ("\u00a0", "U+00A0 (no-break space)"),
    ("\u2003", "U+2003 (em space)"),
    ("\ufeff", "U+FEFF (zero width no-break space)"),
    ("\x0b", "U+000B (control character)"),
])  # fmt: skip
def test_another_blank_behind_an_id_is_named(tmp_path, blank, name):
    (tmp_path / "text").write_text(f"a-1 ONE\na-2{blank}TWO\n", encoding="utf-8", newline="")
    said = told(read_transcripts, [tmp_path / "text"])
    assert f"holds the blank {name}; expected a space or a tab after the id" in said
    assert said.startswith(f"{tmp_path / 'text'}:2: id ")


def east_asian(first, count, seed=0):
    rng = random.Random(seed)
    return ["".join(chr(first + rng.randrange(count)) for _ in range(20)) for _ in range(400)]


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
@pytest.mark.parametrize("first, count", [(0x4E00, 300), (0xAC00, 250), (0x3041, 80)], ids=["Han", "Hangul", "Kana"])
def test_a_script_of_many_characters_gets_the_pieces_that_it_needs(tmp_path, model_type, first, count):
    texts = east_asian(first, count)
    characters = len(set("".join(texts)))
    made = train_bpe(texts, 40, tmp_path / "bpe", model_type, shrink_to_fit=True, enlarge_to_fit=True)
    tokenizer = Tokenizer.load(made)
    assert tokenizer.vocab_size == characters + 3
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


@pytest.mark.parametrize("vocab_size", [300, 400])
def test_in_bytes_anything_can_be_written_and_the_size_is_kept(tmp_path, vocab_size):
    texts = east_asian(0x4E00, 300)
    tokenizer = Tokenizer.load(train_bpe(texts, vocab_size, tmp_path / "bpe", byte_fallback=True))
    assert tokenizer.vocab_size == vocab_size
    for text in [*texts[:5], "\u9f98 na\u00efve"]:
        assert tokenizer.unk_id not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(texts[0])) < 3 * len(texts[0]), "no character has a piece"


NOISY = ["ONE <unk> TWO", "[noise] ONE", "{breath} TWO <unk>", "<blk> TWO"] * 3


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_an_event_is_one_piece_and_one_word(tmp_path, model_type):
    events = most_frequent(count_events(NOISY))
    assert events == ["<unk>", "<blk>", "[noise]", "{breath}"]
    made = train_bpe(NOISY, 20, tmp_path / "bpe", model_type, shrink_to_fit=True, enlarge_to_fit=True, events=events)
    tokenizer = Tokenizer.load(made)
    for text in NOISY:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.unk_id not in ids and tokenizer.blank_id not in ids
        assert [word for word, _, _ in tokenizer.word_spans(ids)] == text.split()
    assert len(tokenizer.encode("<unk>")) == 1


def test_what_is_an_event():
    words = ["<unk>", "[laughter-yes]", "{x}", "a[b]", "[a b]", "<>", "<a><b>", "(uh)", "I'M"]
    assert [word for word in words if word not in without_events(words)] == ["<unk>", "[laughter-yes]", "{x}"]
    many = count_events([f"<{number}>" for number in range(MOST_EVENTS + 5)] + ["<last>"] * 2)
    assert len(most_frequent(many)) == MOST_EVENTS and most_frequent(many)[0] == "<last>"


@pytest.mark.parametrize("texts, line", [
    (["THE DOG", ""], "x: the BPE model can write all 2 utterances"),
    (["the dog", "a", "THE DOG"], 'x: the BPE model cannot write 2 of 3 utterances (66.7 %), such as "t" of "the" in '
     "u0; in upper case it can: change the case of this set's text, or of the training text"),
    (["THE DOG", "THE \u00c9 \u00e9"], 'x: the BPE model cannot write 1 of 2 utterances (50.0 %), such as "\u00c9" in u1'),
])  # fmt: skip
def test_what_cannot_be_written_is_told_with_its_share_and_an_example(english, texts, line):
    found = coverage({f"u{place}": text for place, text in enumerate(texts)}, english.encode, english.unk_id)
    assert found.sentence("x") == line


@pytest.mark.parametrize("ref, hyp, differs", [
    ("one two", "ONE", True),
    ("one two", "three", False),
    ("one Two", "one two", False),
    ("one", "", False),
])  # fmt: skip
def test_another_case_is_seen_from_the_words(ref, hyp, differs):
    assert case_differs([(ref.split(), hyp.split())]) == differs


def test_a_model_that_is_not_what_stage_2_wrote_is_one_line(tmp_path):
    folder = train_bpe(ENGLISH, 45, tmp_path / "bpe")
    record = Record(folder, RECORD, {}, [], ["bpe.model"])
    record.finish()
    assert record.path == record_path(folder, RECORD)
    content = (folder / "bpe.model").read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / "bpe.model").write_bytes(damaged[: rng.choice([len(content), rng.randrange(len(content))])])
        with pytest.raises(UserError, match="bpe.model: .*stage 2"):
            Tokenizer.load(folder)
    (folder / "bpe.model").write_bytes(content)
    Tokenizer.load(folder)


def test_a_damaged_model_without_a_record_ends_in_one_line_or_can_be_used(tmp_path):
    folder = train_bpe([*ENGLISH, "\u00c9T\u00c9"], 45, tmp_path / "bpe")
    content = (folder / "bpe.model").read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / "bpe.model").write_bytes(damaged)
        try:
            tokenizer = Tokenizer.load(folder)
        except UserError:
            pass
        else:
            tokenizer.decode(tokenizer.encode("THE DOG")), tokenizer.pieces()


@pytest.mark.parametrize("symbols, count", [("<blk> <unk> a #0 #1", 3), ("<blk> <unk> #0 a", 4), ("<blk> #1 a #0", 3)])
def test_a_piece_may_be_spelled_like_a_symbol_of_lexicons(tmp_path, symbols, count):
    """#0, #1 ... at the end of a tokens.txt are no pieces of the model."""
    lines = [f"{symbol} {number}\n" for number, symbol in enumerate(symbols.split())]
    (tmp_path / "tokens.txt").write_text("".join(lines))
    assert read_pieces(tmp_path / "tokens.txt") == symbols.split()[:count]

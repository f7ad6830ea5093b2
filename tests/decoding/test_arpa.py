"""ARPA files: of any editor, compressed; damaged ones end in one line that names the place."""

import bz2
import gzip
import lzma
import random
import re
import unicodedata

import pytest
import torch
from arpa_cases import make_arpa
from command_cases import told

from rnnt_kd.decoding.arpa import checked_lines
from rnnt_kd.decoding.ngram_lm import read_arpa
from rnnt_kd.errors import UserError

SENTENCES = [["ONE", "TWO", "ÉTÉ"], ["TWO", "THREE"], ["ONE"]]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return make_arpa(tmp_path_factory.mktemp("arpa") / "3.arpa", SENTENCES, 3).read_bytes()


def lines_of(path):
    return list(checked_lines(path))


WRITTEN = {
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "CR LF": lambda content: content.replace(b"\n", b"\r\n"),
    "words before": lambda content: b"made by hand\n" + content,
    "words behind": lambda content: content + b"the end\n",
    "letters in parts": lambda content: unicodedata.normalize("NFD", content.decode()).encode(),
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "gzip, CR LF": lambda content: gzip.compress(content.replace(b"\n", b"\r\n")),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
def test_the_same_model_however_it_is_written(tmp_path, content, write):
    for name, made in (("plain", content), ("other", write(content))):
        (tmp_path / name).write_bytes(made)
    assert lines_of(tmp_path / "other") == lines_of(tmp_path / "plain")


def test_it_is_read_from_an_archive_of_windows(tmp_path, content):
    pytest.importorskip("kaldilm")
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")))
    plain, other = read_arpa(tmp_path / "plain"), read_arpa(tmp_path / "x.gz")
    assert plain.words == other.words and "ÉTÉ" in plain.words
    assert torch.equal(plain.keys, other.keys) and torch.equal(plain.log_probs, other.log_probs)


@pytest.mark.parametrize("old, new, message", [
    ("\\data\\", "\\dat\\", ": has no line \\data\\"),
    ("\\end\\\n", "", ": ends before \\end\\"),
    ("ngram 2=", "ngram 3=", "; expected ngram 2=COUNT"),
    ("ngram 1=7", "ngram 1=99999999999", ": follows 7 n-grams of order 1; expected 99999999999, as the head says"),
    ("\\2-grams:", "\\3-grams:", "; expected \\2-grams:"),
    ("</s>", "<end>", ": does not know </s>"),
    ("<s>", "<begin>", ": does not know <s>"),
    ("\tONE\t", "\tTWO\t", '"TWO" a second time; expected every n-gram once'),
    ("ONE TWO ", "ONE TOO ", '"TOO" is none of the words'),
    ("-99.0", "99.0", 'found "99.0000000\t<s>'),
    ("-99.0", "nan", 'found "nan'),
    ("-99.0", "-9_9.x", 'found "-9_9'),
    ("\t<s>\t-0", "\t<s>\t-1e30", "; expected log10 of a probability, 1 words, perhaps log10 of a back-off weight"),
    ("\tONE\t", "\tON\0E\t", ': found "'),
    ("\tONE\t", "\tONE\r", ': found "'),
    ("\tONE\t", "\tON\vE\t", ': found "'),
    ("\tONE\t", "\tONE MORE WORD\t", ': found "'),
])  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, content, old, new, message):
    text = content.decode()
    assert old in text
    (tmp_path / "x.arpa").write_text(text.replace(old, new), encoding="utf-8")
    said = told(lines_of, tmp_path / "x.arpa")
    assert re.match(rf"{re.escape(str(tmp_path / 'x.arpa'))}(:\d+)?: ", said)
    assert " ".join(message.split()) in said


def test_any_damage_is_one_line_or_another_number(tmp_path, content):
    """What is left are digits of a number, letters of a word in all its places, and blanks."""
    (tmp_path / "x").write_bytes(content)
    whole, rng = lines_of(tmp_path / "x"), random.Random(0)
    for _ in range(200):
        damaged = bytearray(content)
        place = rng.randrange(len(content))
        damaged[place : place + rng.choice([0, 1, 9])] = bytes(rng.choice(b"\\-<> \t\n\r\0\xffe0A") for _ in range(3))
        (tmp_path / "x").write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            found = lines_of(tmp_path / "x")
        except UserError:
            pass
        else:
            assert [len(line.split()) for line in found if line] == [len(line.split()) for line in whole if line]

"""The recogs file: round trip, and every way it can be wrong is one line that names the place."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.recognitions import Recognition, check_same_references, read_recogs, write_recogs

word = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).map(lambda s: "".join(s.split())).filter(bool)


@given(refs=st.lists(st.lists(word, max_size=4), min_size=1, max_size=4), hyp=st.lists(word, max_size=4))
def test_round_trip(tmp_path_factory, refs, hyp):
    path = tmp_path_factory.mktemp("recogs") / "recogs-test.txt"
    items = [Recognition(f"spk:{i}-ü", tuple(ref), tuple(hyp)) for i, ref in enumerate(refs)]
    write_recogs(path, reversed(items))
    assert read_recogs(path) == items
    assert len(path.read_bytes().decode().split("\n")) == 2 * len(items) + 1


def test_form_is_icefalls(tmp_path):
    write_recogs(tmp_path / "recogs-a.txt", [Recognition("b", ("A", "B'S"), ()), Recognition("a", (), ("C",))])
    expected = "a:\tref=[]\na:\thyp=['C']\nb:\tref=['A', \"B'S\"]\nb:\thyp=[]\n"
    assert (tmp_path / "recogs-a.txt").read_text() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "recogs-t.txt: no such file"),
        ("", "holds no utterance"),
        ("a:\tref=['x']\n", '"a" has no hyp'),
        ("a:\thyp=['x']\n", '"a" has no ref'),
        ("a:\tref=[]\na:\thyp=[]\na:\tref=[]\n", 'recogs-t.txt:3: a second ref of "a"'),
        ("a:\tref=[]\na hyp=[]\n", "recogs-t.txt:2: found"),
        ("a:\tref=__import__('os').system('true')\n", "recogs-t.txt:1: found"),
        ("a:\tref=[1]\n", "recogs-t.txt:1: found"),
        ("a:\tref='x'\n", "recogs-t.txt:1: found"),
        ("a:\tref=[{[]: 1}]\n", "recogs-t.txt:1: found"),
        ("a:\tref=['']\n", "recogs-t.txt:1: found"),
        ("a:\tref=['x y']\n", "recogs-t.txt:1: found"),
        ("a:\tref=['x\\n']\n", "recogs-t.txt:1: found"),
        ("a:\tref=['\\ud800']\n", "recogs-t.txt:1: found"),
        ("a:\tref=['\0']\n", "recogs-t.txt:1: found"),
        ("a:\tref=" + "-" * 99999 + "1\n", "recogs-t.txt:1: found"),
        ("a:\tref=" + "[" * 5000 + "\n", "recogs-t.txt:1: found"),
        (b"a:\tref=['\xff']\n", "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_place(tmp_path, content, message):
    path = tmp_path / "recogs-t.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)):
        read_recogs(path)


def test_marks_line_ends_and_composed_letters_do_not_count(tmp_path):
    (tmp_path / "recogs-t.txt").write_bytes("\ufeffa:\tref=['e\u0301']\r\na:\thyp=['\u00e9']\r\n".encode())
    assert read_recogs(tmp_path / "recogs-t.txt") == [Recognition("a", ("\u00e9",), ("\u00e9",))]


def test_baseline_must_match():
    ours = [Recognition("a", ("x",), ("x",)), Recognition("b", ("y",), ())]
    paths = Path("ours"), Path("theirs")
    check_same_references(ours, [Recognition("a", ("x",), ()), Recognition("b", ("y",), ("q",))], *paths)
    for theirs, message in (
        (ours[:1], 'ours: "b" is not in theirs'),
        ([*ours, Recognition("c", (), ())], 'ours: 1 of 3 utterances of theirs are missing, the first is "c"'),
        ([ours[0], Recognition("b", ("z",), ())], 'ref of "b" differs from theirs'),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            check_same_references(ours, theirs, *paths)

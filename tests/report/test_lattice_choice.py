"""Which utterances get a picture: both directions, the largest differences first, the same for the same files."""

import json
import random

import pytest

from rnnt_kd.report.lattice_choice import choose, decodings
from rnnt_kd.scoring.recognitions import Recognition, write_recogs

REF = ("a", "b", "c", "d")


def hyp(errors):
    return ("x",) * errors + REF[errors:]


def recognitions(table):
    """{id: errors of (teacher, twin, student), or words} -> what ``choose`` takes."""
    return {
        key: [
            Recognition(name, REF, values[place] if isinstance(values[place], tuple) else hyp(values[place]))
            for name, values in sorted(table.items())
        ]
        for place, key in enumerate(("teacher", "twin", "student"))
    }


def chosen(table, most, seconds=None, max_seconds=99.0):
    """kind:utterance of each, in their order."""
    seconds = {name: 1.0 for name in table} if seconds is None else seconds
    return [f"{item.kind}:{item.utterance}" for item in choose(recognitions(table), seconds, most, max_seconds)]


TABLE = {"same": (0, 1, 1), "g1": (0, 1, 0), "g2": (0, 3, 1), "g3": (0, 4, 1), "l1": (0, 0, 1), "l2": (0, 0, 2)}


CHANGED = {"g1": (0, 1, 0), "c1": (0, ("y",) + REF[1:], 1), "same": (0, 2, 2)}
EQUAL = {"a": (2, 1, 0), "b": (0, 1, 0), "c": (0, 1, 0), "d": (0, 1, 0)}


@pytest.mark.parametrize("table, most, expected, limits", [
    (TABLE, 4, "gained:g3 gained:g2 lost:l2 lost:l1", ()),  # half and half, the largest differences first
    (TABLE, 3, "gained:g3 gained:g2 lost:l2", ()),
    (TABLE, 1, "gained:g3", ()),
    (TABLE, 6, "gained:g3 gained:g2 gained:g1 lost:l2 lost:l1", ()),  # one kind fills up for the other
    ({"l1": TABLE["l1"], "l2": TABLE["l2"]}, 6, "lost:l2 lost:l1", ()),
    ({"l1": TABLE["l1"], "l2": TABLE["l2"]}, 1, "lost:l2", ()),
    (CHANGED, 6, "gained:g1 changed:c1", ()),  # other words, as many errors: where there is room
    (CHANGED, 1, "gained:g1", ()),
    # among equals: the teacher that knew better, then the shorter, then the id
    (EQUAL, 9, "gained:c gained:d gained:b gained:a", ({"a": 1.0, "b": 2.0, "c": 1.0, "d": 1.0},)),
    # neither long ones nor those of unknown length
    (TABLE, 9, "gained:g3 lost:l1", ({"g3": 5.0, "g2": 5.1, "l1": 2.0}, 5.0)),
])  # fmt: skip
def test_the_utterances_and_their_order(table, most, expected, limits):
    assert chosen(table, most, *limits) == expected.split()


def test_errors_and_words_come_along():
    item = choose(recognitions({"u": (0, 4, ("a", "b", "c"))}), {"u": 1.0}, 1, 9.0)[0]
    assert item.errors == {"teacher": 0, "twin": 4, "student": 1}  # the last is a deletion
    assert item.ref == REF and item.hyps == {"teacher": REF, "twin": ("x",) * 4, "student": ("a", "b", "c")}


def test_events_choose_no_picture_where_they_do_not_count():
    items = [Recognition("u", ("a", "b"), words) for words in (("a", "b"), ("a", "b"), ("a", "[noise]", "b"))]
    given = {key: [item] for key, item in zip(("teacher", "twin", "student"), items)}
    for score_events, kind in ((True, "lost"), (False, "changed")):
        (item,) = choose(given, {"u": 1.0}, 1, 9.0, score_events)
        assert (item.kind, item.hyps["student"]) == (kind, items[2].hyp)


def test_gained_and_lost_are_what_a_count_by_hand_says():
    generator = random.Random(0)
    table = {f"u{n:03d}": tuple(generator.randint(0, 4) for _ in range(3)) for n in range(200)}
    picked = chosen(table, 30)
    for kind, sign in (("gained", 1), ("lost", -1)):
        differences = {name: sign * (values[1] - values[2]) for name, values in table.items()}
        mine = [item.partition(":")[2] for item in picked if item.startswith(kind)]
        assert len(mine) == 15 and len(set(mine)) == 15
        assert sorted((differences[name] for name in mine), reverse=True) == sorted(differences.values())[:-16:-1]


def test_finished_decodings_only(tmp_path):
    made = [("test", "greedy_search"), ("test", "modified_beam_search"), ("test_other", "greedy_search")]
    made += [("te[s]t", "greedy_search"), ("test", "with_lm")]  # one that was made by hand
    for test_set, search in made:
        folder = f"decode_{test_set}_{search}"
        search = search.replace("with_lm", "modified_beam_search")
        (tmp_path / folder).mkdir()
        write_recogs(tmp_path / folder / f"recogs-{test_set}.txt", [Recognition("u", REF, REF)])
        (tmp_path / folder / "decode.json").write_text(json.dumps({"test_set": test_set, "search": search}))
    (tmp_path / "decode_test_half").mkdir()
    assert list(decodings(tmp_path, "test")) == ["greedy_search", "modified_beam_search"]
    for name in ("test_other", "te[s]t"):
        assert list(decodings(tmp_path, name)) == ["greedy_search"]
    assert decodings(tmp_path, "test")["modified_beam_search"].parent.name == "decode_test_modified_beam_search"
    (tmp_path / "decode_test_greedy_search/decode.json").unlink()  # killed before it was written
    assert list(decodings(tmp_path, "test")) == ["modified_beam_search"]

"""Which utterances get a picture: both directions, the largest differences first, the same for the same files."""

import json
import random

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
    seconds = {name: 1.0 for name in table} if seconds is None else seconds
    return [(item.kind, item.utterance) for item in choose(recognitions(table), seconds, most, max_seconds)]


TABLE = {"same": (0, 1, 1), "g1": (0, 1, 0), "g2": (0, 3, 1), "g3": (0, 4, 1), "l1": (0, 0, 1), "l2": (0, 0, 2)}


def test_half_gained_and_half_lost_by_the_size_of_the_difference():
    assert chosen(TABLE, 4) == [("gained", "g3"), ("gained", "g2"), ("lost", "l2"), ("lost", "l1")]
    assert chosen(TABLE, 3) == [("gained", "g3"), ("gained", "g2"), ("lost", "l2")]
    assert chosen(TABLE, 1) == [("gained", "g3")]


def test_one_kind_fills_up_for_the_other():
    assert chosen(TABLE, 6) == [("gained", "g3"), ("gained", "g2"), ("gained", "g1"), ("lost", "l2"), ("lost", "l1")]
    only_lost = {name: values for name, values in TABLE.items() if name.startswith("l")}
    assert chosen(only_lost, 6) == [("lost", "l2"), ("lost", "l1")] and chosen(only_lost, 1) == [("lost", "l2")]


def test_what_is_free_goes_to_other_words_with_as_many_errors():
    table = {"g1": (0, 1, 0), "c1": (0, ("y",) + REF[1:], 1), "same": (0, 2, 2)}
    assert chosen(table, 6) == [("gained", "g1"), ("changed", "c1")]
    assert chosen(table, 1) == [("gained", "g1")]


def test_among_equals_the_teacher_that_knew_better_then_the_shorter_then_the_id():
    table = {"a": (2, 1, 0), "b": (0, 1, 0), "c": (0, 1, 0), "d": (0, 1, 0)}
    seconds = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 1.0}
    assert [name for _, name in chosen(table, 9, seconds)] == ["c", "d", "b", "a"]


def test_long_and_unknown_utterances_are_not_chosen():
    assert chosen(TABLE, 9, {"g3": 5.0, "g2": 5.1, "l1": 2.0}, 5.0) == [("gained", "g3"), ("lost", "l1")]


def test_errors_and_words_come_along():
    item = choose(recognitions({"u": (0, 4, ("a", "b", "c"))}), {"u": 1.0}, 1, 9.0)[0]
    assert item.errors == {"teacher": 0, "twin": 4, "student": 1}  # the last is a deletion
    assert item.ref == REF and item.hyps == {"teacher": REF, "twin": ("x",) * 4, "student": ("a", "b", "c")}


def test_gained_and_lost_are_what_a_count_by_hand_says():
    generator = random.Random(0)
    table = {f"u{n:03d}": tuple(generator.randint(0, 4) for _ in range(3)) for n in range(200)}
    picked = chosen(table, 30)
    for kind, sign in (("gained", 1), ("lost", -1)):
        differences = {name: sign * (values[1] - values[2]) for name, values in table.items()}
        mine = [name for of_kind, name in picked if of_kind == kind]
        assert len(mine) == 15 and len(set(mine)) == 15
        assert sorted((differences[name] for name in mine), reverse=True) == sorted(differences.values())[:-16:-1]


def test_finished_decodings_only(tmp_path):
    made = [("test", "greedy_search"), ("test", "modified_beam_search"), ("test_other", "greedy_search")]
    for test_set, search in made:
        folder = f"decode_{test_set}_{search}"
        (tmp_path / folder).mkdir()
        write_recogs(tmp_path / folder / f"recogs-{test_set}.txt", [Recognition("u", REF, REF)])
        (tmp_path / folder / "decode.json").write_text(json.dumps({"test_set": test_set, "search": search}))
    (tmp_path / "decode_test_half").mkdir()
    assert list(decodings(tmp_path, "test")) == ["greedy_search", "modified_beam_search"]
    assert list(decodings(tmp_path, "test_other")) == ["greedy_search"]
    (tmp_path / "decode_test_greedy_search/decode.json").unlink()  # killed before it was written
    assert list(decodings(tmp_path, "test")) == ["modified_beam_search"]

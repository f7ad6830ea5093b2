"""Delays of words against plain enumeration of alignments; the tokens file; the command."""

import itertools
import json
import types
import unicodedata

import numpy as np
import pytest
from command_cases import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnt_kd.bin import delay as command
from rnnt_kd.decoding.decode import _word_spans
from rnnt_kd.decoding.hypotheses import Hypothesis
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.delay import WordDelays, delay_figures, places, word_delays
from rnnt_kd.scoring.emissions import Emissions, read_emissions, write_emissions
from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.scoring.word_errors import align, count

few_words = st.lists(st.sampled_from("abc"), max_size=5)


def alignments(ref, hyp):
    """Every alignment, as (errors, {place in ref: place in hyp or None})."""

    def extend(i, j):
        if i == len(ref) and j == len(hyp):
            yield 0, {}
        if i < len(ref):
            for errors, pairs in extend(i + 1, j):
                yield errors + 1, {**pairs, i: None}
        if j < len(hyp):
            for errors, pairs in extend(i, j + 1):
                yield errors + 1, pairs
        if i < len(ref) and j < len(hyp):
            for errors, pairs in extend(i + 1, j + 1):
                yield errors + (ref[i] != hyp[j]), {**pairs, i: j if ref[i] == hyp[j] else None}

    return list(extend(0, 0))


@settings(max_examples=150, deadline=None)
@given(few_words, few_words)
def test_places_are_those_of_all_best_alignments(ref, hyp):
    every = alignments(ref, hyp)
    least = min(errors for errors, _ in every)
    best = [pairs for errors, pairs in every if errors == least]
    assert places(ref, hyp) == [{pairs[i] for pairs in best} for i in range(len(ref))]
    assert least == count(align(ref, hyp)).errors


def emitted(words, times):
    return Emissions((), (), tuple(words.split()), tuple(times))


def recognitions(**refs):
    return [Recognition(key, tuple(ref.split()), ()) for key, ref in refs.items()]


def test_words_have_the_form_that_recognised_ones_have(tmp_path):
    """Unicode's NFC, whatever the BPE model spells, and whatever earlier versions wrote."""
    spelled = unicodedata.normalize("NFD", "CAF\u00c9")
    tokenizer = types.SimpleNamespace(word_spans=lambda ids: [(spelled, 0, 1), ("YES", 2, 2)])
    spans = _word_spans(Hypothesis((1, 2, 3), (0, 1, 2), 0.0), tokenizer)
    assert spans == [("CAF\u00c9", 0, 1), ("YES", 2, 2)]
    item = Recognition("u1", ("CAF\u00c9",), (spelled,))
    write_emissions(tmp_path / "tokens-t.jsonl", [("u1", Emissions(("x",), (0.5,), (spelled,), (0.5,)))])
    assert read_emissions(tmp_path / "tokens-t.jsonl")["u1"].words == item.hyp == ("CAF\u00c9",)


def test_only_words_right_in_both_and_without_doubt_count():
    refs = recognitions(a="one five five two", b="yes", c="", d="no no")
    ours = {
        "a": emitted("one five two", [0.5, 1.0, 2.0]),  # which five?
        "b": emitted("yes", [0.4]),
        "c": emitted("well", [0.1]),
        "d": emitted("no no", [0.3, 0.6]),
    }
    theirs = {
        "a": emitted("one five five too", [0.4, 0.8, 1.2, 1.6]),  # two is wrong here
        "b": emitted("yes", [0.48]),
        "c": emitted("", []),
        "d": emitted("oh no no", [0.0, 0.2, 0.48]),
    }
    found = word_delays(refs, ours, theirs)
    assert {key: [round(1000 * x) for x in values] for key, values in found.by_utterance.items()} == {
        "a": [100], "b": [-80], "c": [], "d": [100, 120],
    }  # fmt: skip
    assert (found.reference_words, found.unclear) == (7, 2)


def test_mean_median_90_percent_point_and_interval_are_those_of_the_words(monkeypatch):
    monkeypatch.setattr("rnnt_kd.scoring.bootstrap.LEAST_UTTERANCES", 2)
    delays = WordDelays({"a": [0.04] * 9, "b": [1.0], "c": []}, 20, 3)
    figures = delay_figures(delays, replications=2000, seed=1)
    assert (figures["words"], figures["reference_words"], figures["unclear"]) == (10, 20, 3)
    assert (figures["mean_ms"], figures["median_ms"]) == (136.0, 40.0)
    assert figures["p90_ms"] == round(float(np.percentile([40.0] * 9 + [1000.0], 90)), 1)
    assert figures == delay_figures(delays, replications=2000, seed=1)
    draws = [sum(picked, []) for picked in itertools.product([[0.04] * 9, [1.0], []], repeat=3) if any(picked)]
    expected = np.percentile([1000 * np.mean(draw) for draw in draws], [2.5, 97.5])
    assert figures["ci95_ms"] == pytest.approx(expected.tolist(), abs=1.0)
    assert delay_figures(WordDelays({"a": []}, 4, 0))["mean_ms"] is None


@pytest.mark.parametrize(
    "utterances, speakers, few", [(19, "", "19 utterances"), (20, "a", "one speaker"), (20, "ab", None)]
)
def test_too_few_utterances_with_a_word_that_counts_have_no_interval(utterances, speakers, few):
    delays = {**{f"u{n}": [0.04 * n] for n in range(utterances)}, **{f"empty{n}": [] for n in range(9)}}
    figures = delay_figures(WordDelays(delays, 99, 0), replications=100, speakers=speakers)
    assert figures["mean_ms"] is not None and figures["too_few"] == few
    assert (figures["ci95_ms"] is None) == (few is not None)


def test_emissions_come_back(tmp_path):
    items = {
        "b": emitted("ja nein", [0.1, 2.56]),
        "a": Emissions(("▁Gr", "üß"), (0.04, 0.08), ("Grüß",), (0.08,)),
        "c": emitted("", []),
    }
    write_emissions(tmp_path / "x.jsonl", items.items())
    assert read_emissions(tmp_path / "x.jsonl") == items
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "c"] and "Grüß" in lines[0]


GOOD = '{"id": "a", "tokens": ["x"], "timestamps": [0.1], "words": ["x"], "word_times": [0.1]}'


@pytest.mark.parametrize("line", [
    "{", "[]", "1", '{"id": "a"}', GOOD.replace('["x"]', '"x"', 1).replace("[0.1]", "[]", 1), GOOD.replace("[0.1]", "[-0.1]"),
    GOOD.replace("[0.1]", "[NaN]"), GOOD.replace('"a"', "3"), GOOD.replace("[0.1]", "[true]"), GOOD.replace("[0.1]", "[]"), GOOD,
])  # fmt: skip
def test_a_wrong_line_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(UserError, match=r"x\.jsonl:2: "):
        read_emissions(tmp_path / "x.jsonl")


def decoding(folder, **utterances):
    """A decode folder; id=(ref, hyp, times)."""
    folder.mkdir(parents=True)
    refs = {key: Recognition(key, tuple(ref.split()), tuple(hyp.split())) for key, (ref, hyp, _) in utterances.items()}
    write_recogs(folder / "recogs-test.txt", refs.values())
    write_emissions(
        folder / "tokens-test.jsonl", ((key, emitted(hyp, times)) for key, (_, hyp, times) in utterances.items())
    )
    (folder / "decode.json").write_text(json.dumps({"system": folder.name, "test_set": "test"}))
    return folder


@pytest.fixture
def two(tmp_path):
    return (
        decoding(tmp_path / "late", a=("one two", "one two", [0.5, 1.0]), b=("ja", "ja", [0.4])),
        decoding(tmp_path / "offline", a=("one two", "one too", [0.4, 0.8]), b=("ja", "ja", [0.2])),
    )


def test_the_command_says_and_writes_the_delay_and_skips_until_something_changes(two, capsys):
    late, offline = two
    arguments = ["--decode-dir", str(late), "--baseline-decode-dir", str(offline)]
    command.main(arguments)
    said = capsys.readouterr().out
    assert said.startswith("late on test: words come 150 ms [")
    assert f"than from {offline} (2 of 3 words right in both)" in said
    result = json.loads((late / "delay-test.json").read_text())
    expected = {"mean_ms": 150.0, "median_ms": 150.0, "p90_ms": 190.0, "words": 2, "reference_words": 3, "unclear": 0}
    assert {**expected, "system": "late", "baseline": str(offline)}.items() <= result.items()
    assert result["command"].startswith("python -m rnnt_kd.bin.delay --decode-dir ")
    command.main(arguments)
    again = capsys.readouterr().out
    assert "finished already" in again and again.endswith(said)
    decoded = (offline / "tokens-test.jsonl").read_text().replace("0.2", "0.28")
    (offline / "tokens-test.jsonl").write_text(decoded)
    command.main(arguments)
    assert "words come 110 ms" in capsys.readouterr().out


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("spoil, message", [
    (lambda late, offline: (offline / "tokens-test.jsonl").unlink(), "offline/tokens-test.jsonl: no such file"),
    (lambda late, offline: edit(late / "tokens-test.jsonl", '"ja"', '"jo"'), 'late/tokens-test.jsonl: other words of "b"'),
    (lambda late, offline: edit(late / "tokens-test.jsonl", '"b"', '"c"'), 'late/tokens-test.jsonl: nothing on "b"'),
    (lambda late, offline: edit(offline / "recogs-test.txt", "ref=['ja']", "ref=['jo']"), 'ref of "b" differs'),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(two, capsys, spoil, message):
    late, offline = two
    spoil(late, offline)
    assert message in refused(capsys, command.main, "--decode-dir", late, "--baseline-decode-dir", offline)
    assert not (late / "delay-test.json").exists()

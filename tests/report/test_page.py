"""The page of an experiment: what stands in it, and what happens where something is missing or broken."""

import html
import json
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_cases import refused
from lattice_pictures import utterance_lattice
from report_cases import KD, UNFINISHED, make_experiment, metrics_line
from safetensors.numpy import save_file

pytest.importorskip("jinja2", reason="the page needs Jinja2")
pytest.importorskip("matplotlib", reason="the page needs matplotlib")

from rnnt_kd.bin import report  # noqa: E402
from rnnt_kd.report.lattice_data import lattices_dir, write_lattice  # noqa: E402
from rnnt_kd.report.page import make_page  # noqa: E402
from rnnt_kd.report.plots import curves, style  # noqa: E402
from rnnt_kd.report.plots.inline_svg import inline_svg  # noqa: E402
from rnnt_kd.report.plots.scatter import way_of  # noqa: E402
from rnnt_kd.report.read import count_nonzero, inputs, read_finished, read_metrics  # noqa: E402
from rnnt_kd.report.utterances import columns, compare, pieces  # noqa: E402
from rnnt_kd.scoring.recognitions import read_recogs  # noqa: E402
from rnnt_kd.scoring.word_errors import align, count  # noqa: E402


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Made once: to be copied."""
    return make_experiment(tmp_path_factory.mktemp("exp") / "default")


@pytest.fixture
def folder(experiment, tmp_path):
    return shutil.copytree(experiment, tmp_path / "exp" / "default")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of one whole experiment with a lattice."""
    folder = make_experiment(tmp_path_factory.mktemp("exp") / "default")
    write_lattice(lattices_dir(folder, "pruned_taught", "test"), utterance_lattice())
    return page_of(folder)


def page_of(folder):
    return make_page(read_finished(folder))


def test_an_export_that_failed_its_check_is_named(folder):
    check = folder / "export" / "pruned.failed" / "check.json"
    check.parent.mkdir(parents=True)
    check.write_text("{}")
    assert re.search(
        r'class="problem"[^>]*>Not shown: an export of pruned: the last one failed its check', page_of(folder)
    )
    assert check in inputs(folder)[0]


def states(text):
    return dict(re.findall(r'data-system="(\w+)".*?<td>([^<]*)</td></tr>', text))


def change_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_a_page_is_made_of_an_experiment_that_has_nothing_yet(folder):
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "experiment.json":
            path.unlink()
    text = page_of(folder)
    for sentence in ("No distilled system", "Nothing is scored", "No lattices", "no teacher's cache", "No training"):
        assert sentence in text
    assert len(states(text)) == 6 and set(states(text).values()) == {"not in summary.json (stage 7)"}


def test_half_finished_systems_are_shown_as_such(page):
    found = states(page)
    assert found.pop(UNFINISHED) == "not trained to the end" and set(found.values()) == {"finished"}


def test_role_twin_and_kind_are_those_of_the_file_whatever_the_names_are(folder):
    def systems():
        return {system.name: (system.kind, system.twin) for system in read_finished(folder).systems}

    assert systems() == {
        "tutor": ("teacher", ""), "pruned": ("plain", ""), "pruned_taught": ("kd", "pruned"),
        "pruned_less": ("plain", ""), "little": ("plain", ""), "little_taught": ("online", "little"),
    }  # fmt: skip
    path = folder / "experiment.json"
    renamed = path.read_text().replace('"pruned_taught"', '"sparse90"').replace('"pruned"', '"sparse95_kd_online"')
    path.write_text(renamed)
    assert systems()["sparse95_kd_online"] == ("plain", "") and systems()["sparse90"] == ("kd", "sparse95_kd_online")


def test_several_seeds_have_mean_spread_and_both_ps_and_the_first_seed_is_named(tmp_path, page):
    text = page_of(make_experiment(tmp_path / "exp" / "default", seeds=(2, 1)))
    for shown in (
        *("± 0.50", 'data-value="0.0123"', 'data-value="0.2345"', "p, these trainings", "p, seeds too"),
        *("Dots: single seeds", "Seed 2 alone", "the first of each system is shown"),
    ):
        assert shown in text
    assert "p, these two trainings" in page and "seeds too" not in page and "Seed 1 alone" not in page


@pytest.mark.parametrize("broken", ["sizes.json", "summary.json", "results.json", "pruned/seed1/model.safetensors"])
def test_a_broken_file_is_named_and_the_rest_is_shown(folder, broken):
    (folder / broken).write_text('[{"a": ')
    text = page_of(folder)
    assert re.search(rf'class="problem"[^>]*>Not shown: [^<]*{re.escape(broken)}', text)
    assert text.count("<svg") > 3


def test_a_broken_lattice_is_named_and_the_others_are_drawn(folder):
    system_dir = lattices_dir(folder, "sparse90_kd", "test")
    for number in (1, 2):
        write_lattice(system_dir, utterance_lattice(number, utterance=f"spk1-utt0{number}", order=number))
    (system_dir / "spk1-utt02.npz").write_bytes(b"no")
    text = page_of(folder)
    assert text.count('class="card lattice"') == 1 and "data:audio/mpeg;base64," in text
    assert re.search(r'class="problem"[^>]*>Not shown: [^<]*spk1-utt02', text)


def test_words_cannot_become_markup_and_nothing_is_loaded_from_elsewhere(page):
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    links = re.findall(r"(?:src|href|action|poster|data)\s*=\s*[\"']([^\"']*)|url\(([^)]*)\)|@import\s+(\S+)", page)
    assert links and all("".join(link).startswith(("#", "data:", '"#', "&quot;#")) for link in links)
    outside = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_no_torch_is_needed(folder, root):
    write_lattice(lattices_dir(folder, "pruned_taught", "test"), utterance_lattice())
    program = "import sys; sys.modules['torch'] = None; from rnnt_kd.bin.report import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin")}
    line = [sys.executable, "-c", program, "--experiment-dir", str(folder)]
    result = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert 'class="card lattice"' in (folder / "report" / "index.html").read_text()


def test_a_second_run_skips_and_a_new_score_runs_again(folder, capsys):
    arguments = ["--experiment-dir", str(folder)]
    report.main(arguments)
    first = (folder / "report" / "index.html").read_text()
    report.main(arguments)
    assert "finished already, skipped" in capsys.readouterr().out
    change_json(folder / "summary.json", lambda rows: [{**rows[0], "wer": 98.7654}, *rows[1:]])
    report.main(arguments)
    text = (folder / "report" / "index.html").read_text()
    assert "summary.json changed" in capsys.readouterr().out and "98.7654" in text and "98.7654" not in first


def test_no_experiment_is_one_line(tmp_path, capsys):
    said = refused(capsys, report.main, "--experiment-dir", tmp_path / "nowhere")
    assert "nowhere/experiment.json: no such file" in said


def test_other_references_are_named_and_not_compared(folder):
    recogs = folder / "pruned/seed1/decode_test_greedy_search/recogs-test.txt"
    recogs.write_text(recogs.read_text().replace("ref=['", "ref=['OTHER', '", 1))
    text = page_of(folder)
    assert re.search(r'class="problem"[^>]*>Not shown: [^<]* differs from ', text)
    assert 'id="utterance-table"' not in text


def test_zeros_are_counted_in_plain_and_packed_files(tmp_path):
    weights = np.zeros((3, 5), np.float32)
    weights[0, 1] = weights[2, 4] = 7
    save_file({"a.weight": weights, "a.bias": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    bits = {"a.weight:bits": np.packbits(weights.reshape(-1) != 0), "a.weight:values": weights[weights != 0]}
    facts = {"packed_weights": "1", "shapes": '{"a.weight": [3, 5]}'}
    save_file(bits, tmp_path / "model.packed.safetensors", facts)
    for name, expected in (("model", {"a.weight": (2, 15)}), ("model.packed", {"a.weight": (2, 15)}), ("none", {})):
        assert count_nonzero(tmp_path / f"{name}.safetensors") == expected


def test_metrics_of_a_running_training_can_be_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 20}\n\n[1]\n{"kind": "tr')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"kind": "train", "step": 20}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_columns_keep_every_word_in_its_place():
    """Against the texts themselves: each row read from left to right is its hypothesis, the head is the reference."""
    generator = random.Random(1)
    for _ in range(200):
        ref = generator.choices("abc", k=generator.randrange(5))
        hyps = {name: generator.choices("abcd", k=generator.randrange(6)) for name in ("x", "y", "z")}
        head, lines = columns(ref, hyps)
        assert [word for word in head if word] == ref
        for name, line in lines.items():
            assert len(line) == len(head)
            assert [piece.hyp for piece in line if piece.hyp] == hyps[name]
            for word, piece in zip(head, line):
                assert piece.ref == (word if piece.kind in ("sub", "del") or piece.ref else "")
                assert (piece.kind == "ok") == (piece.hyp == word)


def test_pieces_join_what_is_right():
    alignment = [("A", "A"), ("B", "B"), ("C", "D"), ("E", ""), ("", "F"), ("G", "G")]
    assert [(piece.kind, piece.ref, piece.hyp) for piece in pieces(alignment)] == [
        ("ok", "A B", "A B"), ("sub", "C", "D"), ("del", "E", ""), ("ins", "", "F"), ("ok", "G", "G"),
    ]  # fmt: skip


def test_long_test_sets_keep_the_largest_differences(tmp_path, monkeypatch):
    experiment = read_finished(make_experiment(tmp_path / "default", utterances=40))
    (whole,) = compare(experiment, [])
    monkeypatch.setattr("rnnt_kd.report.utterances.MOST_ROWS", 20)  # of two pairs, one of which is not there yet
    (short,) = compare(experiment, [])
    assert len(whole.rows) == 40 and len(short.rows) == 10 and short.left_out == 30
    kept = {row.utterance for row in short.rows}
    least = min(abs(row.difference) for row in short.rows)
    assert all(abs(row.difference) <= least for row in whole.rows if row.utterance not in kept)
    gains = [row.difference for row in whole.rows]
    assert gains == sorted(gains, reverse=True)


def test_events_are_errors_where_the_scorer_counts_them(tmp_path):
    folder = make_experiment(tmp_path / "default", words=["[noise]", "<unk>", "SIX", "ZERO"])
    events = {"[noise]", "<unk>"}

    def errors(system):
        items = read_recogs(folder / system / "seed1" / "decode_test_greedy_search" / "recogs-test.txt")
        without = [[[word for word in words if word not in events] for words in (one.ref, one.hyp)] for one in items]
        return [
            sum(count(align(*words)).errors for words in some) for some in ([(i.ref, i.hyp) for i in items], without)
        ]

    def shown():
        (made,) = compare(read_finished(folder), [])
        return [sum(getattr(row, key) for row in made.rows) for key in ("twin_errors", "errors")]

    twin, taught = errors("pruned"), errors("pruned_taught")
    assert twin[0] > twin[1] and shown() == [twin[0], taught[0]]
    change_json(folder / "experiment.json", lambda about: {**about, "score_events": False})
    assert shown() == [twin[1], taught[1]]


def test_ways_to_distil_are_distinguished():
    changed = [{"scale": 2.0}, {"temperature": 4.0}, {"ranges": "student"}, {"variant": "full"}, {"shift": 2}]
    changed += [{"hears": "original"}, {"hears": "same-view"}, {"hears": "same-view", "features": 1.0}]
    changed.append({"hears": "same-view", "ranges": "student", "in_place": True})
    ways = [None, *({**KD, **change} for change in [{}, {"weighting": "uniform"}, *changed])]
    assert len({way_of(way) for way in ways}) == 12
    assert way_of(ways[-1]) == f"{KD['weighting']}, in place"


def test_two_test_sets_stand_side_by_side(tmp_path):
    text = page_of(make_experiment(tmp_path / "default", test_sets=("clean", "other")))
    assert "%WER, clean" in text and "%WER, other" in text and 'class="one-set"' not in text


def row_of(page, table, system):
    """Cells of a row."""
    rows = re.search(rf'id="{table}".*?</table>', page, re.DOTALL)[0].split("<tr")
    row = next(row for row in rows if f">{system}</th>" in row)
    return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]


def heads_of(page, table):
    head = re.search(rf'id="{table}".*?</thead>', page, re.DOTALL)[0]
    return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<th .*?</th>", head)]


def test_characters_stand_beside_words_where_they_are_counted(tmp_path, page):
    assert "%CER" not in page
    text = page_of(make_experiment(tmp_path / "default", words=["零一", "二三四", "五六七八九"]))
    summary = {row["system"]: row for row in json.loads((tmp_path / "default/summary.json").read_text())}
    figures, twin = (summary[name]["characters"] for name in ("pruned_taught", "pruned"))
    heads, cells = heads_of(text, "system-table"), row_of(text, "system-table", "pruned_taught")
    place = heads.index("%CER")
    expected = [f"{figures['cer']:.2f}", "{:.2f} to {:.2f}".format(*figures["ci95"])]
    assert cells[place : place + 2] == expected and len(heads) == len(cells)
    without, of_pairs = f"{twin['cer']:.2f}", row_of(text, "pairs", "pruned_taught")
    assert of_pairs[heads_of(text, "pairs").index("without, %CER") :][:2] == [without, expected[0]]
    assert of_pairs[-1] == "0.0456" and "%CER, test" in text
    left_out = re.findall(r'<del class="del" title="deletion">−(.*?)</del>', text)
    assert left_out and {len(word) for word in left_out} == {1}


def test_too_few_utterances_are_named_where_the_figures_would_stand(tmp_path, page):
    assert "oo few" not in page
    folder = make_experiment(tmp_path / "default", utterances=19)
    change_json(folder / "summary.json", lambda rows: [{**row, "p_value": None} for row in rows])
    text = page_of(folder)
    assert "Too few to tell: test (19 utterances)." in text
    assert row_of(text, "pairs", "pruned_taught")[-1] == "too few" == row_of(text, "system-table", "tutor")[3]


def test_greedy_search_stands_beside_the_presets(folder):
    assert "greedy, %WER" not in page_of(folder)  # it is the preset's
    change_json(folder / "experiment.json", lambda values: {**values, "search": "modified_beam_search"})
    beam = {"search": "modified_beam_search"}

    def in_all_ways(rows):
        for row in rows:
            figures = {} if row["wer"] is None else {"wer": 77.25, "del_mean": 33.0}
            yield from ({**row, **beam}, {**row, **figures}, {**row, **beam, "token_bonus": "own", "wer": 55.5})

    change_json(folder / "summary.json", lambda rows: [*in_all_ways(rows)])
    text = page_of(folder)
    assert "greedy, %WER" in text and "55.50" not in text
    assert row_of(text, "system-table", "tutor")[8:10] == ["77.25", "33"]
    assert row_of(text, "system-table", UNFINISHED)[8:10] == ["–", "–"]


def test_a_test_set_without_words_has_insertions_and_no_rate(tmp_path):
    folder = make_experiment(tmp_path / "default", words=[])
    text, summary = page_of(folder), json.loads((folder / "summary.json").read_text())
    assert summary[0]["wer"] is None and summary[0]["ins"] > 0
    assert row_of(text, "system-table", "tutor")[2:7] == ["–", "too few", str(summary[0]["ins"]), "0", "0"]
    assert "Too few to tell: test (no words)." in text and "not finished" not in text and "nan" not in text


WRONG = ["x", [], {}, [[]], True, 1e999, 10**400]
READ = {"results.json": ["system", "seed", "test_set", "wer"], "summary.json": [
    "system", "test_set", "search", "token_bonus", "seeds", "unfinished", "characters", "ci95", "wer", "wer_sd", "words", "ins_mean", "p_value", "params", "rtf",
    "relative_change", "delay_ci95_ms",
]}  # fmt: skip
EMPTY = {("seeds", "[]"), ("unfinished", "{}"), ("ci95", "[]"), ("delay_ci95_ms", "[]"), ("characters", "{}")}


@pytest.mark.parametrize("file", READ)
def test_values_of_another_type_are_damage(tmp_path, file):
    """What the page reads, with every kind of value that it cannot show."""
    folder = make_experiment(tmp_path / "default", utterances=2)
    rows, accepted = json.loads((folder / file).read_text()), set()
    for key in READ[file]:
        for value in WRONG:
            (folder / file).write_text(json.dumps([*rows[:2], {**rows[2], key: value}, *rows[3:]]))
            if not any(file in problem for problem in read_finished(folder).problems):
                accepted.add((key, str(value)))
    assert accepted - EMPTY == {
        (key, "x") for key in ("system", "test_set", "search", "token_bonus") if key in READ[file]
    }
    (folder / file).write_text(json.dumps([*rows[:2], {**rows[2], "system": ["a"]}]))
    assert f"{file}: not what rnnt_kd writes" in page_of(folder)


@pytest.mark.parametrize("lacks", [
    {"ins_mean": None}, {"characters": {"cer": 3.0}}, {"baseline_wer": 5.0, "compared_wer": None, "folds": [1]},
])  # fmt: skip
def test_rows_of_elsewhere_that_lack_figures_are_shown_with_what_they_have(folder, lacks):
    change_json(folder / "summary.json", lambda rows: [{**row, **lacks} for row in rows])
    sizes = [{"system": "pruned", "format": "float32", "bytes": number, "wer": 3.0} for number in (0, 9)]
    (folder / "sizes.json").write_text(json.dumps(sizes))
    text = page_of(folder)
    assert 'data-system="pruned_taught"' in text and "sizes.json: not what rnnt_kd writes" in text


def test_no_script_makes_warnings_and_its_letters_are_text(tmp_path, recwarn):
    words = ["शून्य", "पाँच", "零一", "กขค", "영일", "ﻻ", "שלום", "🎉"]
    folder = make_experiment(tmp_path / "default", words=words)
    tokens = tuple("\u2581" + word for word in words)
    item = utterance_lattice(1, tokens=tokens, ref=tuple(words), utterance="spk0-utt00")
    write_lattice(lattices_dir(folder, "pruned_taught", "test"), item)
    text = page_of(folder)
    assert not [str(warning.message) for warning in recwarn.list if "Glyph" in str(warning.message)]
    assert all(f"{word}</text>" in text for word in words)


def test_folds_are_shown_clean_beside_far_with_the_declared_endpoint_first(tmp_path):
    folder = make_experiment(tmp_path / "exp" / "default", seeds=(1, 2), test_sets=("test", "test_far"))
    figures = {"baseline_wer": 20.0, "relative_change": -12.5, "change_ci95": [-19.5, -4.25], "seen_with_80": 8.75}

    def in_folds(rows):
        for row in rows:
            declared = (row["system"], row["test_set"]) == ("pruned_taught", "test_far")
            row.update(folds=[1, 2, 3], endpoint="Declared before: <far>.", declared=declared, ci95=None)
            if row["system"].endswith("_taught") and row["wer"] is not None:
                row.update(figures)
        return sorted(rows, key=lambda row: row["system"])

    change_json(folder / "summary.json", in_folds)
    text = page_of(folder)
    assert "Declared before: &lt;far&gt;." in text and 'id="pairs"' not in text
    table = re.search(r'<table id="beside">.*?</table>', text, re.DOTALL)[0]
    assert table.index('colspan="6">test<') < table.index('colspan="6">test_far<')
    first = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.DOTALL)[0]
    assert "pruned_taught" in first and first.count("-19.5 to -4.2") == 2 and first.count(" declared</strong>") == 1
    assert first.index("</strong>") > first.index("-19.5 to")  # far, beside clean
    assert 'data-value="8.75"' in text and "<td>1 2 3</td>" in text and "Dots: single seeds of single folds." in text
    alone = make_experiment(tmp_path / "one seed" / "default", test_sets=("test", "test_far"))
    change_json(alone / "summary.json", in_folds)
    text = page_of(alone)
    assert "Dots: single folds." in text and "Lines: 95" not in text


def test_with_without_and_change_are_of_the_seeds_that_both_have(folder):
    def half_finished(rows):
        for row in rows:
            if (row["system"], row["test_set"]) == ("pruned_taught", "test"):
                row.update(wer=13.0, seeds=[1, 2, 3], compared_seeds=[1], compared_wer=10.0, baseline_wer=12.0)
                row.update(relative_change=-100 / 6)
        return rows

    change_json(folder / "summary.json", half_finished)
    text = page_of(folder)
    pairs = re.search(r'<table[^>]* id="pairs".*?</table>', text, re.DOTALL)[0]
    cells = re.sub(r"<[^>]*>", "|", re.search(r"<tr><th[^>]*>pruned_taught.*?</tr>", pairs, re.DOTALL)[0])
    assert re.search(r"pruned_taught \(seeds 1\)\s*\|+test\|+12\.00\|+10\.00\|+▼ -16\.7\|", cells)
    assert "<td>pruned (seeds 1)</td>" in text and 'data-value="13.0"' in text


def test_names_and_ticks_in_pictures_are_as_they_were_written():
    names = ["kd_scale0.125", "kd_scale0.1234", 'x id="z" font-size: 10px; #0a0b01']
    figure, ax = style.bar_axes(names, right=20)
    for place, value in enumerate((0.0004, 0.0016, 0.0054)):
        ax.barh(place, value)
    ax.set_xticks([0.0005, 0.0015])
    svg = inline_svg(figure.figure, "salt", "label")
    written = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert {*names, "0.0005", "0.0015"} <= set(written)
    assert not re.search(r"\d\.\d{3,}", re.sub(r">[^<]*<", "><", svg))  # coordinates are short


@pytest.mark.parametrize("lines", [100, 1000, 3000])
def test_curves_leave_out_the_first_twentieth_alone_however_long_the_training(folder, lines):
    values = [{**metrics_line(20 * (step + 1)), "loss": 10.5 - 10 * step / lines} for step in range(lines)]
    path = folder / "pruned" / "seed1" / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in values))
    (system,) = [one for one in read_finished(folder).systems if one.name == "pruned"]
    figure, _ = curves._panels([system], ["loss"])
    assert 9.5 < figure.figure.axes[0].get_ylim()[1] < 11.5

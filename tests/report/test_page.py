"""The page of an experiment: what stands in it, and what happens where something is missing or broken."""

import json
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from lattice_pictures import utterance_lattice
from report_cases import make_decoding, make_experiment, make_study, make_system
from safetensors.numpy import save_file

from rnnt_kd.scoring.recognitions import Recognition

pytest.importorskip("jinja2", reason="the page needs Jinja2")
pytest.importorskip("matplotlib", reason="the page needs matplotlib")

from rnnt_kd.bin import report  # noqa: E402
from rnnt_kd.report.lattice_data import lattices_dir, write_lattice  # noqa: E402
from rnnt_kd.report.page import make_page  # noqa: E402
from rnnt_kd.report.plots.scatter import way_of  # noqa: E402
from rnnt_kd.report.read import count_nonzero, read_experiment, read_metrics  # noqa: E402
from rnnt_kd.report.utterances import columns, compare, pieces  # noqa: E402


def page_of(folder, test_sets=("test",), **more):
    return make_page(read_experiment(folder, "synth", test_sets, **more), folder)


def test_a_page_is_made_of_nothing_at_all(tmp_path):
    text = page_of(tmp_path)
    for sentence in (
        "No distilled system",
        "Nothing is scored yet",
        "No lattices",
        "no teacher's cache",
        "No training",
    ):
        assert sentence in text
    assert "missing, not trained" in text


def test_half_finished_systems_are_shown_as_such(tmp_path):
    make_experiment(tmp_path)
    (tmp_path / "students" / "small" / "decode_test_greedy_search" / "wer-test.json").unlink()
    text = page_of(tmp_path, expected=["sparse60"])
    states = dict(re.findall(r'data-system="(\w+)".*?<td>([^<]*)</td></tr>', text))
    assert states == {
        "teacher": "finished", "sparse60": "missing, not trained", "sparse90": "finished", "sparse90_kd": "finished",
        "small": "decoded, not scored", "small_kd": "training is not finished",
    }  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [
        "sizes.json",
        "experiments/paper/summary.json",
        "students/sparse90/config.yaml",
        "students/sparse90/model.safetensors",
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(tmp_path, broken):
    make_study(make_experiment(tmp_path))
    (tmp_path / broken).write_text('[{"a": ')
    text = page_of(tmp_path)
    assert re.search(rf'class="problem"[^>]*>Not shown: [^<]*{re.escape(broken)}', text)
    assert text.count("<svg") > 3


def test_a_broken_lattice_is_named_and_the_others_are_drawn(tmp_path):
    make_experiment(tmp_path)
    folder = lattices_dir(tmp_path, "sparse90_kd", "test")
    for number in (1, 2):
        write_lattice(folder, utterance_lattice(number, utterance=f"spk1-utt0{number}", order=number))
    (folder / "spk1-utt02.npz").write_bytes(b"no")
    text = page_of(tmp_path)
    assert text.count('class="card lattice"') == 1 and "data:audio/mpeg;base64," in text
    assert re.search(r'class="problem"[^>]*>Not shown: [^<]*spk1-utt02', text)
    assert 'href="#lattice-sparse90_kd-test-spk1-utt01"' in text and 'id="lattice-sparse90_kd-test-spk1-utt01"' in text


def test_words_cannot_become_markup(tmp_path):
    text = page_of(make_experiment(tmp_path))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    make_study(make_experiment(tmp_path))
    write_lattice(lattices_dir(tmp_path, "sparse90_kd", "test"), utterance_lattice())
    text = page_of(tmp_path)
    links = re.findall(r"(?:src|href|action|poster|data)\s*=\s*[\"']([^\"']*)|url\(([^)]*)\)|@import\s+(\S+)", text)
    assert {re.sub(r"[\"']", "", "".join(link))[:1] for link in links} <= {"#", "d"}
    assert all("".join(link).startswith(("#", "data:", '"#', "&quot;#")) for link in links)
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_no_torch_is_needed(tmp_path, root):
    make_experiment(tmp_path)
    program = "import sys; sys.modules['torch'] = None; from rnnt_kd.bin.report import main; main()"
    arguments = ["--exp-dir", str(tmp_path), "--test-sets", "test", "--corpus", "synth"]
    environment = {**os.environ, "PYTHONPATH": str(root / "plugin")}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report" / "index.html").stat().st_size > 10000


def test_a_second_run_skips_and_a_new_score_runs_again(tmp_path, capsys):
    make_experiment(tmp_path)
    arguments = ["--exp-dir", str(tmp_path), "--test-sets", "test"]
    report.main(arguments)
    first = (tmp_path / "report" / "index.html").read_text()
    capsys.readouterr()
    report.main(arguments)
    assert "finished already, skipped" in capsys.readouterr().out
    path = tmp_path / "students" / "small" / "decode_test_greedy_search" / "wer-test.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wer": 98.7654}))
    report.main(arguments)
    text = (tmp_path / "report" / "index.html").read_text()
    assert "wer-test.json changed" in capsys.readouterr().out and "98.7654" in text and "98.7654" not in first


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--exp-dir", "nowhere", "--test-sets", "test"], "nowhere: no such folder"),
        (["--exp-dir", ".", "--test-sets", " "], "--test-sets: empty"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        report.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 1 and expected in error and error.count("\n") == 1


def test_other_references_are_named_and_not_compared(tmp_path):
    make_experiment(tmp_path)
    recogs = tmp_path / "students" / "sparse90" / "decode_test_greedy_search" / "recogs-test.txt"
    recogs.write_text(recogs.read_text().replace("ref=['", "ref=['OTHER', '", 1))
    text = page_of(tmp_path)
    assert "the same test set" in text and 'id="utterance-table"' not in text


def test_zeros_are_counted_in_plain_and_packed_files(tmp_path):
    weights = np.zeros((3, 5), np.float32)
    weights[0, 1] = weights[2, 4] = 7
    save_file({"a.weight": weights, "a.bias": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    assert count_nonzero(tmp_path / "model.safetensors") == {"a.weight": (2, 15)}
    bits, values = np.packbits(weights.reshape(-1) != 0), weights[weights != 0]
    packed = tmp_path / "model.packed.safetensors"
    save_file(
        {"a.weight:bits": bits, "a.weight:values": values},
        packed,
        {"packed_weights": "1", "shapes": '{"a.weight": [3, 5]}'},
    )
    assert count_nonzero(packed) == {"a.weight": (2, 15)}
    assert count_nonzero(tmp_path / "none.safetensors") == {}


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
    make_experiment(tmp_path, utterances=40)
    whole = compare(read_experiment(tmp_path, "synth", ["test"]), [])
    monkeypatch.setattr("rnnt_kd.report.utterances.MOST_ROWS", 20)  # of two pairs, one of which is not there yet
    (short,) = compare(read_experiment(tmp_path, "synth", ["test"]), [])
    assert len(whole[0].rows) == 40 and len(short.rows) == 10 and short.left_out == 30
    kept = {row.utterance for row in short.rows}
    least = min(abs(row.difference) for row in short.rows)
    assert all(abs(row.difference) <= least for row in whole[0].rows if row.utterance not in kept)
    gains = [row.difference for row in whole[0].rows]
    assert gains == sorted(gains, reverse=True)


def test_ways_to_distil_are_told_apart():
    usual = {
        "kd": True,
        "kd_variant": "collapsed",
        "kd_weighting": "occupancy",
        "kd_scale": 1.0,
        "kd_ranges": "teacher",
        "kd_temperature": 1.0,
    }
    changed = [
        {"kd": False},
        {"kd_scale": 2.0},
        {"kd_temperature": 4.0},
        {"kd_ranges": "student"},
        {"kd_variant": "full"},
        {"kd_weighting": "uniform"},
    ]
    assert len({way_of({**usual, **change}) for change in [{}, *changed]}) == 7


def test_two_test_sets_stand_side_by_side(tmp_path):
    make_system(tmp_path / "teacher", "teacher", 0.0, 80)
    for test_set, hyp in (("clean", ("A",)), ("other", ("A", "B"))):
        make_decoding(tmp_path / "teacher", [Recognition("s-1", ("A", "B"), hyp)], test_set=test_set)
    text = page_of(tmp_path, ("clean", "other"))
    assert "%WER on clean" in text and "%WER on other" in text and 'data-value="50.0"' in text

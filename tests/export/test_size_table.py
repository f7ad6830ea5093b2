"""The table of sizes: bytes as on the disk, words as recognised, every format of every system."""

import gzip
import json
import shutil
from dataclasses import replace

import pytest
import torch
from command_cases import refused
from experiment_cases import write_experiment
from export_cases import right_integers
from torch.nn.utils.rnn import pad_sequence

from rnnt_kd.bin import size_table as command
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.export import size_table
from rnnt_kd.export.check_client import word_errors
from rnnt_kd.export.client import ClientResult
from rnnt_kd.export.model_json import ONNX_FILES
from rnnt_kd.export.size_table import recognise_onnx, recognise_torch, write_formats
from rnnt_kd.files import DATA_ROOTS
from rnnt_kd.models.encoders import conformer
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.results import score
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def experiment(workplace, tmp_path_factory):
    """EXP_DIR/default with a dense teacher and a sparse student, both of them exported, and one that is not; its data
    are allowed."""
    folder = tmp_path_factory.mktemp("exp") / "default"
    for name, source in (("teacher", "dense"), ("thin", "sparse"), ("unexported", "sparse")):
        shutil.copytree(workplace / "systems" / source, folder / name / "seed3")
    for name in ("teacher", "thin"):
        (folder / "export" / name).mkdir(parents=True)
    shutil.copytree(workplace / "bpe", folder.parent / "bpe")
    student = {"role": "sparse_student"}
    systems = {"teacher": {"role": "teacher"}, "thin": student, "unexported": student}
    write_experiment(folder, systems, (3, 1), {"test": workplace / "data"}, "modified_beam_search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_ROOTS, json.dumps([str(workplace)]))
        yield folder


def test_a_data_directory_elsewhere_is_refused_where_the_user_does_not_name_it(experiment, capsys, monkeypatch):
    monkeypatch.setenv(DATA_ROOTS, "[]")
    said = refused(capsys, command.main, "--experiment-dir", str(experiment))
    assert f"experiment.json: names {experiment.parents[1]}" in said and "--data-root" in said


@pytest.fixture(scope="module")
def speech(workplace):
    return list(read_speech(workplace / "data"))


@pytest.fixture(scope="module")
def features(speech):
    return [filter_banks(item.samples) for item in speech]


@pytest.fixture(scope="module")
def tokenizer(workplace):
    return Tokenizer.load(workplace / "bpe")


@pytest.fixture(scope="module")
def table(experiment):
    """The command's two files, written once."""
    command.main(["--experiment-dir", str(experiment)])
    rows = json.loads((experiment / "sizes.json").read_text())
    return {(row["system"], row["format"]): row for row in rows}, (experiment / "sizes.md").read_text()


@pytest.mark.parametrize("search", ["fast_beam_search", "greedy_search", "modified_beam_search"])
def test_onnxruntime_in_our_search_says_what_torch_says(workplace, exported, features, tokenizer, search):
    if search == "fast_beam_search":
        pytest.importorskip("k2", reason="k2 is not in this environment")
    model, _ = load_system(workplace / "systems" / "dense")
    lens = torch.tensor([len(matrix) for matrix in features])
    with torch.no_grad():
        encoder_out, out_lens = model.encode(pad_sequence(features, batch_first=True), lens)
    found = get_search(search)(model, encoder_out, out_lens, beam=4)
    expected = [tokenizer.decode(best.tokens) for (best,) in found]
    assert any(expected)
    assert recognise_torch(model, features, tokenizer, search, 4) == expected
    texts, seconds = recognise_onnx(exported, features, tokenizer, search, 4)
    assert texts == expected and seconds > 0


@right_integers
def test_an_int8_encoder_does_not_hear_the_other_utterances(workplace, features, tokenizer, tmp_path):
    """One scale for a whole batch would make a text depend on its neighbours."""
    write_formats(load_system(workplace / "systems" / "dense")[0], tmp_path, ["int8"])
    settings = tokenizer, "greedy_search", 4
    together, _ = recognise_onnx(tmp_path / "int8", features, *settings)
    assert together == [recognise_onnx(tmp_path / "int8", [matrix], *settings)[0][0] for matrix in features]


def test_every_exported_system_has_every_format_with_its_bytes_on_the_disk(table, experiment, exported):
    rows, _ = table
    assert list(rows) == [(name, form) for name in ("teacher", "thin") for form in size_table.FORMATS]
    contents = [(exported / name).read_bytes() for name in ONNX_FILES]
    row = rows["teacher", "float32"]
    assert row["bytes"] == sum(map(len, contents)) and row["ratio"] == 1
    assert row["gzip_bytes"] == sum(len(gzip.compress(content, 9, mtime=0)) for content in contents)
    for system in ("teacher", "thin"):
        content = (experiment / system / "seed3" / "model.safetensors").read_bytes()
        assert rows[system, "safetensors"]["bytes"] == len(content)
        assert rows[system, "safetensors"]["gzip_bytes"] == len(gzip.compress(content, 9, mtime=0))
    for (_, _), other in rows.items():
        assert other["ratio"] == pytest.approx(row["bytes"] / other["bytes"], abs=1e-3)
        assert other["gzip_ratio"] == pytest.approx(row["bytes"] / other["gzip_bytes"], abs=1e-3)


def test_what_zeros_are_worth(table):
    size = {key: row["bytes"] for key, row in table[0].items()}
    for plain, sparse in (
        ("float32", "sparse"),
        ("float16", "sparse float16"),
        ("int8", "sparse int8"),
        ("int4", "sparse int4"),
    ):
        assert size["thin", sparse] < size["thin", plain] == size["teacher", plain] == size["teacher", sparse]
    assert size["thin", "sparse"] < 0.6 * size["thin", "float32"]
    assert size["thin", "sparse"] < size["thin", "sparse_initializer"] < size["thin", "float32"]
    assert size["thin", "packed safetensors"] < size["thin", "safetensors"]


def test_words_are_counted_and_exact_formats_recognise_the_same(table, workplace, speech, features, tokenizer):
    rows, _ = table
    model, _ = load_system(workplace / "systems" / "sparse")
    texts = recognise_torch(model, features, tokenizer, "modified_beam_search", 4)
    pairs = [
        size_table.Recognition(item.id, tuple(item.text.split()), tuple(text.split()))
        for item, text in zip(speech, texts, strict=True)
    ]
    counts = count_all(pairs)
    for form in ("float32", "sparse", "sparse_initializer", "safetensors", "packed safetensors"):
        row = rows["thin", form]
        assert (row["ins"], row["del"], row["sub"]) == (counts.ins, counts.dels, counts.subs), form
        assert row["words"] == counts.words and row["changed"] == 0
        assert row["p_value"] == (1 if len(speech) >= 20 else None)
    for form in ("int8", "int4", "float16"):
        for key in ("wer", "ins", "del", "sub", "p_value", "changed"):
            assert rows["thin", form][key] == rows["thin", f"sparse {form}"][key]


def test_the_table_for_people_has_the_same_figures(table):
    rows, text = table
    lines = [line for line in text.split("\n") if line.startswith(("| teacher", "| thin"))]
    assert len(lines) == len(rows)
    for line, ((system, form), row) in zip(lines, rows.items(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:3] == [system, form, str(row["bytes"])] and cells[4] == str(row["gzip_bytes"])
        assert cells[6] == f"{row['wer']:.2f}"
    assert "    python -m rnnt_kd.bin.size_table --experiment-dir " in text


@pytest.mark.parametrize("text, score_events, words, characters", [
    ("a [noise] b", True, 3, None), ("a [noise] b", False, 2, None), ("\u4f60\u597d \u4e16\u754c", True, 2, 4),
])  # fmt: skip
def test_what_counts_is_what_the_summary_counts(workplace, speech, features, text, score_events, words, characters):
    """Here and in the check of the export."""
    spoken = [replace(speech[0], text=text)]
    folders = workplace / "systems" / "dense", workplace / "bpe"
    rows = size_table.measure_system(
        "x", *folders, spoken, search="greedy_search", beam=1, features=features[:1], score_events=score_events
    )
    expected = score(words_counted([Recognition("u", tuple(text.split()), ())], score_events), utt2spk={})
    assert {row["words"] for row in rows} == {expected["words"]} == {words}
    assert all((row["cer"] is None) == (characters is None) for row in rows)
    assert (expected["characters"] or {}).get("characters") == characters
    size_table.add_ratios(rows, 1)
    assert ("%CER" in size_table.markdown(rows, "", "")) == (characters is not None)
    tokens = [[ClientResult("", ["\u2581" + word for word in text.split()], [])]]
    found = word_errors(spoken, tokens, tokens, score_events=score_events)
    assert found["errors"] == {"words": words, "ins": 0, "del": 0, "sub": 0}


def test_a_system_whose_export_failed_its_check_is_named(experiment, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(experiment.parent, tmp_path / "exp") / "default"
    monkeypatch.setattr(size_table, "measure_system", lambda name, *args, **options: [
        {"system": name, "format": "float32", "bytes": 1, "gzip_bytes": 1}
    ])  # fmt: skip
    line = ["--experiment-dir", str(folder)]
    command.main(line)
    assert "failed" not in capsys.readouterr().out
    (folder / "export" / "unexported.failed").mkdir()
    (folder / "export" / "unexported.failed" / "check.json").write_text("{}")
    command.main(line)
    assert "export/SYSTEM.failed/check.json): unexported." in capsys.readouterr().out


def test_a_second_run_skips_moved_or_not_and_a_changed_system_runs_again(
    table, experiment, capsys, monkeypatch, tmp_path
):
    def never(*args, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(size_table, "measure_system", never)
    moved = shutil.copytree(experiment.parent, tmp_path / "moved") / experiment.name
    for folder in (experiment, moved):
        argv = ["--experiment-dir", str(folder)]
        command.main(argv)
        printed = capsys.readouterr().out
        assert "finished already, skipped" in printed and table[1] in printed
    with pytest.raises(AssertionError, match="measured again"):
        command.main([*argv, "--beam", "2"])


def test_random_models_are_measured_in_bytes(monkeypatch):
    """A small one here; what is compared with what is the same at any size."""
    monkeypatch.setitem(conformer.SIZES, "S", dict(conformer.SIZES["tiny"], num_layers=1))
    found = {}
    for sparsity, structure in ((0.0, "unstructured"), (0.9, "unstructured"), (0.9, "16x1")):
        for row in size_table.measure_random("conformer", "S", sparsity, structure, vocab_size=20):
            found.setdefault(row["system"], {})[row["format"]] = row["bytes"]
    assert list(found) == ["random S", "random S 90%", "random S 90% 16x1"]
    dense, sparse, blocks = found.values()
    assert dense["float32"] == sparse["float32"] == blocks["float32"]
    assert blocks["sparse int8"] < sparse["sparse int8"] < 0.4 * sparse["int8"]
    assert sparse["int4"] < 0.65 * sparse["int8"] and sparse["sparse int4"] < 0.9 * sparse["sparse int8"]


@pytest.mark.parametrize("more, message", [
    (["--systems", ""], "--systems: ''; expected one or more names"),
    (["--systems", "teacher teacher"], "each once"),
    (["--systems", "../teacher"], "no system '../teacher'; expected of: teacher, thin"),
    (["--test-set", "other"], "no test set 'other'; expected of: test"),
    (["--beam", "0"], "--beam: 0; expected 1 or more"),
    (["--random-sizes", "XXL"], "XXL"),
    (["--random-sizes", "tiny", "--random-sparsity", "1"], "1.0"),
    (["--random-sizes", "tiny", "--random-structure", "odd"], "odd"),
])  # fmt: skip
def test_bad_input_is_one_line(experiment, capsys, tmp_path, more, message):
    given = ["--experiment-dir", experiment, "--json", tmp_path / "sizes.json", *more]
    assert message in refused(capsys, command.main, *given)


def test_an_experiment_without_export_is_one_line(experiment, tmp_path, capsys):
    shutil.copy(experiment / "experiment.json", tmp_path)
    said = refused(capsys, command.main, "--experiment-dir", tmp_path)
    assert "export: no system of the experiment is exported" in said
    line = ["--experiment-dir", str(tmp_path), "--systems", "thin"]
    assert "teacher/seed3: no trained system here" in refused(capsys, command.main, *line)

"""``python -m rnnt_kd.bin.export``: whole or absent, run by sherpa-onnx as written, skipped when nothing changed."""

import dataclasses
import json
import shutil

import export_cases as cases
import pytest
import sentencepiece
import torch
from command_cases import refused
from export_cases import recognised, right_integers, run_readme

from rnnt_kd.bin import export
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding import greedy_search, modified_beam_search
from rnnt_kd.export import check, check_client, client
from rnnt_kd.export.check import CHECK
from rnnt_kd.export.check_client import compare
from rnnt_kd.export.export_system import export_system
from rnnt_kd.export.graphs import TRAINING_ONLY
from rnnt_kd.export.import_back import import_export as import_back
from rnnt_kd.export.model_json import FILES, read_manifest
from rnnt_kd.export.onnx_file import session
from rnnt_kd.systems.store import load_system, read_tensors, write_tensors


@pytest.fixture
def system(workplace, tmp_path):
    """A copy to change."""
    return shutil.copytree(workplace / "systems" / "dense", tmp_path / "dense")


@pytest.fixture
def argv(workplace, system, tmp_path):
    """Export ``system`` into out/ of ``tmp_path``."""
    return [str(part) for part in (system, "--bpe-dir", workplace / "bpe", "--out", tmp_path / "out")]


@pytest.fixture(scope="module")
def expected(workplace):
    """search -> what our decoder says of data/."""
    model, _ = load_system(workplace / "systems/dense")
    searches = greedy_search, modified_beam_search
    return {search: [text for _, text in recognised(model, workplace, search)] for search in searches}


@pytest.fixture
def deaf(monkeypatch):
    """A client that hears utterances otherwise: index -> text, where ``when(options)``."""

    def make(index, text, when=lambda options: True):
        recognize = client.recognize

        def recognized(folder, audio, **options):
            results = recognize(folder, audio, **options)
            if when(options):
                results[index] = dataclasses.replace(results[index], text=text)
            return results

        monkeypatch.setattr(client, "recognize", recognized)

    return make


def test_the_folder_holds_what_sherpa_onnx_needs_and_no_more(exported):
    assert {path.name for path in exported.iterdir()} == {*FILES, "model.json", CHECK}
    assert not list(exported.parent.glob(".*.tmp"))


def test_sherpa_onnx_says_what_our_decoder_says(exported, workplace, expected):
    samples = [item.samples for item in read_speech(workplace / "data")]
    for search, texts in expected.items():
        assert len(set(texts)) >= 4 and any(texts)  # the random system says different things
        for batch_size in (1, 4):
            name = search.__name__.rpartition(".")[2]
            found = client.recognize(exported, samples, search=name, beam=4, batch_size=batch_size)
            assert [result.text.strip() for result in found] == [text.strip() for text in texts]


def test_the_commands_of_the_readme_run(folder, workplace, expected):
    item = list(read_speech(workplace / "data"))[3]
    assert run_readme(folder, item.samples) == expected[modified_beam_search][3].strip()


def test_a_hot_word_is_heard_where_it_was_not(folder, workplace):
    """By the README's line: sherpa-onnx spells it with the pieces of bpe.vocab."""
    readme = folder / "README.md"  # the beam of a random model must be wide
    readme.write_text(readme.read_text().replace("max_active_paths=4", "max_active_paths=16"))
    samples = next(item.samples for item in read_speech(workplace / "data") if item.id == "b-1")
    without, heard, unknown = (run_readme(folder, samples, phrases) for phrases in ("", "one :9\n", "xyz :9\n"))
    assert "one" not in without and "one" in heard.split() and unknown == without


def test_the_scores_of_the_pieces_are_sentencepieces(exported):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(exported / "bpe.model"))
    lines = (exported / "bpe.vocab").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [processor.id_to_piece(i) for i in range(len(lines))]
    assert [float(line.split("\t")[1]) for line in lines] == [processor.get_score(i) for i in range(len(lines))]


def test_a_second_run_is_skipped_and_a_change_runs_again(argv, system, tmp_path, capsys):
    out = tmp_path / "out"

    def run():
        export.main(argv)
        return capsys.readouterr().out

    (tmp_path / "out.failed").mkdir()
    assert "0 of 4 utterances differ" in run() and not (tmp_path / "out.failed").exists()
    written = (out / "encoder.onnx").stat().st_mtime_ns
    assert "finished already, skipped" in run() and (out / "encoder.onnx").stat().st_mtime_ns == written
    (out / "tokens.txt").unlink()
    assert "tokens.txt is missing" in run() and (out / "tokens.txt").exists()
    assert json.loads((out / "model.json").read_text())["wer"] == []

    tensors = read_tensors(system / "model.safetensors")
    tensors["joiner.output_linear.bias"][3] += 1
    write_tensors(system / "model.safetensors", tensors)
    score = {"test_set": "test", "search": "greedy_search", "beam": 4, "wer": 12.5, "errors": 1, "words": 8}
    score.update({"ins": 1, "del": 0, "sub": 0, "utterances": 3, "ci95": [0, 25], "speakers": ["x"]})
    (system / "decode_x").mkdir()
    (system / "decode_x" / "wer-test.json").write_text(json.dumps(score))
    assert "model.safetensors changed" in run()
    score.pop("speakers")
    assert json.loads((out / "model.json").read_text())["wer"] == [score]
    assert "| test | greedy_search, beam 4 | 12.50 | 8 | 1 | 0 | 0 |" in (out / "README.md").read_text()


def test_a_difference_fails_is_listed_and_leaves_the_older_export(argv, exported, tmp_path, capsys, deaf):
    shutil.copytree(exported, tmp_path / "out")
    deaf(2, "something else", lambda options: (options["search"], options["batch_size"]) == ("greedy_search", 1))
    with pytest.raises(SystemExit) as ended:
        export.main(argv)
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "noise-2 (greedy_search, batches of 1): text 'something else' from sherpa-onnx" in said.out
    assert "sherpa-onnx and rnnt_kd differ 1 times" in said.err and "out.failed" in said.err
    (listed,) = json.loads((tmp_path / "out.failed" / CHECK).read_text())["differences"]
    assert (listed["utterance"], listed["what"], listed["sherpa_onnx"]) == ("noise-2", "text", "something else")
    assert (tmp_path / "out" / "model.json").read_bytes() == (exported / "model.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "out", "out.failed"}


def test_without_the_check_nothing_is_verified_and_it_is_said(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "verify_static", lambda folder: pytest.fail("verified"))
    (tmp_path / "out.failed").mkdir()
    export.main([*argv, "--no-check"])
    assert "not verified" in capsys.readouterr().out and read_manifest(tmp_path / "out")["check"] == {}
    assert (tmp_path / "out.failed").exists()  # until one that holds


def test_a_failure_is_kept_with_its_reason(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rnnt_kd.export.check_client.FEATURE_TOLERANCE", -1.0)
    assert "features differ by" in refused(capsys, export.main, *argv)
    assert "features differ by" in json.loads((tmp_path / "out.failed" / CHECK).read_text())["fault"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed, what, decides", [
    ({}, [], 0),
    ({"text": "AB C"}, ["blanks"], 0),  # a client of another version may set them otherwise
    ({"text": "A B D"}, ["text"], 1),
    ({"tokens": [" A", " BC"]}, ["tokens"], 1),
    ({"timestamps": [0.0, 0.08]}, ["times"], 1),
])  # fmt: skip
def test_tokens_times_and_letters_decide_and_blanks_do_not(changed, what, decides):
    ours = client.ClientResult("A B C", [" A", " B C"], [0.0, 0.04])
    found = compare("utterance", "greedy_search", 1, [ours], [dataclasses.replace(ours, **changed)])
    assert [one.what for one in found] == what and [one.decides for one in found] == [True] * decides + [False] * (
        len(what) - decides
    )


@pytest.mark.parametrize("frame, tie", [(1, True), (2, False)])
def test_a_result_that_the_tolerated_features_may_give_is_a_tie(monkeypatch, frame, tie):
    def found_on(model, tokenizer, features, search, batch_size):
        assert features[0].abs().max() <= check_client.FEATURE_TOLERANCE
        return [client.ClientResult("A", [" A"], [0.04 * float(features[0].mean() > 0)])]

    monkeypatch.setattr(check_client, "recognise", found_on)
    theirs = client.ClientResult("A", [" A"], [0.04 * frame])
    assert check_client.is_tie(None, None, torch.zeros(10, 80), "greedy_search", [theirs]) == tie
    assert not check_client.Difference("u", "greedy_search", 1, "tie", "0.04", "0.00").decides


def test_a_killed_export_leaves_nothing_that_looks_like_one(argv, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "recognize", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        export.main(argv)
    assert ended.value.code == 130
    assert {path.name for path in tmp_path.iterdir()} == {"dense"}


def test_systems_that_sherpa_onnx_cannot_run_are_refused(argv, system, tmp_path, capsys):
    config = read_system_config(system / "config.yaml")
    for more, message in (
        (["--streaming"], "looks at the whole utterance; expected a streaming encoder"),
        (
            ["--format", "int8+float16"],
            "--format: 'int8+float16'; expected at most one of float16, int8 and int4, then",
        ),
        (["--format", "sparse+int8"], "'sparse+int8'; expected at most one of float16, int8 and int4, then"),
        (["--format", "int2"], "--format: there is no 'int2'; expected one of: float32, float16, int8, int4, sparse, "),
        (["--target", "sherpa-onx"], "--target: there is no 'sherpa-onx'; expected one of: npu, sherpa-onnx; did you"),
    ):
        assert message in refused(capsys, export.main, *argv, *more)
    for changed, message in (
        ({"blank_id": 3}, "blank_id is 3; expected 0, as in"),
        ({"bpe_checksum": "0" * 64}, "another BPE model"),
    ):
        write_system_config(system / "config.yaml", dataclasses.replace(config, **changed))
        assert message in refused(capsys, export.main, *argv)
    write_system_config(system / "config.yaml", config)
    tensors = read_tensors(system / "model.safetensors")
    tensors["encoder.final_norm.weight"][0] = float("inf")
    write_tensors(system / "model.safetensors", tensors)
    assert "'encoder.final_norm.weight' holds NaN or infinity" in refused(capsys, export.main, *argv)
    (system / "model.safetensors").unlink()
    assert "not trained to the end" in refused(capsys, export.main, *argv)
    assert "no trained system here" in refused(capsys, export.main, str(tmp_path), *argv[1:])
    assert {path.name for path in tmp_path.iterdir()} == {"dense"}


def test_a_folder_of_failures_that_is_nobodys_export_stays(argv, tmp_path, capsys):
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed/notes.txt").write_text("mine")
    assert "out.failed: holds files of something else: notes.txt" in refused(capsys, export.main, *argv)
    assert (tmp_path / "out.failed/notes.txt").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, message", [
    (["--decode-dir", "/nowhere"], "/nowhere: holds no wer-*.json"),
    (["--no-check", "--check-data-dir", "/nowhere"], "--check-data-dir: given with --no-check"),
    (["--blank-penalty", "1e39"], "--blank-penalty: 1e+39; expected a number, 10000 at most"),
])  # fmt: skip
def test_options_that_do_nothing_or_cannot_be_are_refused(argv, capsys, more, message):
    assert message in refused(capsys, export.main, *argv, *more)


@pytest.mark.parametrize("names", ["chapter1.tex", "model.json", "chapter1.tex model.json", ".git/HEAD README.md"])
def test_a_folder_of_something_else_is_not_replaced(argv, tmp_path, capsys, monkeypatch, names):
    for name in names.split():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text('{"modelTopology": 1}')
    first = names.split()[0].partition("/")[0]
    assert f"holds files of something else: {first};" in refused(capsys, export.main, *argv)
    assert all((tmp_path / "out" / name).read_text() == '{"modelTopology": 1}' for name in names.split())
    shutil.rmtree(tmp_path / "out"), (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert ".: the folder that this runs in" in refused(capsys, export.main, *argv[: argv.index("--out") + 1], ".")


@right_integers
def test_rounded_weights_may_differ_and_it_is_listed(workplace, tmp_path, deaf):
    """The export stands, with the differences and both word error rates; float32 would have failed."""
    deaf(1, "one")
    said = []
    options = {"form": "int8+sparse", "check_data_dir": workplace / "data", "say": said.append}
    values = export_system(workplace / "systems" / "sparse", workplace / "bpe", tmp_path / "out", **options)
    assert values["weights"] == "int8" and values["sparse"]
    assert values["check"]["differences_in_text"] >= 4 and any(line.startswith("a-2 (") for line in said)
    listed = json.loads((tmp_path / "out" / CHECK).read_text())["differences"]
    assert sum(item["utterance"] == "a-2" and item["sherpa_onnx"] == "one" for item in listed) == 4
    assert all({"wer_sherpa_onnx", "wer_rnnt_kd", "p_value"} <= set(run) for run in values["check"]["runs"])


def test_a_file_without_its_zeros_recognises_the_same_and_its_weights_come_back(workplace, tmp_path):
    """Differences would have failed it.  That it is smaller, the table of sizes says."""
    out = cases.export(workplace, "sparse", tmp_path / "out", form="sparse", check_data_dir=workplace / "data")
    import_back(out, tmp_path / "system")
    original = read_tensors(workplace / "systems" / "sparse" / "model.safetensors")
    for name, value in read_tensors(tmp_path / "system" / "model.safetensors").items():
        assert name.startswith(TRAINING_ONLY) or torch.equal(value, original[name]), name


@pytest.mark.parametrize("streaming, gone", [(False, 1), (True, 0)])
def test_a_system_without_one_of_its_layers_is_exported_and_comes_back(streaming, gone, workplace, tmp_path):
    """Its graphs and its words are compared with ours by the export itself."""
    widths = [[0] * 4 if number == gone else [3, 20, 17, 9] for number in range(2)]
    encoder, folder = "streaming_conformer" if streaming else "conformer", tmp_path / "system"
    cases.make_system(folder, workplace / "bpe", encoder=encoder, layer_widths=widths, seed=3)
    out = cases.export(workplace, folder, tmp_path / "out", streaming=streaming, check_data_dir=workplace / "data")
    values = read_manifest(out)
    assert values["streaming"] == streaming and values["check"]["utterances"] == 6
    assert values["check"]["differences"] == 0
    import_back(out, tmp_path / "back")
    (ours, _), (theirs, config) = load_system(folder), load_system(tmp_path / "back")
    assert config.model.encoder_options["layer_widths"] == widths
    x, lens = torch.randn(2, 60, 80), torch.tensor([60, 41])
    torch.testing.assert_close(theirs.encode(x, lens)[0], ours.encode(x, lens)[0], atol=1e-5, rtol=1e-5)


def test_a_streaming_system_exports_for_whole_utterances_too(hears, workplace, tmp_path):
    """Then it sees all of the utterance: as our decoder does with full context, not with chunks."""
    data = workplace / "data"
    out = cases.export(workplace, "hears", tmp_path / "out", check_data_dir=data)
    values = read_manifest(out)
    assert not values["streaming"] and values["check"]["utterances"] == 6 and values["check"]["differences"] == 0
    model, _ = load_system(workplace / "systems" / "hears")
    x = filter_banks(list(read_speech(data))[4].samples)[None]
    lens = torch.tensor([x.shape[1]])
    got = session(out / "encoder.onnx").run(None, {"x": x.numpy(), "x_lens": lens.numpy()})[0]
    for chunk, close in ((0, True), (16, False)):
        model.encoder.eval_chunk_frames = chunk
        with torch.no_grad():
            expected = model.joiner.encoder_proj(model.encode(x, lens)[0])
        assert torch.allclose(torch.tensor(got), expected, atol=1e-4) == close


def test_the_bpe_model_of_the_same_experiment_is_found(workplace, system, tmp_path, capsys):
    nested = shutil.copytree(system, tmp_path / "exp" / "students" / "dense")
    out = tmp_path / "out"
    assert "--bpe-dir" in refused(capsys, export.main, str(nested), "--out", str(out))
    shutil.copytree(workplace / "bpe", tmp_path / "exp" / "bpe")
    export.main([str(nested), "--out", str(out)])
    assert (out / "bpe.model").read_bytes() == (workplace / "bpe" / "bpe.model").read_bytes()

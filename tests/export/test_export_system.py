"""``python -m rnnt_kd.bin.export``: whole or absent, run by sherpa-onnx as written, skipped when nothing changed."""

import dataclasses
import json
import shutil

import onnxruntime
import pytest
import torch
from export_cases import error_line, make_system, run_readme

from rnnt_kd.bin import export
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding import greedy_search, modified_beam_search
from rnnt_kd.errors import UserError
from rnnt_kd.export import client
from rnnt_kd.export.export_system import CHECK, export_system
from rnnt_kd.export.graphs import TRAINING_ONLY
from rnnt_kd.export.import_back import import_export as import_back
from rnnt_kd.export.model_json import FILES
from rnnt_kd.systems.store import load_system, read_tensors, write_tensors
from rnnt_kd.text.tokenizer import Tokenizer


@pytest.fixture
def system(workplace, tmp_path):
    """A copy to change."""
    return shutil.copytree(workplace / "systems" / "dense", tmp_path / "dense")


def arguments(workplace, system, out, *more):
    return [str(part) for part in (system, "--bpe-dir", workplace / "bpe", "--out", out, *more)]


def failure(capsys, argv):
    return error_line(capsys, export.main, argv)


def own_texts(system, bpe_dir, data_dir, search):
    """Our decoder, one utterance at a time, written down here again."""
    model, _ = load_system(system)
    tokenizer = Tokenizer.load(bpe_dir)
    texts = []
    for item in read_speech(data_dir):
        x = filter_banks(item.samples)[None]
        with torch.no_grad():
            encoder_out, lens = model.encode(x, torch.tensor([x.shape[1]]))
        texts.append(tokenizer.decode(search.search(model, encoder_out, lens, beam=4)[0][0].tokens))
    return texts


def test_the_folder_holds_what_sherpa_onnx_needs_and_no_more(exported):
    assert {path.name for path in exported.iterdir()} == {*FILES, "model.json", CHECK}
    assert not list(exported.parent.glob(".*.tmp"))


def test_sherpa_onnx_says_what_our_decoder_says(exported, workplace):
    samples = [item.samples for item in read_speech(workplace / "data")]
    for search in (greedy_search, modified_beam_search):
        name = search.__name__.rpartition(".")[2]
        expected = own_texts(workplace / "systems" / "dense", workplace / "bpe", workplace / "data", search)
        assert len(set(expected)) >= 4 and any(expected)  # the random system says different things
        for batch_size in (1, 4):
            found = client.recognize(exported, samples, search=name, beam=4, batch_size=batch_size)
            assert [result.text.strip() for result in found] == [text.strip() for text in expected]


def test_the_commands_of_the_readme_run(folder, workplace):
    item = list(read_speech(workplace / "data"))[3]
    expected = own_texts(workplace / "systems" / "dense", workplace / "bpe", workplace / "data", modified_beam_search)
    assert run_readme(folder, item.samples) == expected[3].strip()


def test_a_second_run_is_skipped_and_a_change_runs_again(system, workplace, tmp_path, capsys):
    argv = arguments(workplace, system, tmp_path / "out")
    export.main(argv)
    assert "0 of 4 utterances differ" in capsys.readouterr().out
    written = (tmp_path / "out" / "encoder.onnx").stat().st_mtime_ns
    export.main(argv)
    assert "finished already, skipped" in capsys.readouterr().out
    assert (tmp_path / "out" / "encoder.onnx").stat().st_mtime_ns == written

    (tmp_path / "out" / "tokens.txt").unlink()
    export.main(argv)
    assert "tokens.txt is missing" in capsys.readouterr().out and (tmp_path / "out" / "tokens.txt").exists()

    tensors = read_tensors(system / "model.safetensors")
    tensors["joiner.output_linear.bias"][3] += 1
    write_tensors(system / "model.safetensors", tensors)
    export.main(argv)
    assert "model.safetensors changed" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out" / "model.json").read_text())["wer"]) == 0

    score = {"test_set": "test", "search": "greedy_search", "beam": 4, "wer": 12.5, "errors": 1, "words": 8}
    score.update({"ins": 1, "del": 0, "sub": 0, "utterances": 3, "ci95": [0, 25], "speakers": ["x"]})
    (system / "decode_x").mkdir()
    (system / "decode_x" / "wer-test.json").write_text(json.dumps(score))
    export.main(argv)
    manifest = json.loads((tmp_path / "out" / "model.json").read_text())
    assert manifest["wer"] == [{key: value for key, value in score.items() if key != "speakers"}]
    assert "| test | greedy_search, beam 4 | 12.50 | 8 | 1 | 0 | 0 |" in (tmp_path / "out" / "README.md").read_text()


def test_a_difference_fails_is_listed_and_leaves_the_older_export(system, workplace, tmp_path, capsys, monkeypatch):
    argv = arguments(workplace, system, tmp_path / "out")
    export.main(argv)
    before = (tmp_path / "out" / "model.json").read_bytes()
    write_system_config(
        system / "config.yaml", dataclasses.replace(read_system_config(system / "config.yaml"), name="renamed")
    )
    recognize = client.recognize

    def deaf(folder, audio, **options):
        results = recognize(folder, audio, **options)
        if options["search"] == "greedy_search" and options["batch_size"] == 1:
            results[2] = dataclasses.replace(results[2], text="something else")
        return results

    monkeypatch.setattr(client, "recognize", deaf)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        export.main(argv)
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "noise-2 (greedy_search, batches of 1): text 'something else' from sherpa-onnx" in said.out
    assert "sherpa-onnx and rnnt_kd differ 1 times" in said.err and "out.failed" in said.err
    listed = json.loads((tmp_path / "out.failed" / CHECK).read_text())["differences"]
    assert [(item["utterance"], item["what"], item["sherpa_onnx"]) for item in listed] == [
        ("noise-2", "text", "something else")
    ]
    assert (tmp_path / "out" / "model.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "out", "out.failed"}


def test_a_killed_export_leaves_nothing_that_looks_like_one(system, workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "recognize", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        export.main(arguments(workplace, system, tmp_path / "out"))
    assert ended.value.code == 130
    assert {path.name for path in tmp_path.iterdir()} == {"dense"}


def test_systems_that_sherpa_onnx_cannot_run_are_refused(system, workplace, tmp_path, capsys):
    out = tmp_path / "out"
    config = read_system_config(system / "config.yaml")
    assert "--streaming" in failure(capsys, arguments(workplace, system, out, "--streaming"))
    assert "one of them" in failure(capsys, arguments(workplace, system, out, "--int8", "--float16"))
    write_system_config(system / "config.yaml", dataclasses.replace(config, blank_id=3))
    assert "blank_id is 3; expected 0, as in" in failure(capsys, arguments(workplace, system, out))
    write_system_config(system / "config.yaml", dataclasses.replace(config, bpe_checksum="0" * 64))
    assert "another BPE model" in failure(capsys, arguments(workplace, system, out))
    write_system_config(system / "config.yaml", config)
    tensors = read_tensors(system / "model.safetensors")
    tensors["encoder.final_norm.weight"][0] = float("inf")
    write_tensors(system / "model.safetensors", tensors)
    assert "'encoder.final_norm.weight' holds NaN or infinity" in failure(capsys, arguments(workplace, system, out))
    (system / "model.safetensors").unlink()
    assert "not trained to the end" in failure(capsys, arguments(workplace, system, out))
    assert "no trained system here" in failure(capsys, arguments(workplace, tmp_path, out))
    assert not out.exists() and not list(tmp_path.glob(".*"))


def test_rounded_weights_may_differ_and_it_is_listed(workplace, tmp_path, monkeypatch):
    """The export stands, with the differences and both word error rates; float32 would have failed."""
    recognize = client.recognize

    def deaf(folder, audio, **options):
        results = recognize(folder, audio, **options)
        results[1] = dataclasses.replace(results[1], text="one")
        return results

    monkeypatch.setattr(client, "recognize", deaf)
    said = []
    options = {"int8": True, "sparse": True, "check_data_dir": workplace / "data", "say": said.append}
    values = export_system(workplace / "systems" / "sparse", workplace / "bpe", tmp_path / "out", **options)
    assert values["weights"] == "int8" and values["sparse"]
    assert values["check"]["differences_in_text"] >= 4 and any(line.startswith("a-2 (") for line in said)
    listed = json.loads((tmp_path / "out" / CHECK).read_text())["differences"]
    assert sum(item["utterance"] == "a-2" and item["sherpa_onnx"] == "one" for item in listed) == 4
    assert all({"wer_sherpa_onnx", "wer_rnnt_kd", "p_value"} <= set(run) for run in values["check"]["runs"])


def test_a_file_without_its_zeros_is_smaller_and_recognises_the_same(workplace, tmp_path):
    """Differences would have failed it; and its weights come back bit for bit."""
    system, sizes = workplace / "systems" / "sparse", {}
    for sparse in (False, True):
        out = tmp_path / f"sparse-{sparse}"
        values = export_system(
            system, workplace / "bpe", out, sparse=sparse, check_data_dir=workplace / "data", say=lambda line: None
        )
        sizes[sparse] = values["files"]["encoder.onnx"]["bytes"]
    assert sizes[True] < 0.6 * sizes[False]
    import_back(tmp_path / "sparse-True", tmp_path / "system")
    original = read_tensors(system / "model.safetensors")
    for name, value in read_tensors(tmp_path / "system" / "model.safetensors").items():
        assert name.startswith(TRAINING_ONLY) or torch.equal(value, original[name]), name


def test_a_streaming_system_exports_for_whole_utterances_too(workplace, tmp_path):
    """Then it sees all of the utterance: as our decoder does with full context, not with chunks."""
    system = make_system(tmp_path / "stream", workplace / "bpe", encoder="streaming_conformer", seed=3)
    data = workplace / "data"
    values = export_system(system, workplace / "bpe", tmp_path / "out", check_data_dir=data, say=lambda line: None)
    assert not values["streaming"] and values["check"]["utterances"] == 6 and values["check"]["differences"] == 0
    model, _ = load_system(system)
    item = list(read_speech(data))[4]
    x = filter_banks(item.samples)[None]
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
    lens = torch.tensor([x.shape[1]])
    got = session.run(None, {"x": x.numpy(), "x_lens": lens.numpy()})[0]
    for chunk, close in ((0, True), (16, False)):
        model.encoder.eval_chunk_frames = chunk
        with torch.no_grad():
            expected = model.joiner.encoder_proj(model.encode(x, lens)[0])
        assert torch.allclose(torch.tensor(got), expected, atol=1e-4) == close


def test_a_folder_of_something_else_is_not_replaced(system, workplace, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    assert "holds files of something else" in failure(capsys, arguments(workplace, system, tmp_path / "thesis"))
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "x"


def test_the_bpe_model_of_the_same_experiment_is_found(workplace, system, tmp_path, capsys):
    nested = shutil.copytree(system, tmp_path / "exp" / "students" / "dense")
    out = tmp_path / "out"
    assert "--bpe-dir" in failure(capsys, [str(nested), "--out", str(out)])
    shutil.copytree(workplace / "bpe", tmp_path / "exp" / "bpe")
    export.main([str(nested), "--out", str(out)])
    assert (out / "bpe.model").read_bytes() == (workplace / "bpe" / "bpe.model").read_bytes()


def test_an_unknown_target_is_one_line_before_anything_is_written(workplace, tmp_path):
    with pytest.raises(UserError, match="--target: there is no 'sherpa-onx'; expected one of: sherpa-onnx; did you"):
        export_system(
            workplace / "systems" / "sparse", workplace / "bpe", tmp_path / "out", target="sherpa-onx", say=print
        )
    assert not (tmp_path / "out").exists()

"""A constant off blank's logit: chosen as plain loops choose it, in the files that clients run, undone on the way back."""

import shutil

import kaldialign
import numpy as np
import onnx
import pytest
import torch
from command_cases import refused
from export_cases import TEXTS, export, recognised
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from onnx import numpy_helper

from rnnt_kd.bin import export as export_command
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding import greedy_search, modified_beam_search
from rnnt_kd.errors import UserError
from rnnt_kd.export.blank_penalty import GRID, choose
from rnnt_kd.export.import_back import import_export
from rnnt_kd.export.model_json import read_manifest
from rnnt_kd.systems.store import load_system, read_tensors, write_tensors
from rnnt_kd.text.tokenizer import Tokenizer


def write_cuts(path, folder, texts):
    cuts = []
    for key, text in texts.items():
        recording = Recording.from_file(folder / f"{key}.wav", recording_id=key)
        said = SupervisionSegment(key, key, 0.0, recording.duration, text=text, speaker=key[0])
        cuts.append(MonoCut(key, 0.0, recording.duration, 0, supervisions=[said], recording=recording))
    CutSet.from_cuts(cuts).to_file(path)
    return path


def lowered_by(workplace, name, penalty):
    """systems/dense with another bias of blank, as a system of its own."""
    folder = shutil.copytree(workplace / "systems/dense", workplace / "systems" / name)
    tensors = read_tensors(folder / "model.safetensors")
    tensors["joiner.output_linear.bias"][0] -= penalty
    write_tensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def texts(workplace):
    """What systems/fair says, which finds blank likelier than every label in about half of the frames of "b-4"."""
    model, _ = load_system(workplace / "systems/dense")
    x = filter_banks(list(read_speech(workplace / "data"))[-1].samples)[None]
    with torch.no_grad():
        encoder_out, _ = model.encode(x, torch.tensor([x.shape[1]]))
        context = torch.tensor([model.predictor.start_context()])
        logits = model.joiner(
            model.joiner.encoder_proj(encoder_out), model.joiner.predictor_proj(model.predictor.tabulated()(context))
        )[0]
    folder = lowered_by(workplace, "fair", float((logits[:, 0] - logits[:, 1:].amax(1)).median()))
    return dict(recognised(load_system(folder)[0], workplace, greedy_search))


@pytest.fixture(scope="module")
def dev_cuts(workplace, texts):
    return write_cuts(workplace / "dev.jsonl.gz", workplace, texts)


@pytest.fixture(scope="module")
def shy(workplace, texts):
    """systems/fair, whose blank is too likely by about one nat."""
    model, _ = load_system(workplace / "systems/fair")
    before = float(load_system(workplace / "systems/dense")[0].joiner.output_linear.bias[0])
    return lowered_by(workplace, "shy", before - float(model.joiner.output_linear.bias[0]) - 1.1)


def plain_errors(system, workplace, texts, penalty):
    """By another counter."""
    model, _ = load_system(system)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] -= penalty
    return sum(
        kaldialign.edit_distance(texts[name].split(), text.split())["total"]
        for search in (greedy_search, modified_beam_search)
        for name, text in recognised(model, workplace, search)
    )


@pytest.mark.parametrize("name", ["fair", "shy"])
def test_it_is_what_plain_loops_choose(workplace, dev_cuts, texts, shy, name):
    system = workplace / "systems" / name
    model, _ = load_system(system)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen, errors = choose(model, Tokenizer.load(workplace / "bpe"), dev_cuts)
    assert errors == {penalty: plain_errors(system, workplace, texts, penalty) for penalty in GRID}
    assert errors[chosen] == min(errors.values())
    assert all(errors[smaller] > errors[chosen] for smaller in GRID if smaller < chosen)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_long_set_is_heard_in_part(workplace, dev_cuts, texts, shy, monkeypatch):
    model, _ = load_system(shy)
    tokenizer = Tokenizer.load(workplace / "bpe")
    seconds = sum(len(item.samples) for item in read_speech(workplace / "data")) / 16000
    monkeypatch.setattr("rnnt_kd.export.blank_penalty.MOST_SECONDS", seconds / 1.5)
    half = {key: text for place, (key, text) in enumerate(texts.items()) if place % 2 == 0}
    alone = write_cuts(workplace / "half.jsonl.gz", workplace, half)
    heard = choose(model, tokenizer, dev_cuts)
    monkeypatch.undo()
    assert heard == choose(model, tokenizer, alone) != choose(model, tokenizer, dev_cuts)


def test_the_client_runs_the_model_with_it_and_the_way_back_is_without(workplace, dev_cuts, shy, tmp_path):
    chosen, errors = choose(load_system(shy)[0], Tokenizer.load(workplace / "bpe"), dev_cuts)
    assert chosen > 0
    folder = export(workplace, "shy", dev_cuts=dev_cuts, check_data_dir=workplace / "data")
    manifest, original = read_manifest(folder), load_system(shy)[0]
    said = {f"{penalty:g}": number for penalty, number in errors.items()}
    bias = original.joiner.output_linear.bias.detach().numpy()
    assert manifest["blank_penalty"] == {"value": chosen, "errors": said, "bias": float(bias[0])}
    assert manifest["check"]["differences"] == 0
    (stored,) = (
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(folder / "joiner.onnx").graph.initializer
        if tensor.name == "joiner.output_linear.bias"
    )
    np.testing.assert_array_equal(stored[1:], bias[1:])
    assert stored[0] == np.float32(bias[0] - chosen)
    assert f"{chosen:g} was taken off the logit of blank" in (folder / "README.md").read_text()
    import_export(folder, tmp_path / "system")
    again = load_system(tmp_path / "system")[0].state_dict()
    assert torch.equal(again["joiner.output_linear.bias"], original.joiner.output_linear.bias)


def test_bad_input_is_one_line(workplace, dev_cuts, tmp_path, capsys):
    silent = write_cuts(workplace / "silent.jsonl.gz", workplace, {key: "" for key in TEXTS})
    with pytest.raises(UserError, match="silent.jsonl.gz: holds no words"):
        choose(load_system(workplace / "systems/dense")[0], Tokenizer.load(workplace / "bpe"), silent)
    argv = [str(workplace / "systems/dense"), "--bpe-dir", str(workplace / "bpe"), "--out", str(tmp_path / "out")]
    assert "no such" in refused(capsys, export_command.main, *argv, "--dev-cuts", tmp_path / "none.jsonl")
    both = [*argv, "--dev-cuts", str(dev_cuts), "--blank-penalty", "1"]
    assert "both are given" in refused(capsys, export_command.main, *both)
    assert not (tmp_path / "out").exists()

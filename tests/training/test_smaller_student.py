"""A student from which units are cut out: what training leaves is a smaller dense system, which is as any other."""

import json
import math

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from training_cases import metrics, system_json, train_with_stops

from rnnt_kd.bin import export
from rnnt_kd.bin import train as command
from rnnt_kd.config_io import read_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.export.import_back import import_export
from rnnt_kd.sparsity.units import Units
from rnnt_kd.systems.store import load_system

ZEROS = dict(target=0.5, structure="heads+ffn+channels+joiner+predictor", scope="global", score="taylor")


@pytest.fixture(scope="module")
def smaller(tone_corpus, teacher_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smaller") / "x"
    config = tone_corpus.config("sparse_student", sparsity=ZEROS, with_kd=True, ranges="student")
    tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    return config, folder


def test_it_is_smaller_dense_and_says_its_widths(smaller, teacher_dir):
    config, folder = smaller
    model, read = load_system(folder)
    sizes, system = read.model.encoder_options["layer_widths"], system_json(folder)
    assert read.sparsity == config.sparsity and len(sizes) == 1
    assert [len(weight) for name, weight in model.named_parameters() if name.endswith("linear_in.bias")] == sizes[0][
        1::2
    ]
    params = sum(weight.numel() for weight in model.parameters())
    assert system["params"] == params == sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    assert system["nonzero_params"] > 0.99 * params and system["sparsity"] == pytest.approx(0.5, abs=0.1)
    assert params < 0.8 * system_json(teacher_dir)["params"]
    last = metrics(folder, "dev")[-1]
    assert last["epoch"] == 3


def test_it_is_finished_and_a_damaged_configuration_is_written_again(smaller, tone_corpus, teacher_dir):
    config, folder = smaller
    assert "finished already" in tone_corpus.train(config, folder, teacher_dir=teacher_dir)[-1]
    before = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").write_text("name: y\n")
    with pytest.raises(UserError, match="is not what was written"):
        load_system(folder)
    said = tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    assert "is written again" in said[0] and (folder / "config.yaml").read_bytes() == before
    load_system(folder)


def test_a_damaged_configuration_without_its_weights_is_trained_anew(tone_corpus, teacher_dir, tmp_path):
    config, folder = tone_corpus.config("sparse_student", sparsity=ZEROS), tmp_path / "x"
    tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    (folder / "config.yaml").write_text("name: y\n")
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert "training anew" in " ".join(tone_corpus.train(config, folder, teacher_dir=teacher_dir))
    load_system(folder)


def test_a_batch_that_is_not_finite_leaves_no_trace_in_the_scores(tone_corpus, teacher_dir, tmp_path, monkeypatch):
    seen, steps = [], []
    backward, look = Fabric.backward, Units.see_gradients

    def spoilt(self, loss, *rest, **more):
        steps.append(loss)
        backward(self, loss * (math.nan if len(steps) == 2 else 1.0), *rest, **more)

    def looked(self):
        look(self)
        seen.append(self.changes)

    monkeypatch.setattr(Fabric, "backward", spoilt)
    monkeypatch.setattr(Units, "see_gradients", looked)
    config = tone_corpus.config("sparse_student", sparsity=ZEROS)
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    assert system_json(tmp_path / "x")["nonfinite_batches"] == 1
    assert seen and all(torch.isfinite(changes).all() for changes in seen)
    load_system(tmp_path / "x")


def test_stopped_on_the_ramp_and_after_it_it_ends_with_the_same_bits(smaller, tone_corpus, teacher_dir, tmp_path):
    config, whole = smaller
    train_with_stops(tone_corpus, config, tmp_path / "x", (1, 1, 2), teacher_dir=teacher_dir)
    for name in ("model.safetensors", "config.yaml"):
        assert (tmp_path / "x" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("options, bits", [
    (dict(structure="layers"), None), (dict(structure="layers+heads+ffn+channels", score="taylor"), 4),
    (dict(structure="layers+channels", scope="global", nested=[0.3]), None),
])  # fmt: skip
def test_whole_layers_go_and_stopped_on_the_way_it_ends_with_the_same_bits(tone_corpus, tmp_path, options, bits):
    deep = ["teacher.model.encoder_options.num_layers=3"]
    tone_corpus.train(tone_corpus.config("teacher", overrides=deep), tmp_path / "teacher")
    overrides = [*deep, *([f"sparse_student.training.weight_bits={bits}"] if bits else [])]
    config = tone_corpus.config("sparse_student", sparsity=dict(target=0.66, **options), overrides=overrides)
    tone_corpus.train(config, tmp_path / "x", teacher_dir=tmp_path / "teacher")
    places = [".", *(["members/0.66"] if "nested" in options else [])]
    for place in places:
        model, read = load_system(tmp_path / "x" / place)
        widths = read.model.encoder_options["layer_widths"]
        assert ([0] * 4 in widths) == (place == places[-1]) and any(map(any, widths))
        params = sum(weight.numel() for weight in model.parameters())
        assert system_json(tmp_path / "x" / place)["params"] == params < system_json(tmp_path / "teacher")["params"]
    train_with_stops(tone_corpus, config, tmp_path / "y", (1, 2), teacher_dir=tmp_path / "teacher")
    for name in [f"{place}/{file}" for place in places for file in ("model.safetensors", "config.yaml")]:
        assert (tmp_path / "y" / name).read_bytes() == (tmp_path / "x" / name).read_bytes(), name


def test_it_can_teach_a_small_student_and_itself_be_none_of_a_sparse_one(smaller, tone_corpus, tmp_path):
    folder = smaller[1]
    small = tone_corpus.config("small_student", with_kd=True, ranges="student")
    tone_corpus.train(small, tmp_path / "small", teacher_dir=folder)
    assert system_json(tmp_path / "small")["teacher"] == str(folder)
    sparse = tone_corpus.config("sparse_student", sparsity=0.5)
    with pytest.raises(UserError, match="model.encoder_options is .*layer_widths"):
        tone_corpus.train(sparse, tmp_path / "sparse", teacher_dir=folder)


@pytest.mark.parametrize("role", ["sparse_student", "streaming_student"])
def test_it_is_exported_and_comes_back(role, tone_corpus, teacher_dir, tmp_path):
    """As the recipe makes it; its graphs are compared with the module by export itself."""
    entry = f"{{role: {role}, sparsity: {json.dumps(ZEROS)}, training: {{epochs: 2}}}}"
    command.main(tone_corpus.arguments(tmp_path / "exp", entry, teacher_dir))
    folder, out = tmp_path / "exp" / "trial" / "x" / "seed1", tmp_path / "out"
    streaming = ["--streaming"] * (role == "streaming_student")
    export.main([str(folder), "--bpe-dir", str(tone_corpus.bpe_dir), "--out", str(out), *streaming])
    back = tmp_path / "back"
    import_export(out, back)
    (ours, config), (theirs, _) = load_system(folder), load_system(back)
    assert read_system_config(back / "config.yaml").model.encoder_options == config.model.encoder_options
    x, lens = torch.randn(2, 60, 80), torch.tensor([60, 41])
    torch.testing.assert_close(theirs.encode(x, lens)[0], ours.encode(x, lens)[0], atol=1e-5, rtol=1e-5)

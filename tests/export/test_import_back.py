"""An export becomes a system's folder again, bit for bit, or is refused."""

import numpy as np
import onnx
import pytest
import torch
from command_cases import told
from export_cases import change_model, change_weights, export, one_node_file, rewrite

from rnnt_kd.bin import import_export
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import read_system_config
from rnnt_kd.export.blank_penalty import BIAS
from rnnt_kd.export.formats import convert
from rnnt_kd.export.graphs import TRAINING_ONLY
from rnnt_kd.export.import_back import import_export as import_back
from rnnt_kd.export.import_back import read_parameters
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.systems.store import load_system, refuse_decoding_only
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.setup import resolve

EMBEDDING = "predictor.embedding.weight"


@pytest.fixture(scope="module")
def imported(exported, tmp_path_factory):
    """A system's folder, made by the command."""
    folder = tmp_path_factory.mktemp("imported") / "system"
    import_export.main([str(exported), "--system-dir", str(folder)])
    return folder


def refusal(folder, tmp_path):
    said = told(import_back, folder, tmp_path / "system")
    assert not (tmp_path / "system").exists() and not list(tmp_path.glob(".*"))
    return said


def test_what_decoding_uses_comes_back_bit_for_bit(imported, workplace):
    original, config = load_system(workplace / "systems" / "dense")
    model, imported_config = load_system(imported)
    assert imported_config == config == read_system_config(workplace / "systems" / "dense" / "config.yaml")
    for (name, one), (other_name, other) in zip(original.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(other, torch.zeros_like(one) if name.startswith(TRAINING_ONLY) else one), name


def test_an_imported_system_exports_to_the_same_bytes(imported, exported, workplace, tmp_path):
    again = export(workplace, imported, tmp_path / "again")
    for name in (*ONNX_FILES, "tokens.txt"):
        assert (again / name).read_bytes() == (exported / name).read_bytes(), name


def test_an_imported_system_is_no_teacher(imported, workplace):
    refuse_decoding_only(workplace / "systems" / "dense")
    student, tokenizer = SystemConfig(role="sparse_student"), Tokenizer.load(workplace / "bpe")
    for read in (lambda: refuse_decoding_only(imported), lambda: resolve(student, tokenizer, imported)):
        assert "imported from an export" in told(read)


def test_a_changed_weight_is_refused(folder, tmp_path):
    def last_bit(_, values):
        values[2, 3] = np.nextafter(values[2, 3], np.float32(9))
        return values

    change_weights(folder / "decoder.onnx", last_bit, EMBEDDING)
    assert "decoder.onnx: was changed" in refusal(folder, tmp_path)
    rewrite(folder)
    assert f"'{EMBEDDING}' holds other values than model.json says" in refusal(folder, tmp_path)


def test_a_missing_weight_another_shape_configuration_or_bpe_model_and_rounding_are_refused(folder, tmp_path):
    manifest = read_manifest(folder)
    parameters, facts = manifest["parameters"], manifest["parameters"][EMBEDDING]
    fewer = {name: value for name, value in parameters.items() if name != EMBEDDING}
    for changed, message in (
        ({"parameters": {**parameters, "predictor.extra": facts}}, "has no weight 'predictor.extra'"),
        ({"parameters": {**parameters, EMBEDDING: {**facts, "shape": facts["shape"][::-1]}}}, f"'{EMBEDDING}' is ("),
        ({"parameters": fewer}, f"has no tensor '{EMBEDDING}'"),
        ({"parameters": {name: value for name, value in parameters.items() if name != BIAS}}, f"no tensor '{BIAS}'"),
        ({"training_config": {**manifest["training_config"], "seed": 99}}, "training_config is not what its checksum"),
        ({"bpe_sha256": "0" * 64}, "bpe.model: is not the one the system was trained with"),
        ({"weights": "int8"}, "its weights are int8: what was rounded cannot be undone"),
        ({"weights": "float16"}, "its weights are float16: what was rounded cannot be undone"),
        ({"blank_penalty": {"value": 0.0, "bias": 1e300}}, "blank_penalty.bias: Input should be less than or equal"),
    ):
        rewrite(folder, **{**manifest, **changed})
        assert message in refusal(folder, tmp_path)


def test_a_folder_that_is_there_is_not_touched(exported, tmp_path):
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "notes").write_text("x")
    assert "is there already" in told(import_back, exported, tmp_path / "system")
    assert [path.name for path in (tmp_path / "system").iterdir()] == ["notes"]


@pytest.mark.parametrize("form", ["sparse", "sparse_initializer"])
def test_weights_without_their_zeros_are_read_and_turned_back(tmp_path, form):
    """The value of a name is computed from other initializers, or stands in one of ONNX's sparse ones."""
    weight = np.zeros((64, 48), np.float32)
    weight[3, ::5] = np.arange(10) - 3.5
    one_node_file(tmp_path / "dense.onnx", "MatMul", weight, ["N", 64], ["N", 48])
    convert(tmp_path / "dense.onnx", tmp_path / "f.onnx", form)
    assert "w" not in {tensor.name for tensor in onnx.load(tmp_path / "f.onnx").graph.initializer}
    change_model(tmp_path / "f.onnx", lambda model: model.metadata_props.add(key="transposed", value='["w"]'))
    assert np.array_equal(read_parameters(tmp_path, {"f.onnx": ["w"]})["w"], weight.T)

"""An export becomes a system's folder again, bit for bit, or is refused."""

import numpy as np
import onnx
import pytest
import torch
from export_cases import change_weights, export, rewrite
from onnx import numpy_helper

from rnnt_kd.bin import import_export
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import read_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import TRAINING_ONLY
from rnnt_kd.export.import_back import import_export as import_back
from rnnt_kd.export.import_back import read_parameters
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.systems.store import load_system, refuse_decoding_only
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.initial import resolve

EMBEDDING = "predictor.embedding.weight"


@pytest.fixture(scope="module")
def imported(exported, tmp_path_factory):
    """A system's folder, made by the command."""
    folder = tmp_path_factory.mktemp("imported") / "system"
    import_export.main([str(exported), "--system-dir", str(folder)])
    return folder


def refusal(folder, tmp_path):
    with pytest.raises(UserError) as caught:
        import_back(folder, tmp_path / "system")
    assert not (tmp_path / "system").exists() and not list(tmp_path.glob(".*"))
    return str(caught.value)


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
    for refused in (lambda: refuse_decoding_only(imported), lambda: resolve(student, tokenizer, imported)):
        with pytest.raises(UserError, match="imported from an export"):
            refused()


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
        ({"training_config": {**manifest["training_config"], "seed": 99}}, "training_config is not what its checksum"),
        ({"bpe_sha256": "0" * 64}, "bpe.model: is not the one the system was trained with"),
        ({"weights": "int8"}, "its weights are int8: what was rounded cannot be undone"),
        ({"weights": "float16"}, "its weights are float16: what was rounded cannot be undone"),
    ):
        rewrite(folder, **{**manifest, **changed})
        assert message in refusal(folder, tmp_path)


def test_a_folder_that_is_there_is_not_touched(exported, tmp_path):
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "notes").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        import_back(exported, tmp_path / "system")
    assert [path.name for path in (tmp_path / "system").iterdir()] == ["notes"]


def test_weights_that_the_graph_unpacks_are_read_by_running_that_part(tmp_path):
    """What sparse files do: the value of a name is computed from other initializers."""

    def initializer(name, values):
        return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)

    nodes = [
        onnx.helper.make_node("Mul", ["half", "half"], ["quarter"]),
        onnx.helper.make_node("Concat", ["quarter", "half"], ["weight"], axis=0),
        onnx.helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", value[:1], value[1:], [initializer("half", [[0.5, 1.5]])])
    indices = numpy_helper.from_array(np.array([1, 4], dtype=np.int64), "")
    sparse = onnx.helper.make_sparse_tensor(initializer("other", [7, -8]), indices, [2, 3])
    graph.sparse_initializer.append(sparse)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    model.metadata_props.add(key="transposed", value='["other"]')
    onnx.save(model, tmp_path / "f.onnx")
    found = read_parameters(tmp_path, {"f.onnx": ["weight", "half", "other"]})
    assert found["weight"].tolist() == [[0.25, 2.25], [0.5, 1.5]] and found["half"].tolist() == [[0.5, 1.5]]
    assert found["other"].tolist() == [[0, 0], [7, -8], [0, 0]]

"""A model that the client cannot run is caught, in one line, before the client sees it."""

import json
import shutil

import numpy as np
import onnx
import pytest
from export_cases import rewrite
from onnx import numpy_helper

from rnnt_kd.errors import UserError
from rnnt_kd.export.file_checks import HIGHEST_IR, HIGHEST_OPSET
from rnnt_kd.export.verify import verify_static


def spoil(folder, file, change, **changed):
    model = onnx.load(folder / file)
    change(model)
    onnx.save(model, folder / file)
    rewrite(folder, **changed)


def line(folder):
    with pytest.raises(UserError) as caught:
        verify_static(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_metadata(key, value):
    def change(model):
        for item in list(model.metadata_props):
            if item.key == key:
                model.metadata_props.remove(item)
        if value is not None:
            model.metadata_props.add(key=key, value=value)

    return change


def test_a_good_export_passes_and_says_what_it_is(exported):
    manifest = verify_static(exported)
    assert manifest["system"] == "dense" and manifest["weights"] == "float32" and not manifest["streaming"]


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx", "joiner.onnx", "tokens.txt", "bpe.model"])
def test_a_missing_a_changed_and_a_truncated_file_are_named(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert f"{file}: was changed" in line(folder)
    (folder / file).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert f"{file}: was changed" in line(folder)
    (folder / file).unlink()
    assert f"{file}: missing" in line(folder)


def test_a_changed_model_json_is_named(folder):
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"vocab_size": ', '"vocab_size": 1'))
    assert "model.json: was changed since it was written" in line(folder)
    (folder / "model.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))
    assert "format version 2; expected 1" in line(folder)
    (folder / "model.json").write_text("[]")
    assert "not a JSON object" in line(folder)
    (folder / "model.json").unlink()
    assert "no export here" in line(folder)
    assert "no such folder" in line(folder / "nowhere")


def test_half_a_graph_is_named_where_the_checksum_is_right(folder):
    (folder / "encoder.onnx").write_bytes((folder / "encoder.onnx").read_bytes()[:5000])
    rewrite(folder)
    assert "encoder.onnx: damaged or not an ONNX file" in line(folder)


def test_weights_in_another_file_are_refused(folder):
    model = onnx.load(folder / "encoder.onnx")
    onnx.save(model, folder / "encoder.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    rewrite(folder)
    assert "its weights lie in another file" in line(folder)


def test_an_opset_and_an_ir_version_that_are_too_new_name_the_highest(folder):
    def opset(model):
        model.opset_import[0].version = HIGHEST_OPSET + 1

    spoil(folder, "joiner.onnx", opset)
    assert f"joiner.onnx: opset {HIGHEST_OPSET + 1}; expected at most {HIGHEST_OPSET}" in line(folder)
    spoil(folder, "joiner.onnx", lambda model: setattr(model.opset_import[0], "version", 13))
    spoil(folder, "joiner.onnx", lambda model: setattr(model, "ir_version", HIGHEST_IR + 1))
    assert f"joiner.onnx: ONNX IR version {HIGHEST_IR + 1}; expected at most {HIGHEST_IR}" in line(folder)


def test_the_highest_opset_is_what_onnxruntime_still_loads(tmp_path):
    """The one of the older environment is the measure; a new version of it may allow more."""
    import onnxruntime

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Tanh", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", HIGHEST_OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=HIGHEST_IR)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert session.run(None, {"x": np.zeros(1, np.float32)})[0] == 0


@pytest.mark.parametrize(
    "file, key, value, expected",
    [
        ("encoder.onnx", "model_type", None, "metadata model_type is None; expected conformer"),
        ("encoder.onnx", "model_type", "paraformer", "metadata model_type is paraformer; expected conformer"),
        ("decoder.onnx", "vocab_size", None, "metadata vocab_size is None; expected"),
        ("decoder.onnx", "vocab_size", "500", "metadata vocab_size is 500; expected"),
        ("decoder.onnx", "context_size", "1", "metadata context_size is 1; expected 2"),
        ("joiner.onnx", "transposed", None, "metadata 'transposed' is missing"),
    ],
)
def test_metadata_that_are_missing_or_wrong_are_named(folder, file, key, value, expected):
    spoil(folder, file, set_metadata(key, value))
    assert f"{file}: {expected}" in line(folder)


def test_an_input_that_the_graph_does_not_read_is_refused(folder):
    """sherpa-onnx ends with a segmentation fault where the exporter dropped an input."""

    def bypass(model):
        constant = numpy_helper.from_array(np.array([9, 1], dtype=np.int64), "lens")
        model.graph.initializer.append(constant)
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = "lens" if name == "x_lens" else name

    spoil(folder, "encoder.onnx", bypass)
    assert "encoder.onnx: its input 'x_lens' is not used" in line(folder)


def test_inputs_of_another_name_type_size_or_order_are_refused(folder, exported):
    def again(change):
        shutil.copyfile(exported / "encoder.onnx", folder / "encoder.onnx")
        spoil(folder, "encoder.onnx", change)
        return line(folder)

    def order(model):
        values = [model.graph.input[1], model.graph.input[0]]
        copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
        del model.graph.input[:]
        model.graph.input.extend(copies)

    def size(model):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    def kind(model):
        model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT32

    def outputs(model):
        del model.graph.output[1]

    assert "its inputs are x_lens, x; expected x, x_lens" in again(order)
    assert "input 'x' has the sizes (1, any, 80); expected (any, any, 80)" in again(size)
    assert "INT32" in again(kind)
    assert "its outputs are encoder_out; expected encoder_out, encoder_out_lens" in again(outputs)


def test_a_context_or_a_blank_that_sherpa_onnx_does_not_have_is_refused(folder):
    rewrite(folder, context_size=3)
    assert "context_size is 3; expected 2" in line(folder)
    rewrite(folder, context_size=2, blank_id=5)
    assert "blank_id is 5; expected 0" in line(folder)


def test_tokens_that_are_not_those_of_the_bpe_model_are_refused(folder):
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for wrong, number in (
        (lines[:-1], len(lines)),
        ([*lines, f"extra {len(lines)}\n"], len(lines) + 1),
        ([*lines[:5], lines[6], lines[5], *lines[7:]], 6),
        (["<eps> 0\n", *lines[1:]], 1),
    ):
        (folder / "tokens.txt").write_text("".join(wrong), encoding="utf-8")
        rewrite(folder)
        assert f"tokens.txt:{number}: is not the vocabulary of bpe.model" in line(folder)


def test_a_joiner_of_another_vocabulary_is_refused(folder):
    def shorter(model):
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1].copy(), tensor.name))
        size = model.graph.output[0].type.tensor_type.shape.dim[1]
        size.dim_value -= 1

    spoil(folder, "joiner.onnx", shorter)
    assert "joiner.onnx: output 'logit' has the sizes" in line(folder)


def test_files_that_do_not_fit_each_other_are_found_by_running_them(folder):
    def wider(model):
        for tensor in model.graph.initializer:
            if tensor.name == "joiner.encoder_proj.bias":
                tensor.CopyFrom(numpy_helper.from_array(np.zeros(7, dtype=np.float32), tensor.name))

    spoil(folder, "encoder.onnx", wider)
    assert "encoder.onnx: onnxruntime does not" in line(folder)


def test_weights_that_are_not_numbers_are_found(folder):
    def broken(model):
        for tensor in model.graph.initializer:
            if tensor.name == "joiner.encoder_proj.bias":
                values = numpy_helper.to_array(tensor).copy()
                values[0] = np.nan
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    spoil(folder, "encoder.onnx", broken)
    assert "encoder.onnx: its output holds NaN or infinity" in line(folder)


def test_model_json_holds_what_was_measured(exported):
    manifest = json.loads((exported / "model.json").read_text())
    assert manifest["check"]["utterances"] == 6 and manifest["check"]["differences"] == 0
    assert manifest["check"]["features_difference"] < 2e-3
    assert [(run["search"], run["batch_size"]) for run in manifest["check"]["runs"]] == [
        ("greedy_search", 1),
        ("greedy_search", 8),
        ("modified_beam_search", 1),
        ("modified_beam_search", 8),
    ]
    for name, facts in manifest["files"].items():
        assert facts["bytes"] == (exported / name).stat().st_size

"""A model that the client cannot run, or that is not the system, is caught in one line before the client sees it."""

import json

import numpy as np
import onnx
import pytest
import torch
from command_cases import told
from export_cases import change_model, change_weights, one_node_file, rewrite, right_integers
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from rnnt_kd.errors import UserError
from rnnt_kd.export.check_files import HIGHEST_IR, HIGHEST_OPSET, verify_static
from rnnt_kd.export.check_numbers import verify_numbers
from rnnt_kd.export.formats import convert
from rnnt_kd.export.model_json import FILES, ONNX_FILES, json_digest, read_manifest
from rnnt_kd.export.onnx_file import session
from rnnt_kd.systems.store import load_system


@pytest.mark.parametrize("file", FILES)
def test_a_missing_a_changed_and_a_truncated_file_are_named(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert f"{file}: was changed" in told(verify_static, folder)
    (folder / file).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert f"{file}: was changed" in told(verify_static, folder)
    (folder / file).unlink()
    assert f"{file}: missing" in told(verify_static, folder)


def test_a_changed_model_json_is_named(folder):
    path, text = folder / "model.json", (folder / "model.json").read_text()
    for changed, message in (
        (text.replace('"vocab_size": ', '"vocab_size": 1'), "model.json: was changed since it was written"),
        (text.replace('"format_version": 1', '"format_version": 2'), "format version 2; expected 1"),
        ("[]", "not a JSON object"),
        ("[" * 100000, "not a JSON object"),
    ):
        path.write_text(changed)
        assert message in told(verify_static, folder)
    path.unlink()
    assert "no export here" in told(verify_static, folder)
    assert "no such folder" in told(verify_static, folder / "nowhere")


@pytest.mark.parametrize("change, message", [
    (lambda values: values.update(vocab_size="64"), "model.json: vocab_size: Input should be a valid integer"),
    (lambda values: values.pop("training_config"), "model.json: training_config: Field required"),
    (lambda values: values.update(training_config=[]), "model.json: training_config: "),
    (lambda values: values["files"].update({"../x": {"sha256": ""}}), "model.json: files.../x.[key]: Input should be"),
    (lambda values: values["files"].update({"tokens.txt": None}), "model.json: files.tokens.txt: "),
    (lambda values: values["files"].pop("joiner.onnx"), "model.json: has no checksum of joiner.onnx; expected those of all"),
    (lambda values: next(iter(values["parameters"].values())).update(file="/etc/passwd"), ".file: Input should be "),
    (lambda values: next(iter(values["parameters"].values())).update(shape=3), ".shape: Input should be a valid list"),
])  # fmt: skip
def test_a_value_of_another_type_is_named_also_where_the_digest_is_right(folder, change, message):
    path = folder / "model.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps({**values, "sha256": json_digest({k: v for k, v in values.items() if k != "sha256"})}))
    assert message in told(verify_static, folder)


def test_every_bit_of_an_export_counts(folder):
    random = np.random.default_rng(0)
    for name in (*FILES, "model.json"):
        path, content = folder / name, (folder / name).read_bytes()
        for place in random.integers(0, 8 * len(content), 20):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=name):
                read_manifest(folder)
        path.write_bytes(content)
    assert read_manifest(folder)


def test_an_export_that_is_older_than_one_of_its_files_is_still_read(folder):
    manifest = read_manifest(folder)
    del manifest["files"]["bpe.vocab"], manifest["sha256"]
    (folder / "bpe.vocab").unlink()
    (folder / "model.json").write_text(json.dumps({**manifest, "sha256": json_digest(manifest)}))
    assert verify_static(folder)["files"].keys() == manifest["files"].keys()


def test_half_a_graph_and_weights_in_another_file_are_named_where_the_checksum_is_right(folder):
    path = folder / "encoder.onnx"
    content, model = path.read_bytes(), onnx.load(path)
    path.write_bytes(content[:5000])
    rewrite(folder)
    assert "encoder.onnx: damaged or not an ONNX file" in told(verify_static, folder)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    rewrite(folder)
    assert "its weights lie in another file" in told(verify_static, folder)


def new_opset(model):
    model.opset_import[0].version = HIGHEST_OPSET + 1


def new_ir(model):
    model.ir_version = HIGHEST_IR + 1


def without_x_lens(model):
    """sherpa-onnx ends with a segmentation fault where the exporter dropped an input."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([9, 1], dtype=np.int64), "lens"))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "lens" if name == "x_lens" else name


def other_order(model):
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in reversed(model.graph.input)]
    model.graph.ClearField("input")
    model.graph.input.extend(copies)


def fixed_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def other_type(model):
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT32


def one_output(model):
    del model.graph.output[1]


def one_class_less(model):
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1].copy(), tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value -= 1


def other_bias(values):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == "joiner.encoder_proj.bias":
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def metadata(key, value):
    def change(model):
        found = {item.key: item.value for item in model.metadata_props if item.key != key}
        onnx.helper.set_model_props(model, {**found, **({} if value is None else {key: value})})

    return change


@pytest.mark.parametrize("file, change, message", [
    ("joiner", new_opset, f"opset {HIGHEST_OPSET + 1}; expected at most {HIGHEST_OPSET}"),
    ("joiner", new_ir, f"ONNX IR version {HIGHEST_IR + 1}; expected at most {HIGHEST_IR}"),
    ("encoder", without_x_lens, "its input 'x_lens' is not used"),
    ("encoder", other_order, "its inputs are x_lens, x; expected x, x_lens"),
    ("encoder", fixed_size, "input 'x' has the sizes (1, any, 80); expected (any, any, 80)"),
    ("encoder", other_type, "input 'x_lens' is INT32"),
    ("encoder", one_output, "its outputs are encoder_out; expected encoder_out, encoder_out_lens"),
    ("joiner", one_class_less, "output 'logit' has the sizes"),
    ("encoder", other_bias(np.zeros(7, np.float32)), "onnxruntime does not"),
    ("encoder", other_bias(np.full(24, np.nan, np.float32)), "its output holds NaN or infinity"),
    ("encoder", metadata("model_type", None), "metadata model_type is None; expected conformer"),
    ("encoder", metadata("model_type", "paraformer"), "metadata model_type is paraformer; expected conformer"),
    ("decoder", metadata("vocab_size", None), "metadata vocab_size is None; expected"),
    ("decoder", metadata("vocab_size", "500"), "metadata vocab_size is 500; expected"),
    ("decoder", metadata("context_size", "1"), "metadata context_size is 1; expected 2"),
    *(("joiner", metadata("transposed", value), "metadata 'transposed' is missing or no list of names")
      for value in (None, "x", "3", "[[1]]")),
])  # fmt: skip
def test_a_graph_that_the_client_cannot_run_is_named(folder, file, change, message):
    change_model(folder / f"{file}.onnx", change)
    rewrite(folder)
    assert f"{file}.onnx: {message}" in told(verify_static, folder)


@pytest.mark.parametrize("key, value, expected", [("context_size", 3, 2), ("blank_id", 5, 0), ("vocab_size", 99, "")])
def test_sizes_that_sherpa_onnx_does_not_have_are_refused(folder, key, value, expected):
    rewrite(folder, **{key: value})
    assert f"{key} is {value}; expected {expected}" in told(verify_static, folder)


def test_the_highest_opset_is_what_onnxruntime_still_loads(tmp_path):
    """The one of the older environment is the measure; a new version of it may allow more."""

    def newest(model):
        model.ir_version, model.opset_import[0].version = HIGHEST_IR, HIGHEST_OPSET

    path = one_node_file(tmp_path / "f.onnx", "Mul", np.ones(1, np.float32), [1], [1])
    change_model(path, newest)
    assert session(path).run(None, {"x": np.zeros(1, np.float32)})[0] == 0


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
        assert f"tokens.txt:{number}: is not the vocabulary of bpe.model" in told(verify_static, folder)


def test_a_good_export_passes_and_model_json_holds_what_was_measured(exported):
    manifest = verify_static(exported)
    assert manifest["system"] == "dense" and manifest["weights"] == "float32" and not manifest["streaming"]
    assert manifest["check"]["utterances"] == 6 and manifest["check"]["differences"] == 0
    assert manifest["check"]["features_difference"] < 2e-3
    assert [(run["search"], run["batch_size"]) for run in manifest["check"]["runs"]] == [
        (search, size) for search in ("greedy_search", "modified_beam_search") for size in (1, 8)
    ]
    measured = manifest["check"]["onnxruntime_against_torch"]
    assert set(measured) == set(ONNX_FILES) and max(measured.values()) < 1e-4


# numbers against torch: what is allowed, and that more is not


@pytest.fixture
def model(workplace):
    return load_system(workplace / "systems" / "dense")[0]


@pytest.mark.parametrize("file, name", [
    ("encoder.onnx", "encoder.layers.1.attention.out_proj.bias"),
    ("decoder.onnx", "predictor.context_proj.bias"),
    ("joiner.onnx", "joiner.output_linear.bias"),
])  # fmt: skip
def test_one_weight_that_is_another_is_found_in_each_file(folder, model, file, name):
    change_weights(
        folder / file, lambda _, values: values + 1e-2 * (np.arange(len(values)) == 3).astype(np.float32), name
    )
    with pytest.raises(UserError, match=f"{file}: its output differs from torch by"):
        verify_numbers(folder, model, read_manifest(folder, check_files=False))


def test_a_mask_that_forgets_padding_is_found(exported, model):
    """The batches of different lengths are there for this: alone, every utterance would be right."""

    class Forgetful(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.subsampling_factor = encoder, 4

        def forward(self, x, x_lens):
            return self.encoder(x, torch.full_like(x_lens, x.size(1)))

    model.encoder = Forgetful(model.encoder)
    assert "encoder.onnx" in told(lambda: verify_numbers(exported, model, read_manifest(exported)))


@right_integers
def test_int8_may_err_as_eight_bits_err_and_no_more(folder, exported, model):
    manifest = {**read_manifest(exported), "weights": "int8"}
    for file in ONNX_FILES:
        quantize_dynamic(str(exported / file), str(folder / file), weight_type=QuantType.QUInt8)
    found = verify_numbers(folder, model, manifest)
    assert 1e-3 < found["encoder.onnx"] < 0.2  # it is not float32
    with pytest.raises(UserError, match="its output differs from torch"):  # nor may it pass for float32
        verify_numbers(folder, model, {**manifest, "weights": "float32"})

    def six_bits(name, values):
        if name.endswith("weight_quantized"):
            values = ((values.astype(int) + 2) // 4 * 4).clip(0, 255).astype(values.dtype)
        return values

    change_weights(folder / "encoder.onnx", six_bits)
    assert "encoder.onnx: its output differs from torch" in told(verify_numbers, folder, model, manifest)


@pytest.mark.parametrize("right, words", [(True, "a fault of the export"), (False, "this onnxruntime multiplies")])
def test_a_runtime_that_multiplies_wrongly_is_named(folder, exported, model, monkeypatch, right, words):
    monkeypatch.setattr("rnnt_kd.export.check_numbers.multiplies_integers", lambda: right)
    change_weights(folder / "joiner.onnx", lambda name, values: values * 3)
    with pytest.raises(UserError, match=f"its output differs from torch .*; {words}"):
        verify_numbers(folder, model, {**read_manifest(exported), "weights": "int8"})


@pytest.mark.parametrize("weights, other", [("float16", "int4"), ("int4", "float16")])
def test_the_weights_that_are_stored_are_the_promised_ones(folder, exported, model, weights, other):
    manifest = {**read_manifest(exported), "weights": weights}
    for file in ONNX_FILES:
        convert(exported / file, folder / file, weights)
    assert 1e-5 < max(verify_numbers(folder, model, manifest).values()) < {"float16": 1e-2, "int4": 0.5}[weights]
    convert(exported / "encoder.onnx", folder / "encoder.onnx", other)
    assert "encoder.onnx: its output differs from torch" in told(verify_numbers, folder, model, manifest)

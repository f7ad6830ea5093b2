"""Rounded files: the rounding that is promised, no worse than onnxruntime's own quantiser, in fewer bytes."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from command_cases import told
from export_cases import change_weights, loaded_operators, one_node_file, right_integers
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType, quantize_dynamic

from rnnt_kd.errors import UserError
from rnnt_kd.export.formats import ZERO_POINT, convert, to_uint8
from rnnt_kd.export.model_json import ONNX_FILES
from rnnt_kd.export.onnx_file import session
from rnnt_kd.export.size_table import write_formats
from rnnt_kd.sparsity.rounding import rounded
from rnnt_kd.systems.store import load_system


@pytest.fixture(scope="module")
def files(workplace, tmp_path_factory):
    """format -> folder, of the 90 % sparse system."""
    folder = tmp_path_factory.mktemp("formats")
    write_formats(load_system(workplace / "systems" / "sparse")[0], folder)
    return folder


def feeds(file, seed=0):
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((2, 200, 80)) * 3.5 - 7.5).astype(np.float32)
    pair = generator.standard_normal((2, 33, 24)).astype(np.float32)
    return {
        "encoder.onnx": {"x": x, "x_lens": np.array([200, 120])},
        "decoder.onnx": {"y": generator.integers(-1, 16, (40, 2))},
        "joiner.onnx": {"encoder_out": pair[0], "decoder_out": pair[1]},
    }[file]


def error(path, reference, file):
    """|difference| / |output|."""
    got, expected = (session(one).run(None, feeds(file))[0] for one in (path, reference))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@given(st.lists(st.floats(-100, 100, width=32), max_size=40), st.sampled_from([1.0, 1e-30, 1e30]))
def test_integers_are_within_half_a_step_and_zero_is_exact(numbers, factor):
    values = np.array([*numbers, 0.0], dtype=np.float32) * np.float32(factor)
    q, scale = to_uint8(values)
    assert q.dtype == np.uint8 and q.shape == values.shape and np.all(q[values == 0] == ZERO_POINT)
    back = (q.astype(np.float64) - 128) * float(scale)
    assert np.abs(back - values).max() <= 0.5001 * float(scale)
    if np.abs(values).max() > 1e-36:
        assert float(scale) == pytest.approx(float(np.abs(values).max()) / 127, rel=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (4, 2)])
def test_an_empty_tensor_and_one_of_zeros(shape):
    q, scale = to_uint8(np.zeros(shape, dtype=np.float32))
    assert q.shape == shape and np.all(q == ZERO_POINT) and scale > 0


@pytest.mark.parametrize("file", ONNX_FILES)
def test_int8_is_as_near_as_onnxruntimes_own_quantiser(files, tmp_path, file):
    quantize_dynamic(files / "float32" / file, tmp_path / file, weight_type=QuantType.QUInt8)
    theirs = error(tmp_path / file, files / "float32" / file, file)
    assert 0 < error(files / "int8" / file, files / "float32" / file, file) < 1.1 * theirs


def test_int8_computes_with_integers_in_the_encoder_and_stores_them_elsewhere(files):
    counts = {file: loaded_operators(files / "int8" / file) for file in ONNX_FILES}
    # onnxruntime joins DynamicQuantizeLinear, MatMulInteger, Cast, Mul, Mul to one node
    weights = [t for t in onnx.load(files / "float32" / "encoder.onnx").graph.initializer if len(t.dims) == 2]
    assert counts["encoder.onnx"].count("DynamicQuantizeMatMul") == len(weights)
    for file in ("decoder.onnx", "joiner.onnx"):
        assert not [operator for operator in counts[file] if "Integer" in operator or "Quantize" in operator]
        assert {"MatMul", "Gemm", "FusedMatMul"} & set(counts[file])


def test_bytes_a_weight(files):
    """int8: one for each entry of a matrix, two for the others; float16: two.  What is left is the graph's."""
    for file in ONNX_FILES:
        weights = onnx.load(files / "float32" / file).graph.initializer
        sizes = [(len(tensor.dims), int(np.prod(tensor.dims))) for tensor in weights]
        rest = (files / "float32" / file).stat().st_size - sum(4 * size for _, size in sizes)
        for name, expected in (
            ("int8", sum(size if dims > 1 else 2 * size for dims, size in sizes)),
            ("float16", sum(2 * size for _, size in sizes)),
        ):
            got = (files / name / file).stat().st_size
            assert expected < got < expected + rest + 120 * len(sizes), (file, name)


@pytest.mark.parametrize("file", ONNX_FILES)
def test_float16_computes_in_float32_with_rounded_weights(files, tmp_path, file):
    shutil.copy(files / "float32" / file, tmp_path)
    change_weights(tmp_path / file, lambda _, values: torch.from_numpy(values).half().float().numpy())
    types = {tensor.data_type for tensor in onnx.load(files / "float16" / file).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types and onnx.TensorProto.FLOAT not in types
    assert error(files / "float16" / file, tmp_path / file, file) < 1e-6
    assert error(files / "float16" / file, files / "float32" / file, file) > 1e-6


@pytest.mark.parametrize("file", ONNX_FILES)
def test_four_bits_compute_what_the_rounded_system_computes(files, workplace, tmp_path, file):
    """A scale an output, however ONNX stores the matrix; what is rounded already loses nothing more."""
    model = load_system(workplace / "systems" / "sparse")[0].requires_grad_(False)
    for value in model.parameters():
        value.copy_(rounded(value, 4))
    write_formats(model, tmp_path, ["int4"])
    assert error(files / "int4" / file, tmp_path / "float32" / file, file) < 1e-6
    assert error(tmp_path / "int4" / file, tmp_path / "float32" / file, file) < 1e-6
    assert 1e-3 < error(files / "int4" / file, files / "float32" / file, file) < 0.5
    if file == "encoder.onnx":  # the others are nodes more than weights here
        assert (files / "int4" / file).stat().st_size < 0.8 * (files / "int8" / file).stat().st_size


@pytest.mark.parametrize("operator, attributes", [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})], ids=str)
def test_scales_of_four_bits_are_of_outputs(tmp_path, operator, attributes):
    """Outputs of very different sizes: one scale for all would lose the small ones."""
    outputs = np.float32(10.0) ** -np.arange(4, dtype=np.float32)
    weight = outputs[:, None] * np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    weight = weight if attributes else np.ascontiguousarray(weight.T)
    one_node_file(tmp_path / "before.onnx", operator, weight, [2, 6], [2, 4], "layer.weight", **attributes)
    convert(tmp_path / "before.onnx", tmp_path / "after.onnx", "int4")
    x = {"x": np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)}
    got, expected = (session(tmp_path / name).run(None, x)[0] for name in ("after.onnx", "before.onnx"))
    assert not np.array_equal(got, expected) and (np.abs(got - expected) < 0.3 * outputs).all()


@pytest.mark.parametrize("name", ["float32", "float16", pytest.param("int8", marks=right_integers), "int4"])
@pytest.mark.parametrize("file", ONNX_FILES)
def test_without_its_zeros_a_file_computes_the_same_bits(files, name, file):
    sparse = files / f"sparse {name}".removesuffix(" float32") / file
    before = (files / name / file).stat().st_size
    assert sparse.stat().st_size < before if file == "encoder.onnx" else sparse.stat().st_size <= before
    for seed in range(2):
        got, expected = (session(path).run(None, feeds(file, seed)) for path in (sparse, files / name / file))
        for one, other in zip(got, expected, strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path):
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    one_node_file(before, "Add", np.full(4, 7e4, np.float32), [4], [4], "layer.bias")
    for form in ("float16", "int8", "int4"):
        assert "'layer.bias': holds 70000; expected at most 65504" in told(convert, before, after, form)
    one_node_file(before, "Add", np.full((4, 4), 7e4, np.float32), [4], [4, 4], "layer.bias")
    for form in ("int8", "int4"):
        convert(before, after, form)  # a matrix has its own scale, or one for each output
        got = session(after).run(None, {"x": np.zeros(4, dtype=np.float32)})[0]
        assert np.allclose(got, 7e4, rtol=1e-7 if form == "int8" else 1e-3)
    one_node_file(before, "Add", np.full((4, 4), 7e5, np.float32), [4], [4, 4], "layer.bias")
    assert "the scales of 'layer.bias': holds 100000; expected at most 65504" in told(convert, before, after, "int4")


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    for form in ("float16", "int8", "int4", "sparse"):
        for content in (b"", b"not a model", b"\x00\x01", bytes(range(256))):
            (tmp_path / "bad.onnx").write_bytes(content)
            with pytest.raises(UserError, match="bad.onnx: damaged or not an ONNX file"):
                convert(tmp_path / "bad.onnx", tmp_path / "out.onnx", form)
        assert "missing" in told(convert, tmp_path / "no.onnx", tmp_path / "out.onnx", form)
    assert not (tmp_path / "out.onnx").exists()


def test_a_matrix_without_entries_and_one_that_is_used_as_it_lies(tmp_path):
    """Of a file of ours the metadata say how a matrix is stored; its grid is the one that a system learns with."""
    one_node_file(tmp_path / "empty.onnx", "MatMul", np.zeros((7, 0), np.float32), [2, 7], [2, 0], "w")
    convert(tmp_path / "empty.onnx", tmp_path / "out.onnx", "int4")
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 10.0 ** -np.arange(6)[:, None]
    weight = rounded(torch.tensor(weight.astype(np.float32)), 4).numpy()  # a scale for each row of x @ weight
    one_node_file(tmp_path / "before.onnx", "MatMul", weight, [2, 6], [2, 4], "w")
    model = onnx.load(tmp_path / "before.onnx")
    onnx.helper.set_model_props(model, {"transposed": "[]"})
    onnx.save(model, tmp_path / "before.onnx")
    convert(tmp_path / "before.onnx", tmp_path / "after.onnx", "int4")
    x = {"x": np.eye(6, dtype=np.float32)[:2]}
    got, expected = (session(tmp_path / name).run(None, x)[0] for name in ("after.onnx", "before.onnx"))
    np.testing.assert_array_equal(got, expected)

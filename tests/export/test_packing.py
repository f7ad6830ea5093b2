"""Zeros left out of a file: the places are coded as documented, every weight keeps its bits, onnxruntime unpacks once."""

import numpy as np
import onnx
import pytest
from export_cases import loaded_operators, one_node_file
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from rnnt_kd.export.formats import convert
from rnnt_kd.export.onnx_file import load_onnx, session
from rnnt_kd.export.packing import ALL, Code, best_code, encode_gaps, encode_halves, pack
from rnnt_kd.export.rewriting import Rewriter

MASKS = st.lists(st.booleans(), max_size=60) | st.lists(st.integers(0, 40).map(lambda n: n == 0), max_size=300)
ONNX_TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "uint8": onnx.TensorProto.UINT8}


def places_of_gaps(packed):
    """The documented code, read by a plain loop."""
    place, found = -1, []
    for byte in packed.tolist():
        for code in (byte // 16, byte % 16):
            if code == 15:
                place += 15
            else:
                place += code + 1
                found.append(place)
    return found


@given(MASKS)
def test_gaps_are_coded_as_documented(mask):
    filled = np.array(mask, dtype=bool)
    assert places_of_gaps(encode_gaps(filled)) == [index for index, value in enumerate(mask) if value]


@given(st.lists(st.integers(-8, 7), max_size=60))
def test_two_codes_of_four_bits_are_a_byte(codes):
    text = "".join(f"{byte:02x}" for byte in encode_halves(np.array(codes, dtype=np.int8)).tolist())
    assert len(text) in (len(codes), len(codes) + 1) and [int(half, 16) - 8 for half in text][: len(codes)] == codes


def write_weights(path, tensors):
    """A file that hands out its weights."""
    outputs = [
        helper.make_tensor_value_info(f"out.{name}", ONNX_TYPES[str(value.dtype)], value.shape)
        for name, value in tensors.items()
    ]
    nodes = [helper.make_node("Identity", [name], [f"out.{name}"]) for name in tensors]
    weights = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "weights", [], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    return path


def values_of(path):
    run = session(path)
    names = [value.name.removeprefix("out.") for value in run.get_outputs()]
    return dict(zip(names, run.run(None, {}), strict=True))


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert got[name].tobytes() == value.tobytes(), name


def sparse_array(shape, density, dtype, seed=0, block=1):
    generator = np.random.default_rng(seed)
    zero = 128 if dtype == "uint8" else 0
    values = generator.integers(1, 100, shape).astype(dtype)
    filled = generator.random(int(np.prod(shape)) // block).repeat(block).reshape(shape) < density
    return np.where(filled, values, np.array(zero, dtype=dtype))


def hostile(dtype):
    """Weights of many shapes, and what a coder of gaps may stumble over."""
    far = sparse_array((50, 40), 0.0, dtype)
    far[-1, -1] = 7
    tensors = {
        "nothing": sparse_array((70, 30), 0.0, dtype),
        "far": far,
        "thin": sparse_array((61, 37), 0.02, dtype, 1),
        "ten": sparse_array((64, 96), 0.1, dtype, 2),
        "vector": sparse_array((4000,), 0.1, dtype, 3),
        "kernel": sparse_array((16, 3, 3, 16), 0.1, dtype, 4),
        "half": sparse_array((64, 64), 0.5, dtype, 5),
        "blocks": sparse_array((64, 64), 0.1, dtype, 6, block=16),
        "small blocks": sparse_array((64, 64), 0.1, dtype, 7, block=4),
        "dense": sparse_array((30, 30), 1.0, dtype, 8),
        "small": sparse_array((3, 3), 0.3, dtype, 9),
        "scalar": sparse_array((), 1.0, dtype),
    }
    if dtype != "uint8":
        tensors["ten"][:2, 0] = -0.0, np.nan
        tensors["ten"][3, :2] = np.inf, np.finfo(dtype).smallest_subnormal
    return tensors


@pytest.mark.parametrize("dtype", list(ONNX_TYPES))
def test_every_weight_keeps_its_bits(tmp_path, dtype):
    tensors = hostile(dtype)
    before = write_weights(tmp_path / "before.onnx", tensors)
    convert(before, tmp_path / "after.onnx", "sparse")
    assert_same_bits(values_of(tmp_path / "after.onnx"), tensors)
    left = {tensor.name for tensor in onnx.load(tmp_path / "after.onnx").graph.initializer}
    assert left & set(tensors) == {"dense", "small", "scalar"}  # they would not become smaller
    assert (tmp_path / "after.onnx").stat().st_size < 0.45 * before.stat().st_size
    for name in ("nothing", "far"):  # a file of zeros alone
        convert(write_weights(before, {name: tensors[name]}), tmp_path / "after.onnx", "sparse")
        assert_same_bits(values_of(tmp_path / "after.onnx"), {name: tensors[name]})


CODES = [Code(block, places) for places in ("gaps", "bits") for block in (1, 4, 16)]


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(
        st.tuples(st.just("float32"), st.sampled_from(CODES)),
        st.tuples(st.just("int8"), st.sampled_from([ALL, *CODES])),
    ),
    st.floats(0, 1),
    st.integers(1, 30),
)
def test_each_code_with_any_block(tmp_path_factory, kind, density, rows):
    """Codes of 4 bits come out as float32."""
    folder, (dtype, code) = tmp_path_factory.mktemp("code"), kind
    tensors = {name: sparse_array((rows, code.block), density, dtype, index) for index, name in enumerate("ab")}
    if dtype == "int8":
        tensors = {name: ((values + 8) % 16 - 8).astype(np.int8) for name, values in tensors.items()}
    expected = {name: values.astype(np.float32) for name, values in tensors.items()}
    rewriter = Rewriter(load_onnx(write_weights(folder / "before.onnx", expected)))
    for name in tensors:
        del rewriter.weights[name]
    pack(rewriter, tensors, code)
    rewriter.finish()
    onnx.save(rewriter.model, folder / "after.onnx")
    assert_same_bits(values_of(folder / "after.onnx"), expected)


def test_the_code_with_the_fewest_bytes_is_taken():
    for density, block, expected in (
        (0.1, 1, Code(1, "gaps")),
        (0.5, 1, Code(1, "bits")),
        (0.1, 16, Code(16, "gaps")),
        (0.1, 4, Code(4, "gaps")),
        (0.5, 16, Code(16, "bits")),
    ):
        assert best_code(sparse_array((160, 160), density, "float32", 3, block))[0] == expected
    for density, expected in ((0.1, Code(1, "gaps")), (0.4, Code(1, "bits"))):
        assert best_code(sparse_array((160, 160), density, "int8"))[0] == expected
    _, size = best_code(sparse_array((320, 320), 0.1, "uint8"))
    nonzero = int((sparse_array((320, 320), 0.1, "uint8") != 128).sum())
    assert nonzero * (1 + 0.469 / 0.1 / 8) < size < nonzero * 1.66 + 100  # entropy of the places below, 5.3 bits above


def test_sparse_initializer_is_onnx_own_and_of_float32_alone(tmp_path):
    tensors = {"w": sparse_array((64, 96), 0.1, "float32"), "v": sparse_array((64, 96), 0.6, "float32")}
    tensors.update(h=sparse_array((64, 96), 0.1, "float16"), q=sparse_array((64, 96), 0.1, "uint8"))
    tensors["w"][0, 0] = -0.0
    convert(write_weights(tmp_path / "before.onnx", tensors), tmp_path / "after.onnx", "sparse_initializer")
    model = onnx.load(tmp_path / "after.onnx")
    assert [sparse.values.name for sparse in model.graph.sparse_initializer] == ["w"]  # 12 bytes a value
    assert_same_bits(values_of(tmp_path / "after.onnx"), tensors)


@pytest.mark.parametrize("name, reads_places", [("ten", "Compress"), ("half", "NonZero")])
def test_onnxruntime_unpacks_once_at_load(tmp_path, name, reads_places):
    """No node that unpacks is left in the graph that runs for every utterance."""
    weight = hostile("float32")[name]
    before = one_node_file(tmp_path / "before.onnx", "MatMul", weight, ["N", 64], ["N", weight.shape[1]])
    convert(before, tmp_path / "after.onnx", "sparse")
    assert {"ScatterND", reads_places} <= {node.op_type for node in onnx.load(tmp_path / "after.onnx").graph.node}
    assert loaded_operators(tmp_path / "after.onnx") == ["MatMul"]

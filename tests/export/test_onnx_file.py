"""One ONNX file: right at every size, its weights under the parameters' own names, small, repeatable."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from rnnt_kd.config import ModelConfig, SystemConfig
from rnnt_kd.errors import UserError
from rnnt_kd.export import graphs
from rnnt_kd.export.onnx_file import load_onnx, metadata_of, session, write_graph
from rnnt_kd.export.rewriting import compact
from rnnt_kd.export.targets.sherpa_onnx import SPECS
from rnnt_kd.systems.store import build_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(6)
    options = {"num_layers": 2, "dim": 32, "feedforward_dim": 32}
    config = ModelConfig(encoder_options=options, predictor_dim=24, joiner_dim=24, dropout=0.1)
    return build_model(SystemConfig(model=config, vocab_size=30)).eval()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    for name, spec in SPECS.items():
        write_graph(spec(model), folder / name)
    return folder


def test_every_parameter_of_decoding_is_in_one_file_under_its_own_name(model, written):
    """Also those that hold equal values (fresh norms, zero biases), bit for bit, transposed where the file says so."""
    found = {}
    for name in SPECS:
        file = load_onnx(written / name)
        transposed = json.loads(metadata_of(file)["transposed"])
        for tensor in file.graph.initializer:
            array = numpy_helper.to_array(tensor)
            assert tensor.name not in found
            found[tensor.name] = array.T if tensor.name in transposed else array
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith(graphs.TRAINING_ONLY)}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value.numpy()), name


def test_export_leaves_the_model_as_it_was(model, written):
    """torch's exporter turns the children of a module in training mode to training mode when it is done."""
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_same_model_gives_the_same_bytes(model, written, tmp_path):
    for name, spec in SPECS.items():
        write_graph(spec(model), tmp_path / name)
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_little_is_written_beside_the_weights(written):
    file = load_onnx(written / "encoder.onnx")
    assert file.ByteSize() - sum(tensor.ByteSize() for tensor in file.graph.initializer) < 25_000  # 90 000 by itself
    assert str(written).encode() not in file.SerializeToString()  # no path of the machine that exported
    assert b"/home" not in file.SerializeToString() and b".py" not in file.SerializeToString()


def test_an_unused_input_is_not_dropped_silently(tmp_path):
    class Careless(torch.nn.Module):
        def forward(self, x, x_lens):
            return x * 2

    with pytest.raises(AssertionError, match="changed the inputs"):
        example = torch.zeros(1, 3), torch.tensor([3])
        write_graph(graphs.GraphSpec(Careless(), example, ["x", "x_lens"], ["y"], {}, {}), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


class Normed(torch.nn.Module):
    """``before`` and a BatchNorm behind it."""

    def __init__(self, before):
        super().__init__()
        self.before, self.norm = before, torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.before(x))


def spec_of(module):
    return graphs.GraphSpec(module.eval(), (torch.zeros(1, 3, 5),), ["x"], ["y"], {"x": {2: "T"}, "y": {2: "T"}}, {})


def test_a_batch_norm_is_there_with_what_it_has_seen_but_for_how_often(tmp_path):
    module = Normed(torch.nn.ReLU())
    module(torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1)))
    write_graph(spec_of(module), tmp_path / "x.onnx")
    names = {tensor.name for tensor in load_onnx(tmp_path / "x.onnx").graph.initializer}
    assert names == {*module.state_dict()} - {"norm.num_batches_tracked"}
    x = torch.randn(1, 3, 7)
    (found,) = session(tmp_path / "x.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


class Odd(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


melts = pytest.mark.skipif(not torch.__version__.startswith("1."), reason="torch 2 keeps a BatchNorm as it is")


@pytest.mark.parametrize("module, told", [
    pytest.param(Normed(torch.nn.Conv1d(3, 3, 1)), "leaves no parameter [a-z_.]+ in the graph", marks=melts),
    (Odd(), "cannot write it as ONNX"),
])  # fmt: skip
def test_a_module_that_the_exporter_cannot_keep_is_one_line(tmp_path, module, told):
    with pytest.raises(UserError, match=f"encoder: torch.*{told}"):
        write_graph(spec_of(module), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_compact_merges_equal_nodes_and_keeps_the_result(tmp_path):
    def node(kind, inputs, outputs, **attributes):
        return onnx.helper.make_node(kind, inputs, outputs, **attributes)

    two = numpy_helper.from_array(np.array([2.0], dtype=np.float32))
    nodes = [
        node("Constant", [], ["two"], value=two),
        node("Constant", [], ["again"], value=two),
        node("Mul", ["x", "two"], ["a"]),
        node("Mul", ["x", "again"], ["b"]),
        node("Mul", ["again", "x"], ["c"]),  # not the same: only equal inputs in the same order
        node("Exp", ["c"], ["unread"]),
        node("Sub", ["a", "c"], ["y"]),
        node("Add", ["a", "b"], ["z"]),
    ]
    values = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xyz"}
    graph = onnx.helper.make_graph(nodes, "g", [values["x"]], [values["y"], values["z"]])
    compact(graph)
    assert [node.op_type for node in graph.node] == ["Constant", "Mul", "Mul", "Sub", "Add"]
    opsets = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=7), str(tmp_path / "g.onnx"))
    got = session(tmp_path / "g.onnx").run(None, {"x": np.array([1.5], dtype=np.float32)})
    assert [float(value[0]) for value in got] == [0.0, 6.0]

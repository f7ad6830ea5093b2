"""Files of the form of icefall's export-onnx.py: checked, made smaller, compared; and what is none."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from rnnt_kd.bin import shrink_onnx
from rnnt_kd.errors import UserError
from rnnt_kd.export.size_table import OnnxTransducer

C, J = 30, 16


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.proj = nn.Linear(80, 64), nn.Linear(64, J)

    def forward(self, x, x_lens):
        return self.proj(self.inner(x[:, ::4]).relu()), (x_lens + 3) // 4


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.proj = nn.Embedding(C, 32), nn.Linear(64, J)

    def forward(self, y):
        return self.proj(self.embedding(y).flatten(1))


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.output_linear = nn.Linear(J, C)

    def forward(self, encoder_out, decoder_out):
        return self.output_linear(torch.tanh(encoder_out + decoder_out))


def export(folder, metadata=None):
    """As export-onnx.py: opset 13, constants folded, dynamic axes, metadata."""
    torch.manual_seed(0)
    n, more = {0: "N"}, {"dynamo": False} if "dynamo" in torch.onnx.export.__code__.co_varnames else {}
    x, x_lens, y, rows = (
        torch.zeros(1, 100, 80),
        torch.tensor([100]),
        torch.zeros(1, 2, dtype=torch.int64),
        torch.rand(1, J),
    )
    parts = [
        (
            "encoder",
            Encoder(),
            (x, x_lens),
            ["x", "x_lens"],
            ["encoder_out", "encoder_out_lens"],
            {"model_type": "zipformer2"},
        ),
        ("decoder", Decoder(), (y,), ["y"], ["decoder_out"], {"context_size": "2", "vocab_size": str(C)}),
        ("joiner", Joiner(), (rows, rows), ["encoder_out", "decoder_out"], ["logit"], {"joiner_dim": str(J)}),
    ]
    for name, module, inputs, names, outputs, props in parts:
        with torch.no_grad():
            for weight in module.parameters():
                weight[torch.rand_like(weight) < 0.9] = 0.0
        axes = {key: {0: "N", 1: "T"} if name == "encoder" and "lens" not in key else n for key in (*names, *outputs)}
        path = folder / f"{name}-epoch-9-avg-1.onnx"
        torch.onnx.export(module.eval(), inputs, str(path), opset_version=13, input_names=names, output_names=outputs,
                          dynamic_axes=axes, **more)  # fmt: skip
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, {**props, **(metadata or {})})
        onnx.save(model, str(path))
        (folder / f"{name}-epoch-9-avg-1.int8.onnx").write_bytes(b"theirs")
    pieces = ["<blk>", "<sos/eos>", "<unk>", *(f"x{n}" for n in range(3, C))]
    (folder / "tokens.txt").write_text("".join(f"{piece} {n}\n" for n, piece in enumerate(pieces)))


def run(folder, *options):
    shrink_onnx.main.__wrapped__(
        [str(folder), "--tokens", str(folder / "tokens.txt"), "--out", str(folder / "out"), *options]
    )
    return folder / "out"


@pytest.mark.parametrize("form, most, times", [
    ("float32", 0.0, 1.0), ("sparse", 0.0, 2.0), ("float16", 1e-2, 1.5), ("int8", 0.1, 1.8), ("int8+sparse", 0.1, 2.5),
    ("int4", 0.3, 1.8),
])  # fmt: skip
def test_every_format_computes_what_the_original_computes(tmp_path, form, most, times):
    export(tmp_path)
    out = run(tmp_path, "--format", form)
    sizes = [sum(p.stat().st_size for p in place.glob("encoder*.onnx")) for place in (tmp_path, out)]
    assert sizes[0] / sizes[1] > times * 0.9
    for name in ("encoder", "decoder", "joiner"):
        (tmp_path / f"{name}-epoch-9-avg-1.onnx").rename(tmp_path / f"{name}.onnx")
    originals, made = OnnxTransducer(tmp_path), OnnxTransducer(out)
    features = torch.randn(1, 81, 80), torch.tensor([81])
    one, other = (model.encode(*features) for model in (originals, made))
    assert one[1].tolist() == other[1].tolist()
    y = torch.tensor([[0, 5], [3, 7]])
    logits = [
        model.joiner(model.encode(*features)[0][:, 0], model.predictor.tabulated()(y)) for model in (originals, made)
    ]
    assert float((logits[0] - logits[1]).abs().max() / logits[0].abs().max()) <= most
    assert metadata_of(out / "encoder.onnx")["model_type"] == "zipformer2"


def with_a_nan(path):
    model = onnx.load(str(path))
    weight = next(one for one in model.graph.initializer if len(one.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = float("nan")
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(path))


@pytest.mark.parametrize("form", ["float32", "int8", "int8+sparse"])
def test_weights_that_are_no_numbers_are_refused_and_nothing_is_left(tmp_path, form):
    export(tmp_path)
    with_a_nan(tmp_path / "joiner-epoch-9-avg-1.onnx")
    with pytest.raises(UserError, match="computes nan at most; expected numbers that are finite"):
        run(tmp_path, "--format", form)
    assert not (tmp_path / "out").exists()


def changed(path, change):
    model = onnx.load(str(path))
    change(model.graph, next(one.name for one in model.graph.initializer if len(one.dims) == 2))
    onnx.save(model, str(path))


def in_a_branch(graph, weight):
    """Of an If, whose outcome the output adds 0 times."""
    info = onnx.helper.make_tensor_value_info("of_branch", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceSum", [weight], ["of_branch"], keepdims=0)], "b", [], [info]
    )
    beside(graph, [
        onnx.helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True))),
        onnx.helper.make_node("If", ["yes"], ["beside"], then_branch=branch, else_branch=branch),
    ])  # fmt: skip


def tied(graph, weight):
    beside(graph, [onnx.helper.make_node("ReduceSum", [weight], ["beside"], keepdims=0)])


def beside(graph, nodes):
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    nothing = onnx.numpy_helper.from_array(np.float32(0.0), "nothing")
    graph.initializer.append(nothing)
    more = [
        onnx.helper.make_node("Mul", ["beside", "nothing"], ["added"]),
        onnx.helper.make_node("Add", ["before", "added"], [output]),
    ]
    graph.node.extend([*nodes, *more])


@pytest.mark.parametrize("form", ["float16", "int8", "int4", "sparse"])
@pytest.mark.parametrize("change", [in_a_branch, tied])
@pytest.mark.parametrize("part", ["encoder", "joiner"])
def test_a_weight_that_others_read_too_is_there_for_all(tmp_path, part, change, form):
    export(tmp_path)
    changed(tmp_path / f"{part}-epoch-9-avg-1.onnx", change)
    assert (run(tmp_path, "--format", form) / f"{part}.onnx").exists()


def test_a_number_that_float16_takes_for_nothing_is_no_nan(tmp_path):
    def divided(graph, weight):
        for name, value in (("eps", np.full(1, 1e-9)), ("zeros", np.zeros(1))):
            graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        beside(graph, [onnx.helper.make_node("Div", ["zeros", "eps"], ["beside"])])

    export(tmp_path)
    changed(tmp_path / "joiner-epoch-9-avg-1.onnx", divided)
    with pytest.raises(UserError, match="joiner computes NaN or infinity, and the original none"):
        run(tmp_path, "--format", "float16")
    assert not (tmp_path / "out").exists()


def metadata_of(path):
    return {prop.key: prop.value for prop in onnx.load(str(path)).metadata_props}


@pytest.mark.parametrize("spoil, message", [
    (lambda f: (f / "joiner-epoch-9-avg-1.onnx").unlink(), r"0 files joiner\*.onnx in float32; expected one"),
    (lambda f: (f / "encoder-epoch-8-avg-1.onnx").write_bytes(b"x"), r"2 files encoder\*.onnx in float32"),
    (lambda f: (f / "tokens.txt").write_text("<blk> 0\n"), "its vocab_size is 30; expected 1, the lines of"),
    (lambda f: export(f, {"joiner_dim": "x"}), "metadata joiner_dim is x; expected a number"),
    (lambda f: export(f, {"joiner_dim": "²"}), "metadata joiner_dim is ²; expected a number"),
    (lambda f: export(f, {"context_size": "1"}), "metadata context_size is 1; expected 2"),
    (lambda f: (f / "encoder-epoch-9-avg-1.onnx").write_bytes(b"x"), "damaged or not an ONNX file"),
    (lambda f: (f / "out").mkdir(), "is there already"),
])  # fmt: skip
def test_what_is_no_such_folder_is_one_line(tmp_path, spoil, message):
    export(tmp_path)
    spoil(tmp_path)
    before = (tmp_path / "out").exists()
    with pytest.raises(UserError, match=message):
        run(tmp_path)
    assert (tmp_path / "out").exists() == before
    with pytest.raises(UserError, match="at most one of float16, int8 and int4"):
        run(tmp_path, "--format", "int8+float16")


def test_the_vocabulary_is_a_text_that_sherpa_onnx_reads(tmp_path):
    """It is copied: of the same pieces in another form sherpa-onnx would make nothing."""
    export(tmp_path)
    (tmp_path / "bpe.vocab").write_text("".join(f"x{n}\t0\n" for n in range(C)))
    with pytest.raises(UserError, match="bpe.vocab: is not tokens.txt; expected lines of a symbol and its number"):
        run(tmp_path, "--tokens", str(tmp_path / "bpe.vocab"))
    assert not (tmp_path / "out").exists()

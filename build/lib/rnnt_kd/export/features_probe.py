"""A streaming model of a few numbers, only to ask sherpa-onnx for the features that it computes.

``OnlineStream.get_frames`` is the one way to see them, and it needs a recogniser to make the stream.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rnnt_kd.data.audio_format import FEATURE_DIM


def write_probe(folder: Path) -> None:
    """encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt of a model that hears all and says nothing of use."""
    float32, int64 = TensorProto.FLOAT, TensorProto.INT64
    zero = numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["encoder_out"], axes=[1, 2], keepdims=1),
        helper.make_node("Identity", ["cached_attn"], ["new_cached_attn"]),
        helper.make_node("Cast", ["processed_lens"], ["frames"], to=float32),
        helper.make_node("ReduceMean", ["frames"], ["some"], keepdims=1),
        helper.make_node("Mul", ["some", "zero"], ["none"]),  # an input that nobody reads would end the client
        helper.make_node("Add", ["cached_conv", "none"], ["new_cached_conv"]),
    ]
    cache = [1, 1, "N", 1]
    inputs = [("x", float32, ["N", 7, FEATURE_DIM]), ("cached_attn", float32, cache), ("cached_conv", float32, cache)]
    outputs = [("encoder_out", float32, ["N", 1, 1]), ("new_cached_attn", float32, cache)]
    sizes = {"T": 7, "decode_chunk_len": 4, "left_context": 1, "encoder_dim": 1, "num_encoder_layers": 1}
    _write(
        folder / "encoder.onnx",
        nodes,
        [*inputs, ("processed_lens", int64, ["N"])],
        [*outputs, ("new_cached_conv", float32, cache)],
        {"model_type": "conformer", "cnn_module_kernel": 2, "pad_length": 7, **sizes},
        [zero],
    )
    nodes = [
        helper.make_node("Cast", ["y"], ["labels"], to=float32),
        helper.make_node("ReduceMean", ["labels"], ["decoder_out"], axes=[1], keepdims=1),
    ]
    vector = [("encoder_out", float32, ["N", 1]), ("decoder_out", float32, ["N", 1])]
    _write(folder / "decoder.onnx", nodes, [("y", int64, ["N", 2])], vector[1:], {"vocab_size": 2, "context_size": 2})
    nodes = [
        helper.make_node("Add", ["encoder_out", "decoder_out"], ["sum"]),
        helper.make_node("Concat", ["sum", "sum"], ["logit"], axis=1),
    ]
    _write(folder / "joiner.onnx", nodes, vector, [("logit", float32, ["N", 2])], {})
    (folder / "tokens.txt").write_text("<blk> 0\n<unk> 1\n", encoding="utf-8")


def _write(path: Path, nodes, inputs, outputs, metadata, weights=()) -> None:
    values = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, path.stem, values[0], values[1], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))

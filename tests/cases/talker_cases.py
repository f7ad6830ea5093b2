"""A model for sherpa-onnx that says what it is told, whatever it hears: the way to see what the client makes of tokens."""

from pathlib import Path
from typing import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from rnnt_kd.export.client import ClientResult, recognize, recognize_streaming
from rnnt_kd.export.client_text import tokens_txt
from rnnt_kd.export.features_probe import _write, write_probe

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def client_says(
    folder: Path, pieces: Sequence[str], streaming: bool = False, others: Sequence[str] = (), write=tokens_txt
) -> ClientResult:
    """The real client's result where a model says these pieces, one a frame; none of ``others`` comes twice.

    ``others``: pieces that the vocabulary begins with; ``write``: the vocabulary -> tokens.txt.
    """
    folder.mkdir()
    vocabulary, order = ["<blk>", "<unk>", *others], [0]
    for piece in pieces:
        order.append(vocabulary.index(piece) if piece in others else len(vocabulary))
        vocabulary += [] if piece in others else [piece]
    write_talker(folder, order, len(vocabulary), streaming)
    (folder / "tokens.txt").write_text(write(vocabulary), encoding="utf-8")
    samples = np.random.default_rng(0).normal(0, 0.1, 640 * (len(pieces) + 10)).astype(np.float32)
    if streaming:
        return recognize_streaming(folder, [samples])[0][0]
    return recognize(folder, [samples])[0]


def write_talker(folder: Path, order: Sequence[int], number: int, streaming: bool) -> None:
    """encoder.onnx, decoder.onnx, joiner.onnx: behind each label of ``order`` comes the next, behind the last blank."""
    write_probe(folder)
    if not streaming:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["encoder_out"], axes=[2], keepdims=1),
            helper.make_node("Identity", ["x_lens"], ["encoder_out_lens"]),
        ]
        inputs = [("x", FLOAT, ["N", "T", 80]), ("x_lens", INT64, ["N"])]
        outputs = [("encoder_out", FLOAT, ["N", "T", 1]), ("encoder_out_lens", INT64, ["N"])]
        _write(folder / "encoder.onnx", nodes, inputs, outputs, {"model_type": "conformer"})
    following = np.zeros(number, dtype=np.int64)
    following[order] = np.roll(order, -1)
    constants = {"following": following, "one": np.array([1]), "two": np.array([2]), "number": np.array(number)}
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    weights.append(numpy_helper.from_array(np.array([0, 30], np.float32), "scores"))
    nodes = [
        helper.make_node("Slice", ["y", "one", "two", "one"], ["last"]),
        helper.make_node("Squeeze", ["last", "one"], ["label"]),
        helper.make_node("Gather", ["following", "label"], ["next"], axis=0),
        helper.make_node("OneHot", ["next", "number", "scores"], ["decoder_out"]),
    ]
    inputs, outputs = [("y", INT64, ["N", 2])], [("decoder_out", FLOAT, ["N", number])]
    _write(folder / "decoder.onnx", nodes, inputs, outputs, {"vocab_size": number, "context_size": 2}, weights)
    inputs = [("encoder_out", FLOAT, ["N", 1]), ("decoder_out", FLOAT, ["N", number])]
    nodes = [helper.make_node("Add", ["encoder_out", "decoder_out"], ["logit"])]
    _write(folder / "joiner.onnx", nodes, inputs, [("logit", FLOAT, ["N", number])], {})

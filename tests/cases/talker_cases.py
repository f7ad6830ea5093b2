"""A model for sherpa-onnx that says what it is told, whatever it hears: the way to see what the client makes of tokens."""

from pathlib import Path
from types import MappingProxyType
from typing import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from rnnt_kd.export.client import ClientResult, recognize, recognize_streaming, write_probe
from rnnt_kd.export.client_text import tokens_txt


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
        graph = """encoder (float[N, T, 80] x, int64[N] x_lens) => (float[N, T, 1] encoder_out, int64[N] encoder_out_lens) {
            encoder_out = ReduceMean <axes = [2], keepdims = 1> (x)
            encoder_out_lens = Identity (x_lens) }"""
        _write(folder / "encoder.onnx", graph, model_type="conformer")
    following = np.zeros(number, dtype=np.int64)
    following[order] = np.roll(order, -1)
    constants = {"following": following, "one": np.array([1]), "two": np.array([2]), "number": np.array(number)}
    constants["scores"] = np.array([0, 30], np.float32)
    graph = f"""decoder (int64[N, 2] y) => (float[N, {number}] decoder_out) {{
        last = Slice (y, one, two, one)
        label = Squeeze (last, one)
        next = Gather <axis = 0> (following, label)
        decoder_out = OneHot (next, number, scores) }}"""
    _write(folder / "decoder.onnx", graph, constants, vocab_size=str(number), context_size="2")
    graph = f"""joiner (float[N, 1] encoder_out, float[N, {number}] decoder_out) => (float[N, {number}] logit) {{
        logit = Add (encoder_out, decoder_out) }}"""
    _write(folder / "joiner.onnx", graph)


def _write(path: Path, graph: str, constants: Mapping[str, np.ndarray] = MappingProxyType({}), **metadata: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["": 13]> {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))

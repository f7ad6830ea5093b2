"""Checks of an export's files by themselves: signatures, metadata, vocabulary, opset.

Every function raises ``UserError`` with one line for the first thing that is wrong.
"""

from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.errors import UserError
from rnnt_kd.export.client_text import tokens_txt
from rnnt_kd.export.onnx_file import AGAIN, TRANSPOSED, metadata_of
from rnnt_kd.text.tokenizer import Tokenizer

HIGHEST_OPSET, HIGHEST_IR = 23, 11  # onnxruntime 1.23; sherpa-onnx 2.0.1 brings 1.28
DOMAINS = ("", "ai.onnx", "com.microsoft")
STREAMING_KEYS = "T decode_chunk_len left_context encoder_dim num_encoder_layers cnn_module_kernel pad_length".split()
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

Signature = List[Tuple[str, int, Tuple[Optional[int], ...]]]  # name, element type, sizes (None: any)


def check_file(path: Path, model: onnx.ModelProto, ours: bool = True) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UserError(path, f"the ONNX checker refuses it ({first_line(error)})", "", AGAIN) from None
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise UserError(path, f"uses operators of '{opset.domain}'", "ONNX's own", AGAIN)
        if opset.domain != "com.microsoft" and opset.version > HIGHEST_OPSET:
            raise UserError(path, f"opset {opset.version}", f"at most {HIGHEST_OPSET}", AGAIN)
    if model.ir_version > HIGHEST_IR:
        raise UserError(path, f"ONNX IR version {model.ir_version}", f"at most {HIGHEST_IR}", AGAIN)
    used = {name for node in model.graph.node for name in node.input}
    for value in model.graph.input:
        if value.name not in used:
            raise UserError(path, f"its input '{value.name}' is not used", "an input that the graph reads", AGAIN)
    if ours and TRANSPOSED not in metadata_of(model):
        raise UserError(path, f"metadata '{TRANSPOSED}' is missing", "a file written by rnnt_kd", AGAIN)


def check_vocabulary(folder: Path, manifest: Dict[str, Any]) -> int:
    """The size that tokens.txt, bpe.model and model.json share."""
    path = folder / "model.json"
    for key, value, why in (
        ("blank_id", 0, "sherpa-onnx knows no other blank"),
        ("context_size", 2, "the start context of sherpa-onnx is [-1, 0]"),
        ("subsampling_factor", 4, "sherpa-onnx's times assume it"),
    ):
        if manifest.get(key) != value:
            raise UserError(path, f"{key} is {manifest.get(key)}", f"{value}: {why}")
    tokenizer = Tokenizer.load(folder / "bpe.model")
    pieces = tokenizer.pieces()
    lines = (folder / "tokens.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    expected = tokens_txt(pieces).split("\n")
    if lines != expected:
        pairs = enumerate(zip_longest(lines, expected), 1)
        wrong = next(number for number, (one, other) in pairs if one != other)
        expected_text = f"one 'symbol id' line for each of the {len(pieces)} pieces of bpe.model, in their order"
        raise UserError(f"{folder / 'tokens.txt'}:{wrong}", "is not the vocabulary of bpe.model", expected_text, AGAIN)
    if manifest.get("vocab_size") != len(pieces):
        raise UserError(path, f"vocab_size is {manifest.get('vocab_size')}", f"{len(pieces)}, the lines of tokens.txt")
    return len(pieces)


def check_decoder(path: Path, model: onnx.ModelProto, metadata: Dict[str, str], C: int, J: int) -> None:
    _check_metadata(path, metadata, vocab_size=C, context_size=2)
    check_signature(path, model, [("y", INT64, (None, 2))], [("decoder_out", FLOAT, (None, J))])


def check_joiner(path: Path, model: onnx.ModelProto, C: int, J: int) -> None:
    inputs: Signature = [("encoder_out", FLOAT, (None, J)), ("decoder_out", FLOAT, (None, J))]
    check_signature(path, model, inputs, [("logit", FLOAT, (None, C))])


def check_offline_encoder(path: Path, model: onnx.ModelProto, metadata: Dict[str, str], J: int):
    _check_metadata(path, metadata, model_type="conformer")
    inputs: Signature = [("x", FLOAT, (None, None, FEATURE_DIM)), ("x_lens", INT64, (None,))]
    check_signature(
        path, model, inputs, [("encoder_out", FLOAT, (None, None, J)), ("encoder_out_lens", INT64, (None,))]
    )
    x = np.full((2, 9, FEATURE_DIM), -7.5, dtype=np.float32)
    return {"x": x, "x_lens": np.array([9, 1], dtype=np.int64)}, (2, 3, J)


def check_streaming_encoder(path: Path, model: onnx.ModelProto, metadata: Dict[str, str], J: int):
    _check_metadata(path, metadata, model_type="conformer")
    values = {}
    for key in STREAMING_KEYS:
        if not metadata.get(key, "").isdigit():
            raise UserError(path, f"metadata {key} is {metadata.get(key)}", "a number", AGAIN)
        values[key] = int(metadata[key])
    L, left, D = values["num_encoder_layers"], values["left_context"], values["encoder_dim"]
    kernel, T, chunk = values["cnn_module_kernel"] - 1, values["T"], values["decode_chunk_len"] // 4
    if values["decode_chunk_len"] != 4 * chunk or T != 4 * chunk + 3:
        problem = f"metadata T is {T} and decode_chunk_len {values['decode_chunk_len']}"
        raise UserError(path, problem, "decode_chunk_len a multiple of 4, and T 3 more", AGAIN)
    attn, conv = (L, left, None, D), (L, kernel, None, D)
    inputs: Signature = [("x", FLOAT, (None, T, FEATURE_DIM)), ("cached_attn", FLOAT, attn)]
    inputs += [("cached_conv", FLOAT, conv), ("processed_lens", INT64, (None,))]
    outputs: Signature = [("encoder_out", FLOAT, (None, chunk, J)), ("new_cached_attn", FLOAT, attn)]
    check_signature(path, model, inputs, [*outputs, ("new_cached_conv", FLOAT, conv)])
    feeds = {
        "x": np.full((2, T, FEATURE_DIM), -7.5, dtype=np.float32),
        "cached_attn": np.zeros((L, left, 2, D), dtype=np.float32),
        "cached_conv": np.zeros((L, kernel, 2, D), dtype=np.float32),
        "processed_lens": np.zeros(2, dtype=np.int64),
    }
    return feeds, (2, chunk, J)


def check_signature(path: Path, model: onnx.ModelProto, inputs: Signature, outputs: Signature) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    for kind, values, expected in (("input", given, inputs), ("output", list(model.graph.output), outputs)):
        names = [name for name, _, _ in expected]
        if [value.name for value in values] != names:
            raise UserError(path, f"its {kind}s are {', '.join(v.name for v in values)}", ", ".join(names), AGAIN)
        for value, (name, element_type, sizes) in zip(values, expected, strict=True):
            tensor = value.type.tensor_type
            if tensor.elem_type != element_type:
                problem = f"{kind} '{name}' is {onnx.TensorProto.DataType.Name(tensor.elem_type)}"
                raise UserError(path, problem, onnx.TensorProto.DataType.Name(element_type), AGAIN)
            got = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
            wrong = len(got) != len(sizes) or any(
                b is not None and a is not None and a != b for a, b in zip(got, sizes)
            )
            fixed = kind == "input" and any(b is None and a is not None for a, b in zip(got, sizes))
            if wrong or fixed:
                raise UserError(path, f"{kind} '{name}' has the sizes {sizes_text(got)}", sizes_text(sizes), AGAIN)


def _check_metadata(path: Path, metadata: Dict[str, str], **expected) -> None:
    for key, value in expected.items():
        if metadata.get(key) != str(value):
            raise UserError(path, f"metadata {key} is {metadata.get(key)}", str(value), AGAIN)


def sizes_text(sizes: Sequence[Optional[int]]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]

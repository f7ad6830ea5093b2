"""An export's files by themselves and against each other, then one run in onnxruntime; no system is needed.

sherpa-onnx answers a bad model by ending its process, so it is asked here first.  C labels, J joiner dimension.
"""

from itertools import zip_longest
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import onnx

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.errors import UserError
from rnnt_kd.export import client_text
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.export.onnx_file import AGAIN, first_line, load_onnx, metadata_of, run, transposed_in
from rnnt_kd.text.tokenizer import Tokenizer

HIGHEST_OPSET, HIGHEST_IR = 23, 11  # onnxruntime 1.23; sherpa-onnx 2.0.1 brings 1.28
DOMAINS = ("", "ai.onnx", "com.microsoft")
STREAMING_KEYS = "T decode_chunk_len left_context encoder_dim num_encoder_layers cnn_module_kernel pad_length".split()
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
_FIXED = (
    ("blank_id", 0, "sherpa-onnx knows no other blank"),
    ("context_size", 2, "the start context of sherpa-onnx is [-1, 0]"),
    ("subsampling_factor", 4, "sherpa-onnx's times assume it"),
)

Value = Tuple[str, int, Tuple[Optional[int], ...]]  # name, element type, sizes (None: any)
Values = List[Value]


def verify_static(folder: Path) -> Dict[str, Any]:
    """Check everything that can be checked without the system; returns ``model.json``.

    Raises:
      UserError: one line for the first thing that is wrong: a missing or changed file, what ``check_file`` or
        ``check_signatures`` refuses, a context other than 2, a blank other than 0, a vocabulary that tokens.txt,
        bpe.model, joiner and metadata do not share, a size that is no number where ``static`` stands in ``model.json``,
        a graph that onnxruntime does not run.
    """
    folder = Path(folder)
    manifest, path = read_manifest(folder), folder / "model.json"
    models = {name: load_onnx(folder / name) for name in ONNX_FILES}
    for name, model in models.items():
        check_file(folder / name, model)
        transposed_in(folder / name, model)
    for key, value, why in _FIXED:
        if manifest.get(key) != value:
            raise UserError(path, f"{key} is {manifest.get(key)}", f"{value}: {why}")
    pieces = Tokenizer.load(folder / "bpe.model").pieces()
    lines = (folder / "tokens.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = enumerate(zip_longest(lines, client_text.tokens_txt(pieces).split("\n")), 1)
    if wrong := next((number for number, (one, other) in pairs if one != other), 0):
        expected = f"one 'symbol id' line for each of the {len(pieces)} pieces of bpe.model, in their order"
        raise UserError(f"{folder / 'tokens.txt'}:{wrong}", "is not the vocabulary of bpe.model", expected, AGAIN)
    if manifest.get("vocab_size") != len(pieces):
        raise UserError(path, f"vocab_size is {manifest.get('vocab_size')}", f"{len(pieces)}, the lines of tokens.txt")
    C, J, streaming, static = len(pieces), manifest["joiner_dim"], manifest["streaming"], manifest.get("static")
    paths = {name: folder / name for name in ONNX_FILES}
    signatures = check_signatures(paths, models, C, J, streaming, static=static)
    for name in ONNX_FILES if static else ():
        check_sizes(folder / name, models[name])
    rows = 1 if static else 2
    known: Dict[str, Any] = {"x_lens": np.array([9, 1])[:rows], "y": np.array([[-1, 0], [0, C - 1]])[:rows]}
    known["x"] = np.float32(-7.5)
    for name, (inputs, outputs) in signatures.items():
        feeds = {value: _filled(element, sizes, known.get(value, 0)) for value, element, sizes in inputs}
        output = run(folder / name, feeds)[0]
        expected_sizes = _filled(*outputs[0][1:], 0, T=3).shape
        if output.shape != expected_sizes:
            problem = f"its output has the sizes {_text(output.shape)}"
            raise UserError(folder / name, problem, _text(expected_sizes), AGAIN)
        if not np.isfinite(output).all():
            problem = "its output holds NaN or infinity"
            raise UserError(folder / name, problem, "finite numbers", "train the system again")
        known[outputs[0][0]] = output[:, 0] if output.ndim == 3 else output
    return manifest


def check_file(path: Path, model: onnx.ModelProto) -> None:
    """UserError: ONNX's checker refuses it; operators or a version that the client has not; an unused input."""
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


def check_signatures(
    paths: Mapping[str, Path],
    models: Mapping[str, onnx.ModelProto],
    C: int,
    J: int,
    streaming: bool = False,
    model_type: Optional[str] = "conformer",
    static: Optional[Mapping[str, int]] = None,
) -> Dict[str, Tuple[Values, Values]]:
    """The inputs and outputs of each file, as sherpa-onnx gives and takes them.

    Raises UserError: other ones, or metadata that are missing or disagree.  ``model_type``: None for any.  ``static``:
    batches of one, and as many frames as there.
    """
    metadata = {name: metadata_of(model) for name, model in models.items()}
    encoder, told = paths["encoder.onnx"], metadata["encoder.onnx"]
    model_types = model_type or told.get("model_type") or "a type such as zipformer2"
    for name, key, value in (
        ("decoder.onnx", "vocab_size", str(C)),
        ("decoder.onnx", "context_size", "2"),
        ("encoder.onnx", "model_type", model_types),
    ):
        if metadata[name].get(key) != value:
            raise UserError(paths[name], f"metadata {key} is {metadata[name].get(key)}", value, AGAIN)
    rows: Values = [("encoder_out", FLOAT, (None, J)), ("decoder_out", FLOAT, (None, J))]
    found: Dict[str, Tuple[Values, Values]] = {
        "encoder.onnx": (
            [("x", FLOAT, (None, None, FEATURE_DIM)), ("x_lens", INT64, (None,))],
            [("encoder_out", FLOAT, (None, None, J)), ("encoder_out_lens", INT64, (None,))],
        ),
        "decoder.onnx": ([("y", INT64, (None, 2))], rows[1:]),
        "joiner.onnx": (rows, [("logit", FLOAT, (None, C))]),
    }
    if streaming:
        for key in STREAMING_KEYS:
            if not told.get(key, "").isdecimal():
                raise UserError(encoder, f"metadata {key} is {told.get(key)}", "a number", AGAIN)
        T, step, left, D, L, kernel, _ = (int(told[key]) for key in STREAMING_KEYS)
        if step < 4 or step % 4 or T != step + 3:
            problem = f"metadata T is {T} and decode_chunk_len {step}"
            raise UserError(encoder, problem, "decode_chunk_len a multiple of 4, and T 3 more", AGAIN)
        caches: Values = [("cached_attn", FLOAT, (L, left, None, D)), ("cached_conv", FLOAT, (L, kernel - 1, None, D))]
        found["encoder.onnx"] = (
            [("x", FLOAT, (None, T, FEATURE_DIM)), *caches, ("processed_lens", INT64, (None,))],
            [
                ("encoder_out", FLOAT, (None, step // 4, J)),
                *((f"new_{name}", FLOAT, cache) for name, _, cache in caches),
            ],
        )
    if static:
        lengths = {"x": static["feature_frames"], "encoder_out": static["encoder_frames"]}
        for name, sides in found.items():
            inputs, outputs = ([_numbers(value, lengths) for value in values] for values in sides)
            found[name] = inputs, outputs
    for name, (inputs, outputs) in found.items():
        graph = models[name].graph
        weights = {tensor.name for tensor in graph.initializer}
        _check_values(paths[name], "input", [value for value in graph.input if value.name not in weights], inputs)
        _check_values(paths[name], "output", graph.output, outputs)
    return found


def _numbers(value: Value, lengths: Mapping[str, int]) -> Value:
    name, element, (first, *others) = value
    return name, element, (first or 1, *(lengths.get(name, 1) if size is None else size for size in others))


def check_sizes(path: Path, model: onnx.ModelProto) -> None:
    """UserError: a value in the graph some of whose sizes are not told by those of the inputs."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    told = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim)
    }
    for name in (name for node in graph.node for name in node.output if name not in told):
        raise UserError(path, f"the sizes of '{name}' are not fixed", "numbers alone", AGAIN)


def _check_values(path: Path, kind: str, values: Sequence[onnx.ValueInfoProto], expected: Values) -> None:
    names = [name for name, _, _ in expected]
    if [value.name for value in values] != names:
        raise UserError(path, f"its {kind}s are {', '.join(v.name for v in values)}", ", ".join(names), AGAIN)
    for value, (name, element_type, sizes) in zip(values, expected, strict=True):
        tensor, type_name = value.type.tensor_type, onnx.TensorProto.DataType.Name
        if tensor.elem_type != element_type:
            raise UserError(path, f"{kind} '{name}' is {type_name(tensor.elem_type)}", type_name(element_type), AGAIN)
        got = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
        pairs = list(zip(got, sizes))
        wrong = len(got) != len(sizes) or any(None not in pair and pair[0] != pair[1] for pair in pairs)
        if wrong or kind == "input" and any(b is None and a is not None for a, b in pairs):
            raise UserError(path, f"{kind} '{name}' has the sizes {_text(got)}", _text(sizes), AGAIN)


def _filled(element: int, sizes: Sequence[Optional[int]], values: Any, T: int = 9) -> np.ndarray:
    """Of N = 2 and T where any size may be."""
    shape = [(T if place == 1 else 2) if size is None else size for place, size in enumerate(sizes)]
    return np.broadcast_to(values, shape).astype(np.float32 if element == FLOAT else np.int64)


def _text(sizes: Sequence[Optional[int]]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"

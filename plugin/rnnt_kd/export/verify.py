"""Is an export what sherpa-onnx can run?  The client answers a bad model by ending its process, so it is asked here first.

``verify_static``: the files, by themselves and against each other, then one run in onnxruntime.
``verify_numbers``: onnxruntime against the system in torch, on random lengths and batches.

The text that sherpa-onnx itself recognises is compared in ``client_check.py``.
"""

import copy
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import FEATURE_DIM, JoinerFile, OfflineEncoder, PredictorFile
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.export.onnx_file import TRANSPOSED, load_onnx, metadata_of
from rnnt_kd.text.tokenizer import Tokenizer

HIGHEST_OPSET, HIGHEST_IR = 23, 11  # onnxruntime 1.23; sherpa-onnx 2.0.1 brings 1.28
DOMAINS = ("", "ai.onnx", "com.microsoft")
TOLERANCE = 1e-4  # float32 and float16 weights, absolute, encoder outputs and logits are of order 1 to 10
INT8_TOLERANCE = 0.05  # |error| / |output|; QUInt8 gives 0.02, QInt8 without VNNI 0.15 (shared/design/sherpa_onnx.md)
STREAMING_KEYS = ("T", "decode_chunk_len", "left_context", "encoder_dim", "num_encoder_layers", "cnn_module_kernel")
STREAMING_KEYS += ("pad_length",)
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
_AGAIN = "export the system again"

Signature = List[Tuple[str, int, Tuple[Optional[int], ...]]]  # name, element type, sizes (None: any)


def verify_static(folder: Path) -> Dict[str, Any]:
    """Check everything that can be checked without the system; returns ``model.json``.

    Raises:
      UserError: one line for the first thing that is wrong: a missing or changed file, a file that is no ONNX
        or of an opset or IR version that is too new, inputs or outputs that are not sherpa-onnx's, an input
        that the graph does not use, metadata that are missing or disagree with the graph, a context other
        than 2, a blank other than 0, a vocabulary that tokens.txt, bpe.model, joiner and metadata do not share,
        a graph that onnxruntime does not run.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    models = {name: load_onnx(folder / name) for name in ONNX_FILES}
    for name, model in models.items():
        _check_file(folder / name, model)
    C = _check_vocabulary(folder, manifest)
    J = manifest["joiner_dim"]
    metadata = {name: metadata_of(model) for name, model in models.items()}
    _check_decoder(folder / "decoder.onnx", models["decoder.onnx"], metadata["decoder.onnx"], C, J)
    joiner = [("encoder_out", FLOAT, (None, J)), ("decoder_out", FLOAT, (None, J))]
    _check_signature(folder / "joiner.onnx", models["joiner.onnx"], joiner, [("logit", FLOAT, (None, C))])
    check_encoder = _check_streaming_encoder if manifest["streaming"] else _check_offline_encoder
    feeds, shape = check_encoder(folder / "encoder.onnx", models["encoder.onnx"], metadata["encoder.onnx"], J)
    _check_runs(folder, feeds, shape, C, J)
    return manifest


def session(path: Path) -> "onnxruntime.InferenceSession":
    """One thread, quiet.  Raises UserError where onnxruntime refuses the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(path, f"onnxruntime does not load it ({_first_line(error)})", "", _AGAIN) from None


def verify_numbers(folder: Path, model: nn.Module, manifest: Dict[str, Any], seed: int = 0) -> Dict[str, float]:
    """onnxruntime against torch; returns file -> largest difference (int8: |difference| / |output|).

    float32: within 1e-4.  float16: within 1e-4 of the system with its weights rounded to float16.
    int8: within 5 % of the output's length.  A streaming encoder is compared by ``streaming_check``.

    Raises: UserError: a difference above that.
    """
    weights = manifest["weights"]
    model = copy.deepcopy(model).eval()
    if weights == "float16":
        for value in model.state_dict().values():
            value.copy_(value.half().float() if value.is_floating_point() else value)
    generator = torch.Generator().manual_seed(seed)
    found: Dict[str, float] = {}
    for name, network, batches in _batches(model, generator, manifest["streaming"]):
        run, differences = session(folder / name), []
        names = [value.name for value in run.get_inputs()]
        for batch in batches:
            with torch.no_grad():
                expected = network(*batch)
            expected = expected if isinstance(expected, tuple) else (expected,)
            got = run.run(None, {key: value.numpy() for key, value in zip(names, batch, strict=True)})
            if len(expected) == 2 and got[1].tolist() != expected[1].tolist():
                found_there = f"encoder_out_lens {got[1].tolist()}"
                raise UserError(folder / name, found_there, f"{expected[1].tolist()}, as in torch")
            differences.append(_difference(got[0], expected[0].numpy(), weights == "int8"))
        found[name] = max(differences)
        bound = INT8_TOLERANCE if weights == "int8" else TOLERANCE
        if not found[name] <= bound:
            found_there = f"its output differs from torch by {found[name]:.2g}"
            raise UserError(folder / name, found_there, f"at most {bound:g}", "this is a fault of the export: report it")
    return found


def _batches(model: nn.Module, generator: torch.Generator, streaming: bool):
    lens = [[50, 31], [1], [7, 3, 123, 2], torch.randint(4, 900, (3,), generator=generator).tolist()]
    if not streaming:
        features = [torch.randn(len(n), max(n), FEATURE_DIM, generator=generator) * 3.5 - 7.5 for n in lens]
        yield "encoder.onnx", OfflineEncoder(model).eval(), [(x, torch.tensor(n)) for x, n in zip(features, lens)]
    labels = torch.randint(-1, model.vocab_size, (64, model.predictor.context_size), generator=generator)
    yield "decoder.onnx", PredictorFile(model).eval(), [(labels,), (labels[:1],), (torch.tensor([[-1, 0]]),)]
    dim = model.joiner.output_linear.in_features
    pairs = [tuple(torch.randn(n, dim, generator=generator) for _ in range(2)) for n in (1, 33)]
    yield "joiner.onnx", JoinerFile(model).eval(), pairs


def _difference(got: np.ndarray, expected: np.ndarray, relative: bool) -> float:
    if got.shape != expected.shape:
        return float("inf")
    if relative:
        return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-6))
    return float(np.abs(got - expected).max())


def _check_file(path: Path, model: "onnx.ModelProto") -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UserError(path, f"the ONNX checker refuses it ({_first_line(error)})", "", _AGAIN) from None
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise UserError(path, f"uses operators of '{opset.domain}'", "ONNX's own", _AGAIN)
        if opset.domain != "com.microsoft" and opset.version > HIGHEST_OPSET:
            raise UserError(path, f"opset {opset.version}", f"at most {HIGHEST_OPSET}", _AGAIN)
    if model.ir_version > HIGHEST_IR:
        raise UserError(path, f"ONNX IR version {model.ir_version}", f"at most {HIGHEST_IR}", _AGAIN)
    used = {name for node in model.graph.node for name in node.input}
    for value in model.graph.input:
        if value.name not in used:
            raise UserError(path, f"its input '{value.name}' is not used", "an input that the graph reads", _AGAIN)
    if TRANSPOSED not in metadata_of(model):
        raise UserError(path, f"metadata '{TRANSPOSED}' is missing", "a file written by rnnt_kd", _AGAIN)


def _check_vocabulary(folder: Path, manifest: Dict[str, Any]) -> int:
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
    lines = (folder / "tokens.txt").read_text(encoding="utf-8").split("\n")
    if lines[-1:] != [""] or lines[:-1] != [f"{piece} {index}" for index, piece in enumerate(pieces)]:
        wrong = next((n for n, (a, b) in enumerate(zip(lines, pieces), 1) if a != f"{b} {n - 1}"), len(lines))
        expected = f"one 'symbol id' line for each of the {len(pieces)} pieces of bpe.model, in their order"
        raise UserError(f"{folder / 'tokens.txt'}:{wrong}", "is not the vocabulary of bpe.model", expected, _AGAIN)
    if manifest.get("vocab_size") != len(pieces):
        raise UserError(path, f"vocab_size is {manifest.get('vocab_size')}", f"{len(pieces)}, the lines of tokens.txt")
    return len(pieces)


def _check_decoder(path: Path, model: "onnx.ModelProto", metadata: Dict[str, str], C: int, J: int) -> None:
    for key, value in (("vocab_size", C), ("context_size", 2)):
        if metadata.get(key) != str(value):
            raise UserError(path, f"metadata {key} is {metadata.get(key)}", str(value), _AGAIN)
    _check_signature(path, model, [("y", INT64, (None, 2))], [("decoder_out", FLOAT, (None, J))])


def _check_offline_encoder(path: Path, model: "onnx.ModelProto", metadata: Dict[str, str], J: int):
    if metadata.get("model_type") != "conformer":
        raise UserError(path, f"metadata model_type is {metadata.get('model_type')}", "conformer", _AGAIN)
    inputs: Signature = [("x", FLOAT, (None, None, FEATURE_DIM)), ("x_lens", INT64, (None,))]
    _check_signature(
        path, model, inputs, [("encoder_out", FLOAT, (None, None, J)), ("encoder_out_lens", INT64, (None,))]
    )
    x = np.full((2, 9, FEATURE_DIM), -7.5, dtype=np.float32)
    return {"x": x, "x_lens": np.array([9, 1], dtype=np.int64)}, (2, 3, J)


def _check_streaming_encoder(path: Path, model: "onnx.ModelProto", metadata: Dict[str, str], J: int):
    if metadata.get("model_type") != "conformer":
        raise UserError(path, f"metadata model_type is {metadata.get('model_type')}", "conformer", _AGAIN)
    values = {}
    for key in STREAMING_KEYS:
        if not metadata.get(key, "").isdigit():
            raise UserError(path, f"metadata {key} is {metadata.get(key)}", "a number", _AGAIN)
        values[key] = int(metadata[key])
    L, left, D = values["num_encoder_layers"], values["left_context"], values["encoder_dim"]
    kernel, T, chunk = values["cnn_module_kernel"] - 1, values["T"], values["decode_chunk_len"] // 4
    if values["decode_chunk_len"] != 4 * chunk or T != 4 * chunk + 3:
        found = f"metadata T is {T} and decode_chunk_len {values['decode_chunk_len']}"
        raise UserError(path, found, "decode_chunk_len a multiple of 4, and T 3 more", _AGAIN)
    attn, conv = (L, left, None, D), (L, kernel, None, D)
    inputs: Signature = [("x", FLOAT, (None, T, FEATURE_DIM)), ("cached_attn", FLOAT, attn)]
    inputs += [("cached_conv", FLOAT, conv), ("processed_lens", INT64, (None,))]
    outputs: Signature = [("encoder_out", FLOAT, (None, chunk, J)), ("new_cached_attn", FLOAT, attn)]
    _check_signature(path, model, inputs, [*outputs, ("new_cached_conv", FLOAT, conv)])
    feeds = {
        "x": np.full((2, T, FEATURE_DIM), -7.5, dtype=np.float32),
        "cached_attn": np.zeros((L, left, 2, D), dtype=np.float32),
        "cached_conv": np.zeros((L, kernel, 2, D), dtype=np.float32),
        "processed_lens": np.zeros(2, dtype=np.int64),
    }
    return feeds, (2, chunk, J)


def _check_signature(path: Path, model: "onnx.ModelProto", inputs: Signature, outputs: Signature) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    for kind, values, expected in (("input", given, inputs), ("output", list(model.graph.output), outputs)):
        names = [name for name, _, _ in expected]
        if [value.name for value in values] != names:
            raise UserError(path, f"its {kind}s are {', '.join(v.name for v in values)}", ", ".join(names), _AGAIN)
        for value, (name, element_type, sizes) in zip(values, expected, strict=True):
            tensor = value.type.tensor_type
            if tensor.elem_type != element_type:
                found = f"{kind} '{name}' is {onnx.TensorProto.DataType.Name(tensor.elem_type)}"
                raise UserError(path, found, onnx.TensorProto.DataType.Name(element_type), _AGAIN)
            got = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
            wrong = len(got) != len(sizes) or any(b is not None and a is not None and a != b for a, b in zip(got, sizes))
            fixed = kind == "input" and any(b is None and a is not None for a, b in zip(got, sizes))
            if wrong or fixed:
                raise UserError(path, f"{kind} '{name}' has the sizes {_sizes(got)}", _sizes(sizes), _AGAIN)


def _check_runs(folder: Path, feeds: Dict[str, np.ndarray], shape: Tuple[int, ...], C: int, J: int) -> None:
    encoder_out = _run(folder / "encoder.onnx", feeds, shape)
    decoder_out = _run(folder / "decoder.onnx", {"y": np.array([[-1, 0], [0, C - 1]], dtype=np.int64)}, (2, J))
    _run(folder / "joiner.onnx", {"encoder_out": encoder_out[:, 0], "decoder_out": decoder_out}, (2, C))


def _run(path: Path, feeds: Dict[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    run = session(path)
    try:
        output = run.run(None, feeds)[0]
    except Exception as error:
        raise UserError(path, f"onnxruntime does not run it ({_first_line(error)})", "", _AGAIN) from None
    if output.shape != tuple(shape):
        raise UserError(path, f"its output has the sizes {_sizes(output.shape)}", _sizes(shape), _AGAIN)
    if not np.isfinite(output).all():
        raise UserError(path, "its output holds NaN or infinity", "finite numbers", "the weights are broken: train again")
    return output


def _sizes(sizes: Sequence[Optional[int]]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]

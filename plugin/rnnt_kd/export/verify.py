"""Can sherpa-onnx run an export?  The client answers a bad model by ending its process, so it is asked here first.

``verify_static``: the files, by themselves and against each other, then one run in onnxruntime.
``verify_numbers``: onnxruntime against the system in torch, on random lengths and batches.

The text that sherpa-onnx itself recognises is compared in ``client_check.py``.
"""

import copy
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import numpy as np
import onnxruntime
import torch
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.export.file_checks import (
    check_decoder,
    check_file,
    check_joiner,
    check_offline_encoder,
    check_streaming_encoder,
    check_vocabulary,
    first_line,
    sizes_text,
)
from rnnt_kd.export.graphs import FEATURE_DIM, JoinerFile, OfflineEncoder, PredictorFile
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.export.onnx_file import load_onnx, metadata_of

TOLERANCE = 1e-4  # float32 and float16 weights, absolute, encoder outputs and logits are of order 1 to 10
INT8_TOLERANCE = 0.05  # |error| / |output|; QUInt8 gives 0.02, QInt8 without VNNI 0.15 (shared/design/sherpa_onnx.md)
_AGAIN = "export the system again"


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
        check_file(folder / name, model)
    C = check_vocabulary(folder, manifest)
    J = manifest["joiner_dim"]
    metadata = {name: metadata_of(model) for name, model in models.items()}
    check_decoder(folder / "decoder.onnx", models["decoder.onnx"], metadata["decoder.onnx"], C, J)
    check_joiner(folder / "joiner.onnx", models["joiner.onnx"], C, J)
    check_encoder = check_streaming_encoder if manifest["streaming"] else check_offline_encoder
    feeds, shape = check_encoder(folder / "encoder.onnx", models["encoder.onnx"], metadata["encoder.onnx"], J)
    _check_runs(folder, feeds, shape, C, J)
    return manifest


def session(path: Path) -> onnxruntime.InferenceSession:
    """One thread, quiet.  Raises UserError where onnxruntime refuses the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(path, f"onnxruntime does not load it ({first_line(error)})", "", _AGAIN) from None


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
            raise UserError(folder / name, found_there, f"at most {bound:g}", "a fault of the export: report it")
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


def _check_runs(folder: Path, feeds: Dict[str, np.ndarray], shape: Tuple[int, ...], C: int, J: int) -> None:
    encoder_out = _run(folder / "encoder.onnx", feeds, shape)
    decoder_out = _run(folder / "decoder.onnx", {"y": np.array([[-1, 0], [0, C - 1]], dtype=np.int64)}, (2, J))
    _run(folder / "joiner.onnx", {"encoder_out": encoder_out[:, 0], "decoder_out": decoder_out}, (2, C))


def _run(path: Path, feeds: Dict[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    run = session(path)
    try:
        output = run.run(None, feeds)[0]
    except Exception as error:
        raise UserError(path, f"onnxruntime does not run it ({first_line(error)})", "", _AGAIN) from None
    if output.shape != tuple(shape):
        raise UserError(path, f"its output has the sizes {sizes_text(output.shape)}", sizes_text(shape), _AGAIN)
    if not np.isfinite(output).all():
        raise UserError(path, "its output holds NaN or infinity", "finite numbers", "train the system again")
    return output

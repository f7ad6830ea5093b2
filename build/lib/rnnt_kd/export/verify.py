"""Can sherpa-onnx run an export?  The client answers a bad model by ending its process, so it is asked here first.

The files, by themselves and against each other, then one run in onnxruntime; the system is not needed.
Against the system: ``numerics.py`` compares numbers, ``client_check.py`` what sherpa-onnx recognises.
"""

from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
import onnxruntime

from rnnt_kd.errors import UserError
from rnnt_kd.export import file_checks
from rnnt_kd.export.file_checks import first_line, sizes_text
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.export.onnx_file import AGAIN, load_onnx, metadata_of


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
        file_checks.check_file(folder / name, model)
    C = file_checks.check_vocabulary(folder, manifest)
    J = manifest["joiner_dim"]
    metadata = {name: metadata_of(model) for name, model in models.items()}
    file_checks.check_decoder(folder / "decoder.onnx", models["decoder.onnx"], metadata["decoder.onnx"], C, J)
    file_checks.check_joiner(folder / "joiner.onnx", models["joiner.onnx"], C, J)
    check_encoder = file_checks.check_streaming_encoder if manifest["streaming"] else file_checks.check_offline_encoder
    feeds, shape = check_encoder(folder / "encoder.onnx", models["encoder.onnx"], metadata["encoder.onnx"], J)
    _check_runs(folder, feeds, shape, C, J)
    return manifest


def session(path: Path, content: Optional[bytes] = None) -> onnxruntime.InferenceSession:
    """One thread, quiet, for a file (or ``content`` in its place).  Raises UserError where onnxruntime refuses it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(path, f"onnxruntime does not load it ({first_line(error)})", "", AGAIN) from None


def _check_runs(folder: Path, feeds: Dict[str, np.ndarray], shape: Tuple[int, ...], C: int, J: int) -> None:
    encoder_out = _run(folder / "encoder.onnx", feeds, shape)
    decoder_out = _run(folder / "decoder.onnx", {"y": np.array([[-1, 0], [0, C - 1]], dtype=np.int64)}, (2, J))
    _run(folder / "joiner.onnx", {"encoder_out": encoder_out[:, 0], "decoder_out": decoder_out}, (2, C))


def _run(path: Path, feeds: Dict[str, np.ndarray], shape: Sequence[int]) -> np.ndarray:
    run = session(path)
    try:
        output = run.run(None, feeds)[0]
    except Exception as error:
        raise UserError(path, f"onnxruntime does not run it ({first_line(error)})", "", AGAIN) from None
    if output.shape != tuple(shape):
        raise UserError(path, f"its output has the sizes {sizes_text(output.shape)}", sizes_text(shape), AGAIN)
    if not np.isfinite(output).all():
        raise UserError(path, "its output holds NaN or infinity", "finite numbers", "train the system again")
    return output

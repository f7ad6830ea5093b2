"""The export target sherpa-onnx: its three ONNX files, and the client that must recognise as rnnt_kd does.

A target is a file here with ``static_sizes``, ``write_files`` and ``check`` as below.
"""

from pathlib import Path
from typing import Dict, List, Optional

from rnnt_kd.errors import UserError
from rnnt_kd.export import graphs
from rnnt_kd.export.check import check
from rnnt_kd.export.formats import convert
from rnnt_kd.export.onnx_file import load_onnx, write_graph
from rnnt_kd.models.transducer import Transducer

__all__ = ["SPECS", "check", "static_sizes", "write_files"]

SPECS = {
    "encoder.onnx": graphs.offline_encoder,
    "decoder.onnx": graphs.predictor_file,
    "joiner.onnx": graphs.joiner_file,
}


def static_sizes(model: Transducer, form: str, streaming: bool, seconds: Optional[float]) -> Optional[Dict[str, int]]:
    """``static`` of ``model.json``: None, any sizes.  Raises UserError: a length is given."""
    if seconds is not None:
        problem = f"{seconds:g}, but sherpa-onnx gives utterances of any length"
        raise UserError("--seconds", problem, "none", "leave it out, or give --target npu")
    return None


def write_files(
    model: Transducer, form: str, streaming: bool, static: Optional[Dict[str, int]], folder: Path
) -> Dict[str, List[str]]:
    """The three files in a format; returns file -> names of the parameters in it."""
    names, specs = {}, {**SPECS, **({"encoder.onnx": graphs.streaming_encoder} if streaming else {})}
    for file, make_spec in specs.items():
        path = folder / file
        spec = make_spec(model)
        write_graph(graphs.fixed(spec, static["feature_frames"]) if static else spec, path)
        names[file] = [tensor.name for tensor in load_onnx(path).graph.initializer]
        convert(path, path, form)
    return names

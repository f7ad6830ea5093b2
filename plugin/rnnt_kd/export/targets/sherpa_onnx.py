"""The export target sherpa-onnx: its three ONNX files, and the client that must recognise as rnnt_kd does.

A target is a file here with ``write_files`` and ``verify`` as below.
"""

import os
from pathlib import Path
from typing import Any, Callable, Dict, List

from rnnt_kd.errors import UserError
from rnnt_kd.export import graphs
from rnnt_kd.export.export_system import CHECK, Format, Say
from rnnt_kd.export.numerics import verify_numbers
from rnnt_kd.export.verify import verify_static
from rnnt_kd.models.transducer import Transducer

SPECS = {
    "encoder.onnx": graphs.offline_encoder,
    "decoder.onnx": graphs.predictor_file,
    "joiner.onnx": graphs.joiner_file,
}


def write_files(model: Transducer, form: Format, streaming: bool, folder: Path) -> Dict[str, List[str]]:
    """The three files; returns file -> names of the parameters in it."""
    from rnnt_kd.export.onnx_file import load_onnx, write_graph

    names = {}
    for file, make_spec in SPECS.items():
        path = folder / file
        if file == "encoder.onnx" and streaming:
            from rnnt_kd.export.streaming_graphs import write_streaming_encoder

            write_streaming_encoder(model, path)
        else:
            write_graph(make_spec(model), path)
        names[file] = [tensor.name for tensor in load_onnx(path).graph.initializer]
        for convert in _conversions(form):
            converted = folder / f".{file}"
            convert(path, converted)
            os.replace(converted, path)
    return names


def _conversions(form: Format) -> List[Callable[[Path, Path], None]]:
    steps: List[Callable[[Path, Path], None]] = []
    if form.int8:
        from rnnt_kd.export.quantize import quantize_int8

        steps.append(quantize_int8)
    if form.float16:
        from rnnt_kd.export.half import make_float16

        steps.append(make_float16)
    if form.sparse:
        from rnnt_kd.export.sparse_file import make_sparse

        steps.append(make_sparse)
    return steps


def verify(folder, model, tokenizer, speech, form: Format, streaming: bool, data_dir, say: Say):
    """Returns what was measured, and what is wrong with it ("" where nothing is)."""
    manifest = verify_static(folder)
    check: Dict[str, Any] = {"onnxruntime_against_torch": verify_numbers(folder, model, manifest)}
    usable = [item for item in speech if item.samples is not None]
    check["data_dir"] = str(data_dir) if data_dir else None
    check["left_out"] = {item.id: item.reason for item in speech if item.samples is None}
    if not usable:
        raise UserError(data_dir, "no utterance can be used", "usable audio")
    if streaming:
        from rnnt_kd.export.streaming_check import check_streaming_client as check_client
    else:
        from rnnt_kd.export.client_check import check_client
    from rnnt_kd.export.client_check import check_features

    check["features_difference"] = check_features(usable, folder)
    check.update(check_client(folder, model, tokenizer, usable))
    differences = check["differences"]
    shown = [item for item in differences if form.exact or item["what"] == "text"]
    for item in shown:
        say(
            f"{item['utterance']} ({item['search']}, batches of {item['batch_size']}): {item['what']} "
            f"'{item['sherpa_onnx']}' from sherpa-onnx, '{item['rnnt_kd']}' from rnnt_kd"
        )
    if len(shown) < len(differences):
        say(f"{len(differences) - len(shown)} more differ in times alone; {CHECK} lists them")
    return check, f"sherpa-onnx and rnnt_kd differ {len(differences)} times" if differences and form.exact else ""

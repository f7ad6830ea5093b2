"""The export target sherpa-onnx: its three ONNX files, and the client that must recognise as rnnt_kd does.

A target is a file here with ``write_files`` and ``verify`` as below.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from rnnt_kd.data.speech import Speech
from rnnt_kd.errors import UserError
from rnnt_kd.export import graphs
from rnnt_kd.export.client_check import check_client, check_features
from rnnt_kd.export.export_system import CHECK, Say
from rnnt_kd.export.formats import convert
from rnnt_kd.export.numerics import verify_numbers
from rnnt_kd.export.onnx_file import load_onnx, write_graph
from rnnt_kd.export.streaming_check import check_streaming_client
from rnnt_kd.export.streaming_graphs import streaming_encoder
from rnnt_kd.export.verify import verify_static
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.text.tokenizer import Tokenizer

SPECS = {
    "encoder.onnx": graphs.offline_encoder,
    "decoder.onnx": graphs.predictor_file,
    "joiner.onnx": graphs.joiner_file,
}


def write_files(model: Transducer, form: str, streaming: bool, folder: Path) -> Dict[str, List[str]]:
    """The three files in one of ``formats``; returns file -> names of the parameters in it."""
    names, specs = {}, {**SPECS, **({"encoder.onnx": streaming_encoder} if streaming else {})}
    for file, make_spec in specs.items():
        path = folder / file
        write_graph(make_spec(model), path)
        names[file] = [tensor.name for tensor in load_onnx(path).graph.initializer]
        convert(path, path, form)
    return names


def verify(
    folder: Path,
    model: Transducer,
    tokenizer: Tokenizer,
    speech: Sequence[Speech],
    exact: bool,
    streaming: bool,
    data_dir: Optional[Path],
    score_events: bool,
    say: Say,
) -> Tuple[Dict[str, Any], str]:
    """Returns what was measured, and what is wrong with it ("" where nothing is).  ``exact``: no weight was rounded."""
    check: Dict[str, Any] = {"onnxruntime_against_torch": verify_numbers(folder, model, verify_static(folder))}
    usable = [item for item in speech if item.samples is not None]
    check["data_dir"] = str(data_dir) if data_dir else None
    check["left_out"] = {item.id: item.reason for item in speech if item.samples is None}
    if not usable:
        raise UserError(data_dir, "no utterance can be used", "usable audio")
    check["features_difference"] = check_features(usable, folder)
    check_texts = check_streaming_client if streaming else check_client
    check.update(check_texts(folder, model, tokenizer, usable, score_events))
    differences = check["differences"]
    shown = [item for item in differences if exact or item["what"] == "text"]
    for item in shown:
        say(
            f"{item['utterance']} ({item['search']}, batches of {item['batch_size']}): {item['what']} "
            f"'{item['sherpa_onnx']}' from sherpa-onnx, '{item['rnnt_kd']}' from rnnt_kd"
        )
    if len(shown) < len(differences):
        say(f"{len(differences) - len(shown)} more differ in times alone; {CHECK} lists them")
    if check["ties"]:
        say(
            f"{len(check['ties'])} times two results were as likely, and sherpa-onnx took the other; {CHECK} lists them"
        )
    if check["differences_in_blanks"]:
        say(f"{len(check['differences_in_blanks'])} texts have other blanks than {CHECK} expects of sherpa-onnx")
    return check, f"sherpa-onnx and rnnt_kd differ {len(differences)} times" if differences and exact else ""

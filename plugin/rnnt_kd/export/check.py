"""Is a written folder what it promises?  ``check`` asks in this order, and the first fault ends it:

check_files    ``verify_static``: the files by themselves and against each other
check_numbers  ``verify_numbers``: onnxruntime against the system in torch
check_client   ``check_features``: the filter banks of sherpa-onnx against ours; ``check_client``: what it recognises
               against our own decoder
"""

from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from rnnt_kd.data.speech import Speech
from rnnt_kd.errors import UserError
from rnnt_kd.export.check_client import check_client, check_features
from rnnt_kd.export.check_files import verify_static
from rnnt_kd.export.check_numbers import learned_so, stored_as, verify_numbers
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.text.tokenizer import Tokenizer

Say = Callable[[str], None]
CHECK = "check.json"


def check(
    folder: Path,
    model: Transducer,
    tokenizer: Tokenizer,
    speech: Sequence[Speech],
    data_dir: Optional[Path],
    score_events: bool,
    say: Say,
) -> Tuple[Dict[str, Any], str]:
    """Returns what was measured, and what is wrong with it ("" where nothing is); UserError: what is worse."""
    manifest = verify_static(folder)
    stored = model if manifest["weights"] == "int8" else stored_as(model, manifest["weights"])
    exact = manifest["weights"] != "int8" and learned_so(model, stored)
    found: Dict[str, Any] = {"onnxruntime_against_torch": verify_numbers(folder, model, manifest)}
    usable = [item for item in speech if item.samples is not None]
    found["data_dir"] = str(data_dir) if data_dir else None
    found["left_out"] = {item.id: item.reason for item in speech if item.samples is None}
    if not usable:
        raise UserError(data_dir, "no utterance can be used", "usable audio")
    found["features_difference"] = check_features(usable, folder)
    heard_by = stored if exact else model
    found.update(check_client(folder, heard_by, tokenizer, usable, manifest["streaming"], score_events))
    differences = found["differences"]
    shown = [item for item in differences if exact or item["what"] == "text"]
    for item in shown:
        say(
            f"{item['utterance']} ({item['search']}, batches of {item['batch_size']}): {item['what']} "
            f"'{item['sherpa_onnx']}' from sherpa-onnx, '{item['rnnt_kd']}' from rnnt_kd"
        )
    for number, what in (
        (len(differences) - len(shown), f"more differ in times alone; {CHECK} lists them"),
        (len(found["ties"]), f"times two results were as likely, and sherpa-onnx took the other; {CHECK} lists them"),
        (len(found["differences_in_blanks"]), f"texts have other blanks than {CHECK} expects of sherpa-onnx"),
    ):
        if number:
            say(f"{number} {what}")
    return found, f"sherpa-onnx and rnnt_kd differ {len(differences)} times" if differences and exact else ""

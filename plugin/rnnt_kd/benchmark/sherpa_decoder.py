"""sherpa-onnx on an export of the system that is measured, as a recogniser among the others.

It runs in a process of its own.  Its time is from the samples to the text, what the pipe between the processes takes
included (of a hundred seconds of audio some milliseconds).
"""

import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

from torch import nn

from rnnt_kd.benchmark.decoders import Pass
from rnnt_kd.data.speech import Speech
from rnnt_kd.errors import UserError
from rnnt_kd.export.client import SHORTEST, search_settings
from rnnt_kd.export.client_process import ClientProcess
from rnnt_kd.export.model_json import tensor_digest
from rnnt_kd.export.verify import verify_static

TIMEOUT = 600.0  # seconds for a batch


def check_same_weights(folder: Path, model: nn.Module) -> Dict[str, Any]:
    """``model.json`` of an export, once it is certain that sherpa-onnx can run it and that it is ``model``.

    Raises:
      UserError: it cannot run it, it is a streaming export, or its weights are others.
    """
    manifest = verify_static(folder)
    if manifest["streaming"]:
        raise UserError(folder, "a streaming export", "an offline one", "export the system without --streaming")
    state = model.state_dict()
    for name, values in manifest["parameters"].items():
        if name not in state or tensor_digest(state[name]) != values["sha256"]:
            raise UserError(folder, f"other weights ('{name}')", "an export of the system", "export it again")
    return manifest


class SherpaOnnx:
    """A context manager; called with a batch, it recognises it."""

    def __init__(self, folder: Path, search: str, beam: int):
        self._client = ClientProcess(folder, {"kind": "offline", **search_settings(search, beam)}, TIMEOUT)

    def __call__(self, batch: Sequence[Speech]) -> Pass:
        start = time.perf_counter()
        heard = [item.samples for item in batch if len(item.samples) >= SHORTEST]  # it ends at shorter ones
        answers = iter(self._client.ask({"operation": "decode"}, heard) if heard else [])
        texts: List[str] = [next(answers)["text"] if len(item.samples) >= SHORTEST else "" for item in batch]
        return Pass(texts, time.perf_counter() - start)

    def __enter__(self) -> "SherpaOnnx":
        return self

    def __exit__(self, *error) -> None:
        self._client.close()

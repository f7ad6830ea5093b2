"""A process in which sherpa-onnx runs.

The client ends its process where it does not like a model, by ``_Exit`` or a segmentation fault.  Here that ends
nothing else, and is told in one line.  Messages are a line of JSON and, behind it, the samples as raw float32.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Dict, Sequence

import numpy as np

from rnnt_kd.errors import UserError

WORKER = "rnnt_kd.export.client_worker"


class ClientProcess:
    """One recogniser in its process; a context manager.

    Args:
      model_dir: the folder of an export.
      settings:  kind ("offline" or "online"), search, beam, endpoints; see ``client_worker``.
      timeout:   seconds for one answer.
    Raises:
      ModuleNotFoundError: sherpa-onnx is not installed.
      UserError:           the process died: its signal or status, and the last line that it wrote.
    """

    def __init__(self, model_dir: Path, settings: Dict[str, Any], timeout: float):
        if importlib.util.find_spec("sherpa_onnx") is None:
            raise ModuleNotFoundError("No module named 'sherpa_onnx'", name="sherpa_onnx")
        self._model_dir, self._timeout = Path(model_dir), timeout
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
        )
        try:
            self.ask({"model_dir": str(self._model_dir.resolve()), **settings})
        except BaseException:
            self.close()
            raise

    def ask(self, request: Dict[str, Any], samples: Sequence[np.ndarray] = ()) -> Any:
        """Send ``request`` and 1-d arrays; the answer, with an array in place of a "shape"."""
        late = threading.Event()
        timer = threading.Timer(self._timeout, lambda: (late.set(), self._process.kill()))
        timer.daemon = True
        timer.start()
        try:
            self._send({**request, "sizes": [len(item) for item in samples]}, samples)
            line = self._process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
            if answer is not None and "shape" in answer:
                data = self._process.stdout.read(4 * int(np.prod(answer["shape"])))
                return np.frombuffer(data, dtype=np.float32).reshape(answer["shape"]).copy()
        finally:
            timer.cancel()
        if answer is None:
            raise self._death(late.is_set())
        return answer["answer"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> "ClientProcess":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _send(self, message: Dict[str, Any], samples: Sequence[np.ndarray]) -> None:
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            for item in samples:
                self._process.stdin.write(np.ascontiguousarray(item, dtype=np.float32).tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:  # it is dead: there will be no answer
            pass

    def _death(self, late: bool) -> UserError:
        status = self._process.wait()
        if late:
            found = f"sherpa-onnx gave no answer in {self._timeout:g} s"
            return UserError(self._model_dir, found, "", "try less audio")
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()] or ["it wrote nothing"]
        ending = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        found = f"sherpa-onnx ended {ending} ({lines[-1][:300]})"
        return UserError(self._model_dir, found, "a model that it can run", "export the system again")


def _environment() -> Dict[str, str]:
    """One thread, and the path to this package."""
    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

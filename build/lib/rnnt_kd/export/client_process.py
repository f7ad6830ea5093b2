"""A process in which sherpa-onnx runs.

The client ends its process where it does not like a model, by ``_Exit`` or a segmentation fault.  Here that ends
nothing else, and is one line.
"""

import importlib.util
from pathlib import Path
from typing import Any, Dict, Sequence

import numpy as np

from rnnt_kd.children import Worker, WorkerDied
from rnnt_kd.errors import UserError

WORKER = "rnnt_kd.export.client_worker"


class ClientProcess(Worker):
    """One recogniser in its process; a context manager.

    Args:
      model_dir: the folder of an export.
      settings:  kind ("offline" or "online"), search, beam, endpoints; see ``client_worker``.
      timeout:   seconds for one answer.
    Raises:
      ModuleNotFoundError: sherpa-onnx is not installed.
      UserError:           the process died: its signal or status, and the last line that it wrote.
    """

    def __init__(self, model_dir: Path, settings: Dict[str, Any], timeout: float = 600.0):
        if importlib.util.find_spec("sherpa_onnx") is None:
            raise ModuleNotFoundError("No module named 'sherpa_onnx'", name="sherpa_onnx")
        self._model_dir = Path(model_dir)
        super().__init__(WORKER, timeout, {"OMP_NUM_THREADS": "1"})
        try:
            self.ask({"model_dir": str(self._model_dir.resolve()), **settings})
        except BaseException:
            self.close()
            raise

    def ask(self, request: Dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> Any:
        """The recogniser's answer to ``request`` and 1-d arrays of samples; UserError where it died."""
        try:
            return super().ask(request, arrays)
        except WorkerDied as death:
            problem = f"sherpa-onnx {death.ending}"
            if death.late:
                raise UserError(self._model_dir, problem, "", "try less audio") from None
            problem += f" ({death.last_line[:300]})"
            raise UserError(self._model_dir, problem, "a model that it can run", "export the system again") from None

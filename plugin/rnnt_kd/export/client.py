"""sherpa-onnx in a process of its own: a model that it does not like ends that process and not ours."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np

from rnnt_kd.data.audio import BadAudio, load_recording
from rnnt_kd.data.kaldi_dir import RecordingEntry
from rnnt_kd.errors import UserError

Audio = Union[np.ndarray, Path]


@dataclass
class ClientResult:
    """One utterance, as sherpa-onnx tells it: ``timestamps`` in seconds, one for each of ``tokens``."""

    text: str
    tokens: List[str]
    timestamps: List[float]


def recognize(
    model_dir: Path,
    audio: Sequence[Audio],
    *,
    search: str = "greedy_search",
    beam: int = 4,
    batch_size: int = 1,
    sampling_rate: int = 16000,
    timeout: float = 3600,
) -> List[ClientResult]:
    """Recognise with ``OfflineRecognizer``, ``batch_size`` utterances at a time.

    Args:
      audio:         (n,) float32 samples at ``sampling_rate``, or files (any rate).
      search:        "greedy_search" or "modified_beam_search" (with ``beam`` paths).
      timeout:       seconds.
    Raises:
      UserError: the process died (its signal or status, the last line it wrote), or took too long.
    """
    request = {"task": "recognize", "search": search, "beam": beam, "batch_size": batch_size}
    answer = _ask(Path(model_dir), [_samples(item, sampling_rate) for item in audio], request, timeout)
    return [ClientResult(**result) for result in answer]


def features(samples: np.ndarray, sampling_rate: int = 16000, timeout: float = 600) -> np.ndarray:
    """(T, 80) float32: what sherpa-onnx computes of (n,) samples in [-1, 1] (``OnlineStream.get_frames``)."""
    from rnnt_kd.export.features_probe import write_probe

    with tempfile.TemporaryDirectory() as folder:
        write_probe(Path(folder))
        frames = max(1, (len(samples) * 16000 // sampling_rate + 80) // 160)
        request = {"task": "features", "frames": frames, "frames_file": f"{folder}/frames.npy"}
        return np.load(_ask(Path(folder), [(sampling_rate, np.asarray(samples, np.float32))], request, timeout))


def _ask(model_dir: Path, audio: List[Tuple[int, np.ndarray]], request: Dict[str, Any], timeout: float) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        arrays = {f"rate{index}": np.array(rate) for index, (rate, _) in enumerate(audio)}
        arrays.update({f"samples{index}": samples for index, (_, samples) in enumerate(audio)})
        np.savez(f"{folder}/audio.npz", **arrays)
        request = {**request, "model_dir": str(model_dir.resolve()), "audio": f"{folder}/audio.npz"}
        command = [sys.executable, "-m", "rnnt_kd.export.client_worker"]
        package = Path(__file__).resolve().parents[2]  # the process must find rnnt_kd wherever we did
        paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env={**os.environ, "PYTHONPATH": paths},
            )
        except subprocess.TimeoutExpired:
            raise UserError(model_dir, f"sherpa-onnx gave no answer in {timeout:g} s", "", "try less audio") from None
    if done.returncode != 0 or not done.stdout:
        status = done.returncode
        ending = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        last = [line for line in done.stderr.strip().split("\n") if line.strip()][-1:] or ["it wrote nothing"]
        raise UserError(model_dir, f"sherpa-onnx ended {ending} ({last[0][:300]})", "a model that it can run")
    return json.loads(done.stdout)


def _samples(item: Audio, sampling_rate: int) -> Tuple[int, np.ndarray]:
    if isinstance(item, np.ndarray):
        return sampling_rate, np.ascontiguousarray(item, dtype=np.float32)
    try:
        samples, rate = load_recording(RecordingEntry(str(item), str(item), False, str(item)))
    except BadAudio as error:
        raise UserError(item, str(error), "audio that libsndfile reads") from None
    return rate, samples

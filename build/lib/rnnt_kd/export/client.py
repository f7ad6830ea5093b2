"""Recognition by sherpa-onnx, offline and streaming, and the features that it computes.

Samples are float32 at 16 kHz in [-1, 1], or files of any kind that ``data/speech.py`` reads.  A model that
sherpa-onnx does not like is a ``UserError`` (see ``client_process.py``).
"""

import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Union

import numpy as np

from rnnt_kd.data.audio_format import FRAME_SAMPLES, SAMPLING_RATE
from rnnt_kd.data.speech import load_samples, resample
from rnnt_kd.errors import UserError
from rnnt_kd.export.client_process import ClientProcess

Audio = Union[np.ndarray, Path]
SEARCHES = ("greedy_search", "modified_beam_search")
SHORTEST = 80  # samples; of fewer the client computes not one frame, and ends


@dataclass(frozen=True)
class ClientResult:
    """One utterance, or one segment of a stream.

    Attributes:
      timestamps: seconds from ``start``, one for each of ``tokens``.
      start:      where the segment began, in seconds.
    """

    text: str
    tokens: List[str]
    timestamps: List[float]
    start: float = 0.0


def recognize(
    model_dir: Path,
    audio: Iterable[Audio],
    *,
    search: str = "greedy_search",
    beam: int = 4,
    batch_size: int = 1,
    sampling_rate: int = SAMPLING_RATE,
    timeout: float = 600.0,
) -> List[ClientResult]:
    """Recognise whole utterances with ``OfflineRecognizer``, ``batch_size`` at a time; one result for each.

    Args:
      search:        "greedy_search", or "modified_beam_search" with ``beam`` hypotheses.
      sampling_rate: of arrays; files know theirs.
      timeout:       seconds for a batch.
    """
    if batch_size < 1:
        raise UserError("batch size", str(batch_size), "1 or more utterances")
    found: List[ClientResult] = []
    waiting = iter(audio)
    with ClientProcess(model_dir, {"kind": "offline", **search_settings(search, beam)}, timeout) as client:
        while samples := [_samples(item, sampling_rate) for item in islice(waiting, batch_size)]:
            heard = [item for item in samples if len(item) >= SHORTEST]
            answers = iter(client.ask({"operation": "decode"}, heard) if heard else [])
            nothing = ClientResult("", [], [])
            found += [ClientResult(**next(answers)) if len(item) >= SHORTEST else nothing for item in samples]
    return found


def recognize_streaming(
    model_dir: Path,
    audio: Iterable[Audio],
    *,
    search: str = "greedy_search",
    beam: int = 4,
    chunk_ms: int = 100,
    reset_at_endpoints: bool = False,
    reset_after: Sequence[int] = (),
) -> List[List[ClientResult]]:
    """Recognise with ``OnlineRecognizer``, ``chunk_ms`` of audio at a time; the segments of each audio.

    Args:
      reset_at_endpoints: begin a new segment where sherpa-onnx hears a pause.
      reset_after:        and as soon as so many samples were heard (ascending).
    """
    found = []
    with Listener(model_dir, search=search, beam=beam, endpoints=reset_at_endpoints) as listener:
        for item in audio:
            samples = _samples(item)
            listener.start()
            step = max(1, chunk_ms * SAMPLING_RATE // 1000)
            resets, segments = list(reset_after), []
            for start in range(0, len(samples), step):
                result = listener.accept(samples[start : start + step])
                asked = bool(resets) and start + step >= resets[0]
                if asked or listener.at_endpoint:
                    resets = [position for position in resets if position > start + step]
                    segments.append(result)
                    listener.reset()
            found.append([*segments, listener.finish()])
    return found


class Listener:
    """A streaming export that listens; a context manager.

    Attributes: ``at_endpoint``, whether sherpa-onnx takes what it heard last for the end of a segment.
    """

    def __init__(self, model_dir: Path, *, search: str = "greedy_search", beam: int = 4, endpoints: bool = True):
        settings = {"kind": "online", **search_settings(search, beam), "endpoints": endpoints}
        self._client = ClientProcess(model_dir, settings)
        self._tail = np.zeros(tail_samples(model_dir), dtype=np.float32)
        self.at_endpoint = False
        self.start()

    def start(self) -> None:
        """Begin with another audio."""
        self._client.ask({"operation": "start"})

    def accept(self, samples: np.ndarray) -> ClientResult:
        """Hear (n,) float32 samples at 16 kHz; the segment so far."""
        return self._accept(samples, False)

    def reset(self) -> None:
        """Begin a new segment; the encoder goes on."""
        self._client.ask({"operation": "reset"})

    def finish(self) -> ClientResult:
        """The last segment, after the silence without which its tail would be lost."""
        return self._accept(self._tail, True)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *error) -> None:
        self._client.close()

    def _accept(self, samples: np.ndarray, finished: bool) -> ClientResult:
        answer = self._client.ask({"operation": "accept", "finished": finished}, [samples])
        self.at_endpoint = answer.pop("endpoint")
        return ClientResult(**answer)


def features(samples: np.ndarray) -> np.ndarray:
    """(T, 80) float32: what sherpa-onnx computes of (n,) samples at 16 kHz in [-1, 1] (``OnlineStream.get_frames``).

    Raises: UserError: there are fewer than 80 samples: no frame.
    """
    from rnnt_kd.export.features_probe import write_probe

    samples = _samples(samples)
    if len(samples) < SHORTEST:
        raise UserError("audio", f"{len(samples)} samples", f"{SHORTEST} or more, at 16 kHz")
    count = (len(samples) + SHORTEST) // FRAME_SAMPLES
    settings = {"kind": "online", **search_settings("greedy_search", 4), "endpoints": False}
    with tempfile.TemporaryDirectory() as folder:
        write_probe(Path(folder))
        with ClientProcess(Path(folder), settings) as client:
            return client.ask({"operation": "frames", "count": count}, [samples])


def tail_samples(model_dir: Path) -> int:
    """Samples of silence that sherpa-onnx must hear after the end: one frame more than a chunk needs."""
    from rnnt_kd.export.onnx_file import load_onnx, metadata_of

    path = Path(model_dir) / "encoder.onnx"
    frames = metadata_of(load_onnx(path)).get("T", "")
    if not frames.isdigit():
        raise UserError(path, "not a streaming encoder: it has no 'T' in its metadata", "an export with --streaming")
    return (int(frames) + 1) * FRAME_SAMPLES


def search_settings(search: str, beam: int) -> Dict[str, Any]:
    """Settings for ``ClientProcess``.  UserError: a search that sherpa-onnx does not have, or no hypotheses."""
    if search not in SEARCHES:
        raise UserError("search", repr(search), " or ".join(SEARCHES))
    if beam < 1:
        raise UserError("beam", str(beam), "1 or more hypotheses")
    return {"search": search, "beam": beam}


def _samples(item: Audio, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    if not isinstance(item, np.ndarray):
        return load_samples(Path(item))
    item = np.ascontiguousarray(item, dtype=np.float32)
    if item.ndim != 1 or not np.isfinite(item).all():
        raise UserError("audio", f"samples of the shape {item.shape}, or NaN or infinity", "(n,) finite numbers")
    return resample(item, sampling_rate)

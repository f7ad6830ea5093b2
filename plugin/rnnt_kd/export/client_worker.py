"""The process in which sherpa-onnx runs; ``client.ClientProcess`` is the other end.

The first request says what to load; each of the others names an operation of ``Recognizer``.
"""

import os
from typing import Any, Dict, List, Optional

import numpy as np
import sherpa_onnx

from rnnt_kd.children import serve
from rnnt_kd.data.audio_format import SAMPLING_RATE

SHORTEST = 80  # samples; of fewer sherpa-onnx computes not one frame, and ends its process


class Recognizer:
    """``decode`` of an offline export; ``start``, ``accept``, ``reset``, ``frames`` of one that hears bit by bit."""

    def __init__(self, model_dir: str, streaming: bool, search: str, beam: int, endpoints: bool):
        settings: Dict[str, Any] = {}
        settings.update({name: os.path.join(model_dir, f"{name}.onnx") for name in ("encoder", "decoder", "joiner")})
        settings.update(tokens=os.path.join(model_dir, "tokens.txt"), decoding_method=search)
        settings.update(num_threads=1, max_active_paths=beam)
        if streaming:
            settings.update(model_type="conformer", enable_endpoint_detection=endpoints)
            self.recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(**settings)
        else:
            self.recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(**settings, model_type="transducer")
        self.stream: Any = None

    def decode(self, *batch: np.ndarray) -> List[Dict[str, Any]]:
        """One result for each utterance, decoded together; of too short ones an empty one."""
        streams = [self.recognizer.create_stream() if len(samples) >= SHORTEST else None for samples in batch]
        for stream, samples in zip(streams, batch, strict=True):
            if stream is not None:
                stream.accept_waveform(SAMPLING_RATE, samples)
        if heard := [stream for stream in streams if stream is not None]:
            self.recognizer.decode_streams(heard)
        nothing = {"text": "", "tokens": [], "timestamps": []}
        return [nothing if stream is None else _result(stream.result) for stream in streams]

    def start(self) -> None:
        """A new stream."""
        self.stream = self.recognizer.create_stream()

    def accept(self, samples: np.ndarray, finished: bool) -> Dict[str, Any]:
        """Hear ``samples`` (``finished``: the last ones) and decode what is ready."""
        self.stream.accept_waveform(SAMPLING_RATE, samples)
        if finished:
            self.stream.input_finished()
        while self.recognizer.is_ready(self.stream):
            self.recognizer.decode_stream(self.stream)
        found = self.recognizer.get_result_all(self.stream)
        endpoint = bool(self.recognizer.is_endpoint(self.stream))
        return {**_result(found), "start": round(float(found.start_time), 4), "endpoint": endpoint}

    def reset(self) -> None:
        """A new segment of the same stream."""
        self.recognizer.reset(self.stream)

    def frames(self, samples: np.ndarray, count: int) -> np.ndarray:
        """(count, 80): the filter banks that a stream computes of ``samples``."""
        self.start()
        self.stream.accept_waveform(SAMPLING_RATE, samples)
        self.stream.input_finished()
        return np.asarray(self.stream.get_frames(0, count), dtype=np.float32).reshape(count, -1)


def _result(found) -> Dict[str, Any]:
    times = [round(float(time), 4) for time in found.timestamps]
    return {"text": found.text.strip(), "tokens": list(found.tokens), "timestamps": times}


_recognizer: Optional[Recognizer] = None


def answer(request: Dict[str, Any], arrays: List[np.ndarray]) -> Any:
    """What ``children.serve`` asks."""
    global _recognizer
    if _recognizer is not None:
        return getattr(_recognizer, request.pop("operation"))(*arrays, **request)
    _recognizer = Recognizer(**request)
    return None


if __name__ == "__main__":
    serve(answer)

"""The process in which sherpa-onnx runs; ``client_process.ClientProcess`` is the other end.

The first request says what to load; each of the others names an operation of ``Offline`` or ``Online``.
"""

import os
from typing import Any, Dict, List

import numpy as np
import sherpa_onnx

from rnnt_kd.children import serve
from rnnt_kd.data.audio_format import SAMPLING_RATE


class Offline:
    """Whole utterances."""

    def __init__(self, model_dir: str, search: str, beam: int):
        self.recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
            **_files(model_dir),
            model_type="transducer",
            num_threads=1,
            decoding_method=search,
            max_active_paths=beam,
        )

    def decode(self, *batch: np.ndarray) -> List[Dict[str, Any]]:
        """One result for each utterance, decoded together."""
        streams = [self.recognizer.create_stream() for _ in batch]
        for stream, samples in zip(streams, batch, strict=True):
            stream.accept_waveform(SAMPLING_RATE, samples)
        self.recognizer.decode_streams(streams)
        return [_result(stream.result) for stream in streams]


class Online:
    """One stream at a time, heard bit by bit."""

    def __init__(self, model_dir: str, search: str, beam: int, endpoints: bool):
        self.recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
            **_files(model_dir),
            model_type="conformer",
            num_threads=1,
            decoding_method=search,
            max_active_paths=beam,
            enable_endpoint_detection=endpoints,
        )
        self.stream: Any = None  # an OnlineStream

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
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLING_RATE, samples)
        stream.input_finished()
        return np.asarray(stream.get_frames(0, count), dtype=np.float32).reshape(count, -1)


def _result(found) -> Dict[str, Any]:
    times = [round(float(time), 4) for time in found.timestamps]
    return {"text": found.text.strip(), "tokens": list(found.tokens), "timestamps": times}


def _files(model_dir: str) -> Dict[str, str]:
    files = {name: os.path.join(model_dir, f"{name}.onnx") for name in ("encoder", "decoder", "joiner")}
    return {**files, "tokens": os.path.join(model_dir, "tokens.txt")}


class Client:
    """``Offline`` or ``Online``, whichever the first request asks for."""

    def __init__(self):
        self.recognizer = None

    def __call__(self, request: Dict[str, Any], arrays: List[np.ndarray]) -> Any:
        if self.recognizer is None:
            self.recognizer = {"offline": Offline, "online": Online}[request.pop("kind")](**request)
            return None
        return getattr(self.recognizer, request.pop("operation"))(*arrays, **request)


if __name__ == "__main__":
    serve(Client())

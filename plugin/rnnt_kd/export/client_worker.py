"""The process in which sherpa-onnx runs; ``client_process.ClientProcess`` is the other end.

It reads a line of JSON and, behind it, the samples of "sizes" as raw float32, and answers likewise.  The first
line says what to load; each of the others names an operation of ``Offline`` or ``Online``.  What the client's C++
code prints goes to stderr: the answers have a descriptor of their own.
"""

import json
import os
import sys
from typing import Any, BinaryIO, Dict, List

import numpy as np
import sherpa_onnx

SAMPLING_RATE = 16000


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    recognizer = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        samples = [_read(sys.stdin.buffer, size) for size in request.pop("sizes")]
        if recognizer is None:
            recognizer = {"offline": Offline, "online": Online}[request.pop("kind")](**request)
            answer = None
        else:
            answer = getattr(recognizer, request.pop("operation"))(*samples, **request)
        if isinstance(answer, np.ndarray):
            answers.write(json.dumps({"shape": answer.shape}).encode() + b"\n" + answer.tobytes())
        else:
            answers.write(json.dumps({"answer": answer}).encode() + b"\n")
        answers.flush()
    os._exit(0)  # the client's threads need no farewell


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
        self.stream = None

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


def _read(stream: BinaryIO, size: int) -> np.ndarray:
    return np.frombuffer(stream.read(4 * size), dtype=np.float32)


if __name__ == "__main__":
    main()

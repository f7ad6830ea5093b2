"""The process in which sherpa-onnx runs: one JSON request on stdin, one JSON answer on stdout.

The client ends its process where it does not like a model; here that ends nothing else.  What the C++ code
prints goes to stderr: the answer has a descriptor of its own.
"""

import json
import os
import sys
from typing import Any, Dict, List, Tuple

import numpy as np


def main() -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    audio = _audio(request["audio"])
    result = {"recognize": recognize, "features": features}[request["task"]](request, audio)
    json.dump(result, answer)
    answer.flush()
    os._exit(0)  # the client's threads need no farewell


def recognize(request: Dict[str, Any], audio: List[Tuple[int, np.ndarray]]) -> List[Dict[str, Any]]:
    """One result for each of ``audio``, decoded in batches of ``batch_size``."""
    import sherpa_onnx

    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **_files(request["model_dir"]),
        model_type="transducer",
        num_threads=1,
        decoding_method=request["search"],
        max_active_paths=request["beam"],
    )
    found = []
    for start in range(0, len(audio), request["batch_size"]):
        streams = []
        for rate, samples in audio[start : start + request["batch_size"]]:
            streams.append(recognizer.create_stream())
            streams[-1].accept_waveform(rate, samples)
        recognizer.decode_streams(streams)
        for stream in streams:
            result = stream.result
            found.append({"text": result.text, "tokens": list(result.tokens), "timestamps": list(result.timestamps)})
    return found


def features(request: Dict[str, Any], audio: List[Tuple[int, np.ndarray]]) -> str:
    """The frames of an ``OnlineStream`` that hears the first of ``audio``; the name of the .npy file they are in."""
    import sherpa_onnx

    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(**_files(request["model_dir"]), num_threads=1)
    stream = recognizer.create_stream()
    stream.accept_waveform(*audio[0])
    stream.input_finished()
    count = request["frames"]
    frames = np.asarray(stream.get_frames(0, count), dtype=np.float32).reshape(count, -1)
    np.save(request["frames_file"], frames)
    return request["frames_file"]


def _files(model_dir: str) -> Dict[str, str]:
    files = {name: os.path.join(model_dir, f"{name}.onnx") for name in ("encoder", "decoder", "joiner")}
    return {**files, "tokens": os.path.join(model_dir, "tokens.txt")}


def _audio(path: str) -> List[Tuple[int, np.ndarray]]:
    with np.load(path) as file:
        return [(int(file[f"rate{i}"]), file[f"samples{i}"]) for i in range(len(file.files) // 2)]


if __name__ == "__main__":
    main()

"""Recordings of any length -> text, with an export in sherpa-onnx.

Offline exports look at the whole of what they are given: long audio goes to them in pieces.  Streaming exports hear
it bit by bit.  Verify the export first (``verify_static``): sherpa-onnx survives no bad model.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List

import numpy as np

from rnnt_kd.data.audio import is_silent
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.pieces import LONGEST_SECONDS, cut_at_quiet
from rnnt_kd.errors import UserError
from rnnt_kd.export.client import SHORTEST, ClientResult, Listener, search_settings
from rnnt_kd.export.client_process import ClientProcess
from rnnt_kd.export.client_text import without_blanks

SHORTEST_PIECE, LONGEST_PIECE = 1.0, 300.0  # seconds
CHUNK_MS = 100
CHUNK = CHUNK_MS * SAMPLING_RATE // 1000


@dataclass(frozen=True)
class Heard:
    """The words that a streaming export has recognised of the present segment.

    Attributes:
      seconds: of audio heard so far.
      final:   the segment is over: a pause, or the end.
    """

    result: ClientResult
    seconds: float
    final: bool


class Transcriber:
    """An offline export that recognises one recording after the other; a context manager.

    Args:
      longest_seconds: of the pieces that it gets; see ``cut_at_quiet``.
    """

    def __init__(self, model_dir: Path, *, search: str, beam: int, longest_seconds: float = LONGEST_SECONDS):
        if not SHORTEST_PIECE <= longest_seconds <= LONGEST_PIECE:
            raise UserError("longest piece", f"{longest_seconds:g} s", f"{SHORTEST_PIECE:g} to {LONGEST_PIECE:g} s")
        self._longest_seconds = longest_seconds
        self._client = ClientProcess(model_dir, {"kind": "offline", **search_settings(search, beam)})

    def transcribe(self, samples: np.ndarray) -> ClientResult:
        """(n,) samples at 16 kHz, piece by piece; in pieces of digital silence there are no words."""
        tokens: List[str] = []
        times: List[float] = []
        texts: List[str] = []
        for start, end in cut_at_quiet(samples, self._longest_seconds):
            if end - start < SHORTEST or is_silent(samples[start:end]):  # models invent words for zeros
                continue
            found: Dict[str, Any] = self._client.ask({"operation": "decode"}, [samples[start:end]])[0]
            texts.append(found["text"])
            tokens += found["tokens"]
            times += [round(start / SAMPLING_RATE + seconds, 4) for seconds in found["timestamps"]]
        return ClientResult(without_blanks(" ".join(filter(None, texts))), tokens, times)

    def __enter__(self) -> "Transcriber":
        return self

    def __exit__(self, *error) -> None:
        self._client.close()


def listen(listener: Listener, chunks: Iterable[np.ndarray]) -> Iterator[Heard]:
    """The results of ``listener``, after each of ``chunks`` that changes it and after each segment."""
    listener.start()
    heard, last = 0, ""
    for chunk in chunks:
        heard += len(chunk)
        result = listener.accept(chunk)
        if listener.at_endpoint:
            yield Heard(result, heard / SAMPLING_RATE, True)
            listener.reset()
            last = ""
        elif result.text != last:
            yield Heard(result, heard / SAMPLING_RATE, False)
            last = result.text
    yield Heard(listener.finish(), heard / SAMPLING_RATE, True)


def chunks_of(samples: np.ndarray, at_its_pace: bool = False) -> Iterator[np.ndarray]:
    """100 ms at a time; ``at_its_pace``: not before a speaker would have said it."""
    begin = time.monotonic()
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        if at_its_pace:
            time.sleep(max(0.0, begin + (start + len(chunk)) / SAMPLING_RATE - time.monotonic()))
        yield chunk


def microphone() -> Iterator[np.ndarray]:
    """Samples from the default microphone, 100 ms at a time, without end.

    Raises:
      ModuleNotFoundError: sounddevice is not installed.
      UserError:           there is no microphone, or no PortAudio.
    """
    try:
        import sounddevice
    except OSError as error:  # without the library that it wraps
        raise UserError("--microphone", str(error), "the library PortAudio", "apt-get install libportaudio2") from None
    try:
        stream = sounddevice.InputStream(samplerate=SAMPLING_RATE, channels=1, dtype="float32", blocksize=CHUNK)
    except sounddevice.PortAudioError as error:
        raise UserError("--microphone", str(error), "a microphone", "give audio files instead") from None
    with stream:
        while True:
            yield stream.read(CHUNK)[0][:, 0].copy()

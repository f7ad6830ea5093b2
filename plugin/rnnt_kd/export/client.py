"""sherpa-onnx in a process of its own: it recognises whole utterances, bit by bit, recordings of any length.

The client ends its process where it does not like a model, by ``_Exit`` or a segmentation fault.  Here that ends
nothing else, and is one line; verify the export first (``check_files.verify_static``).  Samples are (n,) float32 at
16 kHz in [-1, 1].
"""

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Sequence

import numpy as np
import onnx

from rnnt_kd.children import Worker, WorkerDied
from rnnt_kd.data.audio import is_silent
from rnnt_kd.data.audio_format import FRAME_SAMPLES, SAMPLING_RATE
from rnnt_kd.data.pieces import LONGEST_SECONDS, cut_at_quiet
from rnnt_kd.errors import UserError
from rnnt_kd.export.client_text import without_blanks
from rnnt_kd.export.onnx_file import load_onnx, metadata_of

SEARCHES = ("greedy_search", "modified_beam_search")
SHORTEST_PIECE, LONGEST_PIECE = 1.0, 300.0  # seconds
CHUNK_MS = 100
CHUNK = CHUNK_MS * SAMPLING_RATE // 1000


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


class ClientProcess(Worker):
    """One recogniser in its process; a context manager.

    Args:
      model_dir: the folder of an export.
      search:    "greedy_search", or "modified_beam_search" with ``beam`` hypotheses.
      streaming: ``OnlineRecognizer``; with ``endpoints`` it tells where it hears a pause.
      timeout:   seconds for one answer.
    Raises:
      ModuleNotFoundError: sherpa-onnx is not installed.
      UserError:           a search that it has not; the process died: its signal or status, and the last line it wrote.
    """

    def __init__(
        self,
        model_dir: Path,
        search: str = "greedy_search",
        beam: int = 4,
        *,
        streaming: bool = False,
        endpoints: bool = False,
        timeout: float = 600.0,
    ):
        if search not in SEARCHES:
            raise UserError("search", repr(search), " or ".join(SEARCHES))
        if beam < 1:
            raise UserError("beam", str(beam), "1 or more hypotheses")
        if importlib.util.find_spec("sherpa_onnx") is None:
            raise ModuleNotFoundError("No module named 'sherpa_onnx'", name="sherpa_onnx")
        self._model_dir = Path(model_dir)
        super().__init__("rnnt_kd.export.client_worker", timeout, {"OMP_NUM_THREADS": "1"})
        settings = {"streaming": streaming, "search": search, "beam": beam, "endpoints": endpoints}
        try:
            self.ask({"model_dir": str(self._model_dir.resolve()), **settings})
        except BaseException:
            self.close()
            raise

    def ask(self, request: Dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> Any:
        """The recogniser's answer to ``request`` and arrays of samples; UserError where it died."""
        for samples in arrays:
            if samples.ndim != 1 or not np.isfinite(samples).all():
                problem = f"samples of the shape {samples.shape}, or NaN or infinity"
                raise UserError("audio", problem, "(n,) finite numbers")
        try:
            return super().ask(request, arrays)
        except WorkerDied as death:
            problem = f"sherpa-onnx {death.ending}"
            if death.late:
                raise UserError(self._model_dir, problem, "", "try less audio") from None
            problem += f" ({death.last_line[:300]})"
            raise UserError(self._model_dir, problem, "a model that it can run", "export the system again") from None

    def decode(self, batch: Sequence[np.ndarray]) -> List[ClientResult]:
        """The results of whole utterances, decoded together."""
        return [ClientResult(**found) for found in self.ask({"operation": "decode"}, batch)]


class Listener(ClientProcess):
    """A streaming export that listens; a context manager.

    Attributes: ``at_endpoint``, whether sherpa-onnx takes what it heard last for the end of a segment.
    """

    def __init__(self, model_dir: Path, search: str = "greedy_search", beam: int = 4, endpoints: bool = True):
        self._tail = np.zeros(tail_samples(model_dir), dtype=np.float32)
        super().__init__(model_dir, search, beam, streaming=True, endpoints=endpoints)
        self.at_endpoint = False
        self.start()

    def start(self) -> None:
        """Begin with another audio."""
        self.ask({"operation": "start"})

    def accept(self, samples: np.ndarray, finished: bool = False) -> ClientResult:
        """Hear (n,) samples; the segment so far."""
        found = self.ask({"operation": "accept", "finished": finished}, [samples])
        self.at_endpoint = found.pop("endpoint")
        return ClientResult(**found)

    def reset(self) -> None:
        """Begin a new segment; the encoder goes on."""
        self.ask({"operation": "reset"})

    def finish(self) -> ClientResult:
        """The last segment, after the silence without which its tail would be lost."""
        return self.accept(self._tail, True)


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


def recognize(
    model_dir: Path, audio: Sequence[np.ndarray], *, search: str = "greedy_search", beam: int = 4, batch_size: int = 1
) -> List[ClientResult]:
    """Whole utterances by ``OfflineRecognizer``, ``batch_size`` at a time; one result for each."""
    with ClientProcess(model_dir, search, beam) as client:
        batches = [audio[start : start + batch_size] for start in range(0, len(audio), batch_size)]
        return [result for batch in batches for result in client.decode(batch)]


def recognize_streaming(
    model_dir: Path,
    audio: Sequence[np.ndarray],
    *,
    search: str = "greedy_search",
    beam: int = 4,
    endpoints: bool = False,
    chunk: int = CHUNK,
) -> List[List[ClientResult]]:
    """The same by ``OnlineRecognizer``, ``chunk`` samples at a time; the segments of each audio."""
    with Listener(model_dir, search, beam, endpoints) as listener:
        heard = (listen(listener, chunks_of(samples, chunk=chunk)) for samples in audio)
        return [[item.result for item in items if item.final] for items in heard]


class Transcriber(ClientProcess):
    """An offline export that recognises one recording after the other; a context manager.

    Args:
      longest_seconds: of the pieces that it gets; see ``cut_at_quiet``.
    """

    def __init__(self, model_dir: Path, search: str, beam: int, longest_seconds: float = LONGEST_SECONDS):
        if not SHORTEST_PIECE <= longest_seconds <= LONGEST_PIECE:
            raise UserError("longest piece", f"{longest_seconds:g} s", f"{SHORTEST_PIECE:g} to {LONGEST_PIECE:g} s")
        self._longest_seconds = longest_seconds
        super().__init__(model_dir, search, beam)

    def transcribe(self, samples: np.ndarray) -> ClientResult:
        """(n,) samples, piece by piece; in pieces of digital silence there are no words."""
        found = list(self.pieces(samples))
        text = without_blanks(" ".join(one.text for one in found if one.text))
        tokens, times = ([value for one in found for value in getattr(one, key)] for key in ("tokens", "timestamps"))
        return ClientResult(text, tokens, times)

    def pieces(self, samples: np.ndarray) -> Iterator[ClientResult]:
        """The same, each piece by itself."""
        for start, end in cut_at_quiet(samples, self._longest_seconds):
            if start < end and not is_silent(samples[start:end]):  # models invent words for zeros
                (found,) = self.decode([samples[start:end]])
                times = [round(start / SAMPLING_RATE + seconds, 4) for seconds in found.timestamps]
                yield ClientResult(found.text, found.tokens, times)


def chunks_of(samples: np.ndarray, at_its_pace: bool = False, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """100 ms at a time; ``at_its_pace``: not before a speaker would have said it."""
    begin = time.monotonic()
    for start in range(0, len(samples), chunk):
        part = samples[start : start + chunk]
        if at_its_pace:
            time.sleep(max(0.0, begin + (start + len(part)) / SAMPLING_RATE - time.monotonic()))
        yield part


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


def tail_samples(model_dir: Path) -> int:
    """Samples of silence that sherpa-onnx must hear after the end: one frame more than a chunk needs."""
    path = Path(model_dir) / "encoder.onnx"
    frames = metadata_of(load_onnx(path)).get("T", "")
    if not frames.isdecimal():
        raise UserError(path, "not a streaming encoder: it has no 'T' in its metadata", "an export with --streaming")
    return (int(frames) + 1) * FRAME_SAMPLES


def features(samples: np.ndarray) -> np.ndarray:
    """(T, 80) float32: what sherpa-onnx computes of 80 or more samples (``OnlineStream.get_frames``)."""
    count = (len(samples) + FRAME_SAMPLES // 2) // FRAME_SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        write_probe(Path(folder))
        with ClientProcess(Path(folder), streaming=True) as client:
            return client.ask({"operation": "frames", "count": count}, [samples])


# ``get_frames`` is the one way to see sherpa-onnx's features, and needs a recogniser to make the stream: a
# streaming model of a few numbers.  An input that nobody reads would end the client.
_PROBE = {
    "encoder": """encoder (float[N, 7, 80] x, float[1, 1, N, 1] cached_attn, float[1, 1, N, 1] cached_conv,
            int64[N] processed_lens)
        => (float[N, 1, 1] encoder_out, float[1, 1, N, 1] new_cached_attn, float[1, 1, N, 1] new_cached_conv) {
            encoder_out = ReduceMean <axes = [1, 2], keepdims = 1> (x)
            new_cached_attn = Identity (cached_attn)
            frames = Cast <to = 1> (processed_lens)
            some = ReduceMean <keepdims = 1> (frames)
            new_cached_conv = Add (cached_conv, some) }""",
    "decoder": """decoder (int64[N, 2] y) => (float[N, 1] decoder_out) {
            labels = Cast <to = 1> (y)
            decoder_out = ReduceMean <axes = [1], keepdims = 1> (labels) }""",
    "joiner": """joiner (float[N, 1] encoder_out, float[N, 1] decoder_out) => (float[N, 2] logit) {
            sum = Add (encoder_out, decoder_out)
            logit = Concat <axis = 1> (sum, sum) }""",
}
_PROBE_SIZES = (
    "T 7 decode_chunk_len 4 left_context 1 encoder_dim 1 num_encoder_layers 1 cnn_module_kernel 2 pad_length 7"
)


def write_probe(folder: Path) -> None:
    """encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt of a model that hears all and says nothing of use."""
    words = f"model_type conformer {_PROBE_SIZES} vocab_size 2 context_size 2".split()
    for name, graph in _PROBE.items():
        model = onnx.parser.parse_model(f'<ir_version: 7, opset_import: ["": 13]> {graph}')
        onnx.helper.set_model_props(model, dict(zip(words[::2], words[1::2], strict=True)))
        onnx.save(model, str(folder / f"{name}.onnx"))
    (folder / "tokens.txt").write_text("<blk> 0\n<unk> 1\n", encoding="utf-8")

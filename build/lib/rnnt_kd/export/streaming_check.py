"""A check of a streaming export: sherpa-onnx's OnlineRecognizer against our own streaming decoder in torch.

Every utterance by itself, and all of them joined by threes with pauses between them, which are endpoints: there
both sides begin a new segment.  100 ms of audio at a time, greedy and modified beam search.
"""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from rnnt_kd.data.audio_format import FRAME_SAMPLES, FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.export import client
from rnnt_kd.export.client_check import BEAM, Difference, as_result, compare, deciding, measured, word_errors
from rnnt_kd.export.streaming_graphs import encoder_of
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.text.tokenizer import Tokenizer

CHUNK_MS = 100
JOINED = 3
PAUSE_SECONDS = 1.6  # sherpa-onnx takes 1.2 s of blanks after speech for an endpoint


def check_streaming_client(
    folder: Path, model: Transducer, tokenizer: Tokenizer, speech: Sequence[Speech], score_events: bool = True
) -> Dict[str, Any]:
    """Recognise ``speech`` (all with samples) four times on either side; returns what ``check_client`` returns.

    In a run, ``segments`` ("utterances" or "endpoints"), ``streams`` and ``number_of_segments`` stand for the
    batch size; with "endpoints" a difference is one of a stream of three utterances.
    Raises: UserError: the client died.
    """
    runs: List[Dict[str, Any]] = []
    differences: List[Difference] = []
    for segments, items in (("utterances", list(speech)), ("endpoints", join(speech))):
        samples = [item.heard for item in items]
        for search in client.SEARCHES:
            at_endpoints = segments == "endpoints"
            theirs = client.recognize_streaming(
                folder, samples, search=search, beam=BEAM, chunk_ms=CHUNK_MS, reset_at_endpoints=at_endpoints
            )
            ours = [recognize(model, tokenizer, item, search, at_endpoints) for item in samples]
            found = [
                difference
                for item, own, other in zip(items, ours, theirs, strict=True)
                for difference in _compare(item.id, search, own, other)
            ]
            differences += found
            runs.append({"search": search, "segments": segments, "streams": len(items)})
            runs[-1]["differences"] = deciding(found)
            runs[-1]["number_of_segments"] = sum(len(own) for own in ours)
            tokens = ([_tokens(one) for one in side] for side in (ours, theirs))
            runs[-1].update(word_errors(items, *tokens, score_events=score_events))
    return measured(speech, runs, differences)


def join(speech: Sequence[Speech]) -> List[Speech]:
    """Three utterances in a row, each followed by a pause."""
    pause = np.zeros(int(PAUSE_SECONDS * SAMPLING_RATE), dtype=np.float32)
    found = []
    for start in range(0, len(speech), JOINED):
        group = speech[start : start + JOINED]
        samples = np.concatenate([part for item in group for part in (item.heard, pause)])
        found.append(Speech("+".join(item.id for item in group), " ".join(item.text for item in group), "", samples))
    return found


def recognize(
    model: Transducer,
    tokenizer: Tokenizer,
    samples: np.ndarray,
    search: str,
    at_endpoints: bool = False,
    reset_after: Sequence[int] = (),
) -> List[client.ClientResult]:
    """The segments that our own streaming decoder finds in ``samples``, heard as ``recognize_streaming`` does."""
    encoder = encoder_of(model)
    tail = (encoder.feature_frames(encoder.chunk_frames) + 1) * FRAME_SAMPLES
    features = filter_banks(np.concatenate([samples, np.zeros(tail, dtype=np.float32)]))
    stream = StreamingRecognizer(model, search=search, beam=BEAM, blank_id=tokenizer.blank_id, unk_id=tokenizer.unk_id)
    step, heard, resets, segments = CHUNK_MS * SAMPLING_RATE // 1000, 0, list(reset_after), []
    for start in range(0, len(samples), step):
        ready = frames_ready(min(start + step, len(samples)))
        stream.accept(features[heard:ready])
        heard = ready
        asked = bool(resets) and start + step >= resets[0]
        if asked or at_endpoints and stream.is_endpoint():
            resets = [position for position in resets if position > start + step]
            segments.append(_result(stream, tokenizer))
            stream.reset()
    stream.accept(features[heard:])
    return [*segments, _result(stream, tokenizer)]


def frames_ready(samples: int) -> int:
    """Feature frames whose window of 25 ms, centred in 10 ms, lies within the first ``samples`` of a stream."""
    return max(0, (samples - 120) // FRAME_SAMPLES)


def _result(stream: StreamingRecognizer, tokenizer: Tokenizer) -> client.ClientResult:
    found = stream.result()
    return as_result(found.tokens, found.timestamps, tokenizer, stream.start_frame * FRAME_SECONDS, streaming=True)


def _compare(
    utterance: str, search: str, ours: Sequence[client.ClientResult], theirs: Sequence[client.ClientResult]
) -> List[Difference]:
    """The first thing that differs; segments that begin at other times count as other times."""
    sides = [_whole(side) for side in (ours, theirs)]
    found = compare(utterance, search, 1, *sides)
    starts = [" ".join(f"{segment.start:.2f}" for segment in side) for side in (ours, theirs)]
    if not found and starts[0] != starts[1]:
        found.append(Difference(utterance, search, 1, "segments", sherpa_onnx=starts[1], rnnt_kd=starts[0]))
    return found


def _tokens(segments: Sequence[client.ClientResult]) -> List[str]:
    """Of all segments; each begins with a new word."""
    return [token for segment in segments for token in (" ", *segment.tokens)]


def _whole(segments: Sequence[client.ClientResult]) -> client.ClientResult:
    tokens: Tuple[List[str], List[float]] = ([], [])
    for segment in segments:
        tokens[0].extend(segment.tokens)
        tokens[1].extend(segment.start + time for time in segment.timestamps)
    return client.ClientResult(" | ".join(segment.text for segment in segments), *tokens)

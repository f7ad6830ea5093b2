"""What sherpa-onnx recognises against our own decoder on the system in torch; its features against ours."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.data.audio_format import FRAME_SAMPLES, FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.errors import UserError
from rnnt_kd.export import client, client_text
from rnnt_kd.export.client import ClientResult
from rnnt_kd.export.graphs import encoder_of
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.scoring.bootstrap import one_seed_p_value
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.text.tokenizer import Tokenizer

BATCH_SIZES = (1, 8)
BEAM = 4
FEATURE_TOLERANCE = 2e-3
TIE_TRIALS = 50
ENCODER_FRAME_SECONDS = 4 * FRAME_SECONDS
JOINED = 3
PAUSE_SECONDS = 1.6  # sherpa-onnx takes 1.2 s of blanks after speech for an endpoint
_FEATURE_SAMPLES = 600 * SAMPLING_RATE

Segments = Sequence[ClientResult]
Run = Tuple[Dict[str, Any], List[Speech], Sequence[Segments], Sequence[Segments]]  # facts, speech, ours, sherpa-onnx's


@dataclass(frozen=True)
class Difference:
    """One utterance that sherpa-onnx and our decoder recognise differently, or at other times."""

    utterance: str
    search: str
    batch_size: int
    what: str  # "text", "tokens", "times", "segments"; "tie": one of these; "blanks": all else is the same
    sherpa_onnx: str
    rnnt_kd: str

    @property
    def decides(self) -> bool:
        """Is it more than a tie, or a client that sets blanks otherwise than ``client_text``?"""
        return self.what not in ("blanks", "tie")


def check_features(speech: Sequence[Speech], folder: Path) -> float:
    """Largest difference between our filter banks and ``OnlineStream.get_frames``, on up to ten minutes in a row.

    Raises: UserError: it is above 2e-3, or the frames are not as many.
    """
    samples = np.concatenate([item.samples for item in speech if item.samples is not None])[:_FEATURE_SAMPLES]
    ours, theirs = filter_banks(samples).numpy(), np.asarray(client.features(samples))
    if ours.shape != theirs.shape:
        raise UserError(folder, f"sherpa-onnx computes features of the shape {theirs.shape}", f"{ours.shape}")
    largest = float(np.abs(ours - theirs).max())
    if not largest <= FEATURE_TOLERANCE:
        raise UserError(folder, f"sherpa-onnx's features differ by {largest:.2g}", f"at most {FEATURE_TOLERANCE:g}")
    return largest


def check_client(
    folder: Path,
    model: Transducer,
    tokenizer: Tokenizer,
    speech: Sequence[Speech],
    streaming: bool = False,
    score_events: bool = True,
) -> Dict[str, Any]:
    """Recognise ``speech`` (all with samples) by greedy and modified beam search on either side.

    Offline: single utterances and batches.  Streaming, 100 ms of audio at a time: every utterance by itself, and all of
    them joined by threes with pauses between them, which are endpoints: there both sides begin a new segment.
    Our side starts from the audio too (Lhotse's filter banks without stage 1's rounding).  Tokens, times and letters
    decide; blanks are compared as ``client_text`` says that the client writes them.  The client's features may differ
    from ours by ``FEATURE_TOLERANCE``.  Where two paths are as likely as that, either may win: a difference that our
    own search makes, too, when its features move by so much is a tie, and decides nothing.  ``score_events``: <unk> and
    [noise] count in the word error rates.

    Returns JSON values: ``utterances``, ``audio_seconds``, ``runs`` (search, batch_size or segments, streams and
    number_of_segments, differences, and where there are reference words wer_sherpa_onnx, wer_rnnt_kd and the p-value
    of the pair), ``differences`` (a list), ``ties`` and ``differences_in_blanks``.
    Raises: UserError: the client died.
    """
    runs: List[Dict[str, Any]] = []
    differences: List[Difference] = []
    for facts, items, ours, theirs in (_streams if streaming else _batches)(folder, model, tokenizer, speech):
        search, found = facts["search"], []
        for item, own, other in zip(items, ours, theirs, strict=True):
            for one in compare(item.id, search, facts.get("batch_size", 1), own, other):
                tie = one.decides and not streaming
                tie = tie and is_tie(model, tokenizer, filter_banks(item.heard), search, other)
                found.append(replace(one, what="tie") if tie else one)
        differences += found
        facts["differences"] = sum(one.decides for one in found)
        if streaming:
            facts["number_of_segments"] = sum(map(len, ours))
        runs.append({**facts, **word_errors(items, ours, theirs, score_events=score_events)})
    return {
        "utterances": len(speech),
        "audio_seconds": round(sum(item.seconds for item in speech), 3),
        "beam": BEAM,
        "runs": runs,
        "differences": [asdict(item) for item in differences if item.decides],
        "ties": [asdict(item) for item in differences if item.what == "tie"],
        "differences_in_blanks": [asdict(item) for item in differences if item.what == "blanks"],
    }


def _batches(folder: Path, model: Transducer, tokenizer: Tokenizer, speech: Sequence[Speech]) -> Iterator[Run]:
    samples = [item.heard for item in speech]
    features = [filter_banks(item) for item in samples]
    for search in client.SEARCHES:
        for size in BATCH_SIZES:
            ours = recognise(model, tokenizer, features, search, size)
            theirs = client.recognize(folder, samples, search=search, beam=BEAM, batch_size=size)
            facts = {"search": search, "batch_size": size}
            yield facts, list(speech), [[result] for result in ours], [[result] for result in theirs]


def _streams(folder: Path, model: Transducer, tokenizer: Tokenizer, speech: Sequence[Speech]) -> Iterator[Run]:
    for segments, items in (("utterances", list(speech)), ("endpoints", _join(speech))):
        samples, at_endpoints = [item.heard for item in items], segments == "endpoints"
        for search in client.SEARCHES:
            theirs = client.recognize_streaming(folder, samples, search=search, beam=BEAM, endpoints=at_endpoints)
            ours = [stream(model, tokenizer, item, search, at_endpoints) for item in samples]
            yield {"search": search, "segments": segments, "streams": len(items)}, items, ours, theirs


def _join(speech: Sequence[Speech]) -> List[Speech]:
    pause = np.zeros(int(PAUSE_SECONDS * SAMPLING_RATE), dtype=np.float32)
    found = []
    for start in range(0, len(speech), JOINED):
        group = speech[start : start + JOINED]
        samples = np.concatenate([part for item in group for part in (item.heard, pause)])
        found.append(Speech("+".join(item.id for item in group), " ".join(item.text for item in group), "", samples))
    return found


def recognise(
    model: Transducer, tokenizer: Tokenizer, features: Sequence[Tensor], search: str, batch_size: int
) -> List[ClientResult]:
    found: List[ClientResult] = []
    for start in range(0, len(features), batch_size):
        batch = features[start : start + batch_size]
        lens = torch.tensor([len(matrix) for matrix in batch])
        with torch.no_grad():
            encoder_out, out_lens = model.encode(nn.utils.rnn.pad_sequence(list(batch), batch_first=True), lens)
        settings = {"beam": BEAM, "blank_id": tokenizer.blank_id, "unk_id": tokenizer.unk_id}
        found += [_result(best, tokenizer) for best, *_ in get_search(search)(model, encoder_out, out_lens, **settings)]
    return found


def stream(
    model: Transducer, tokenizer: Tokenizer, samples: np.ndarray, search: str, at_endpoints: bool = False
) -> List[ClientResult]:
    """The segments that our own streaming decoder finds in ``samples``, heard as ``recognize_streaming`` does."""
    encoder = encoder_of(model)
    tail = (encoder.feature_frames(encoder.chunk_frames) + 1) * FRAME_SAMPLES
    features = filter_banks(np.concatenate([samples, np.zeros(tail, dtype=np.float32)]))
    settings = {"beam": BEAM, "blank_id": tokenizer.blank_id, "unk_id": tokenizer.unk_id}
    recognizer = StreamingRecognizer(model, search=search, **settings)
    heard, segments = 0, []
    for start in range(0, len(samples), client.CHUNK):
        ready = frames_ready(min(start + client.CHUNK, len(samples)))
        recognizer.accept(features[heard:ready])
        heard = ready
        if at_endpoints and recognizer.is_endpoint():
            segments.append(_result(recognizer.result(), tokenizer, recognizer.start_frame * FRAME_SECONDS, True))
            recognizer.reset()
    recognizer.accept(features[heard:])
    return [*segments, _result(recognizer.result(), tokenizer, recognizer.start_frame * FRAME_SECONDS, True)]


def frames_ready(samples: int) -> int:
    """Feature frames whose window of 25 ms, centred in 10 ms, lies within the first ``samples`` of a stream."""
    return max(0, (samples - 120) // FRAME_SAMPLES)


def _result(found, tokenizer: Tokenizer, start: float = 0.0, streaming: bool = False) -> ClientResult:
    """A hypothesis, as sherpa-onnx would give it."""
    symbols, times = tokenizer.pieces(), [frame * ENCODER_FRAME_SECONDS for frame in found.timestamps]
    pieces = [symbols[token] for token in found.tokens]
    return ClientResult(client_text.text_of(pieces, streaming), client_text.tokens_of(pieces), times, start)


def is_tie(model: Transducer, tokenizer: Tokenizer, features: Tensor, search: str, theirs: Segments) -> bool:
    """Does our search find what the client found in some (frames, 80) ``features`` within the tolerance of these?"""
    generator = torch.Generator().manual_seed(0)
    for _ in range(TIE_TRIALS):
        moved = features + FEATURE_TOLERANCE * (2 * torch.rand(features.shape, generator=generator) - 1)
        if not any(one.decides for one in compare("", "", 1, recognise(model, tokenizer, [moved], search, 1), theirs)):
            return True
    return False


def compare(utterance: str, search: str, batch_size: int, ours: Segments, theirs: Segments) -> List[Difference]:
    """The first thing that differs; a list of it, or an empty one."""
    sides = []
    for side in (ours, theirs):
        text = " | ".join(segment.text for segment in side)
        tokens = "|".join(token for segment in side for token in segment.tokens)
        times = " ".join(f"{segment.start + time:.2f}" for segment in side for time in segment.timestamps)
        starts = " ".join(f"{segment.start:.2f}" for segment in side)
        sides.append({"text": text, "tokens": tokens, "times": times, "blanks": text, "segments": starts})
    for what, one in sides[0].items():
        other = sides[1][what]
        if one != other and (what != "text" or "".join(one.split()) != "".join(other.split())):
            return [Difference(utterance, search, batch_size, what, sherpa_onnx=other, rnnt_kd=one)]
    return []


def word_errors(
    speech: Sequence[Speech], ours: Sequence[Segments], theirs: Sequence[Segments], *, score_events: bool
) -> Dict[str, Any]:
    """Both word error rates, the counts of sherpa-onnx's, and the p-value (None: too few); nothing without reference
    words.  Words are counted in the tokens: in its text the client closes words up.  A segment begins a new word.
    """
    counted = []
    for side in (ours, theirs):
        words = [tuple(client_text.words_in(one.tokens for one in segments)) for segments in side]
        found = [Recognition(item.id, tuple(item.text.split()), said) for item, said in zip(speech, words, strict=True)]
        counted.append(words_counted(found, score_events))
    own, other = counted
    if not any(item.ref for item in own):
        return {}
    counts, p_value = count_all(other), one_seed_p_value(other, own)
    return {
        "wer_sherpa_onnx": round(counts.wer or 0.0, 4),
        "errors": {"words": counts.words, "ins": counts.ins, "del": counts.dels, "sub": counts.subs},
        "wer_rnnt_kd": round(count_all(own).wer or 0.0, 4),
        "p_value": p_value and round(p_value, 6),
    }

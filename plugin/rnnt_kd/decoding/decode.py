"""A system and batches of features -> recognised words, when they came, and the time it took."""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple
from unicodedata import normalize

import torch
from pydantic import TypeAdapter

from rnnt_kd.data.audio_format import FRAMES_PER_SECOND
from rnnt_kd.decoding.confidence import label_posteriors, list_posteriors
from rnnt_kd.decoding.hypotheses import Hypothesis
from rnnt_kd.decoding.options import Search, SearchOptions
from rnnt_kd.scoring.alternatives import Alternative
from rnnt_kd.scoring.emissions import Emissions


@dataclass
class Decoded:
    """A test set, recognised.

    Attributes:
      words:         utterance id -> (reference words, recognised words).
      emissions:     utterance id -> tokens, words and their times.
      alternatives:  utterance id -> the best hypotheses with scores, times and confidences, best first.
      speakers:      utterance id -> speaker id.
      audio_seconds: sum of the utterances' durations.
      seconds:       encoder, search and BPE -> text; reading features and the confidences are not counted.
    """

    words: Dict[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = field(default_factory=dict)
    emissions: Dict[str, Emissions] = field(default_factory=dict)
    alternatives: Dict[str, List[Alternative]] = field(default_factory=dict)
    speakers: Dict[str, str] = field(default_factory=dict)
    audio_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def real_time_factor(self) -> float:
        return self.seconds / self.audio_seconds if self.audio_seconds else 0.0

    def plain(self) -> Dict[str, Any]:
        """All of it in types of JSON."""
        return asdict(self)

    @classmethod
    def together(cls, parts: Iterable[Mapping[str, Any]]) -> "Decoded":
        """What ``plain`` gave of several, as one."""
        decoded = cls()
        for part in map(TypeAdapter(cls).validate_python, parts):
            for name in ("words", "emissions", "alternatives", "speakers"):
                getattr(decoded, name).update(getattr(part, name))
            decoded.audio_seconds += part.audio_seconds
            decoded.seconds += part.seconds
        return decoded


def decode(
    model,
    batches: Iterable,
    search: Search,
    tokenizer,
    *,
    nbest: int = 1,
    **options,
) -> Decoded:
    """Recognise every batch.

    Args:
      model:     a ``Transducer`` in eval mode, on the device to use.
      batches:   of ``features`` (N, T, 80), ``feature_lens`` (N,), and of N ``texts``, ``utterance_ids``,
                 ``durations`` (seconds), ``speakers``.
      search:    what ``get_search`` gives.
      tokenizer: ``text.tokenizer.Tokenizer`` of the system.
      nbest:     alternatives kept at most; the confidences come from all that the beam holds.
      options:   as ``search`` takes them (``SearchOptions``); ``unk_id`` is the tokenizer's.
    """
    device = next(model.parameters()).device
    decoded, pieces = Decoded(), tokenizer.pieces()
    frame_seconds = model.encoder.subsampling_factor / FRAMES_PER_SECOND
    told = SearchOptions(unk_id=tokenizer.unk_id, nbest=nbest, **options)
    told = replace(told, nbest=max(nbest, told.beam))
    for batch in batches:
        started = time.perf_counter()
        with torch.no_grad():
            encoder_out, lens = model.encode(batch.features.to(device), batch.feature_lens.to(device))
        found = search(model, encoder_out, lens, **vars(told))
        texts = [tokenizer.decode(best.tokens) for best, *_ in found]
        decoded.seconds += time.perf_counter() - started  # the hypotheses are on the host: the device is done
        decoded.audio_seconds += sum(batch.durations)
        for utterance_id, ref, hyp in zip(batch.utterance_ids, batch.texts, texts, strict=True):
            assert utterance_id not in decoded.words, f"{utterance_id} comes twice"
            decoded.words[utterance_id] = tuple(ref.split()), tuple(hyp.split())
        for row, (utterance_id, hypotheses) in enumerate(zip(batch.utterance_ids, found, strict=True)):
            kept = hypotheses[:nbest]
            heard = encoder_out[row].expand(len(kept), -1, -1)
            sure = label_posteriors(model, heard, kept, blank_id=told.blank_id, unk_id=told.unk_id)
            spans = [_word_spans(hypothesis, tokenizer) for hypothesis in hypotheses]
            words = [[word for word, *_ in hypothesis_spans] for hypothesis_spans in spans]
            shares = list_posteriors(words, [hypothesis.score for hypothesis in hypotheses], nbest)
            decoded.emissions[utterance_id] = _emissions(hypotheses[0], spans[0], pieces, frame_seconds)
            decoded.alternatives[utterance_id] = [
                _alternative(*parts, tokenizer, pieces, frame_seconds) for parts in zip(kept, spans, sure, shares)
            ]
        known = zip(batch.utterance_ids, batch.speakers, strict=True)
        decoded.speakers.update((utterance_id, speaker) for utterance_id, speaker in known if speaker)
    return decoded


def _word_spans(hypothesis: Hypothesis, tokenizer) -> List[Tuple[str, int, int]]:
    """Words as a ``Recognition`` has them: a letter and its accent may be two pieces."""
    return [(normalize("NFC", word), first, last) for word, first, last in tokenizer.word_spans(hypothesis.tokens)]


def _emissions(hypothesis: Hypothesis, spans: Sequence, pieces: Sequence[str], frame_seconds: float) -> Emissions:
    times = _seconds(hypothesis.timestamps, frame_seconds)
    return Emissions(
        tokens=tuple(pieces[token] for token in hypothesis.tokens),
        timestamps=times,
        words=tuple(word for word, *_ in spans),
        word_times=tuple(times[last] for *_, last in spans),
    )


def _alternative(
    hypothesis: Hypothesis,
    spans: Sequence,
    sure: Sequence[float],
    shares: Sequence[float],
    tokenizer,
    pieces,
    frame_seconds,
) -> Alternative:
    starts = _seconds(hypothesis.timestamps, frame_seconds)
    ends = _seconds([frame + 1 for frame in hypothesis.timestamps], frame_seconds)
    return Alternative(
        text=normalize("NFC", tokenizer.decode(hypothesis.tokens)),
        score=hypothesis.score,
        tokens=tuple(pieces[token] for token in hypothesis.tokens),
        timestamps=starts,
        token_log_probs=tuple(hypothesis.token_log_probs),
        words=tuple(word for word, *_ in spans),
        word_starts=tuple(starts[first] for _, first, _ in spans),
        word_ends=tuple(ends[last] for *_, last in spans),
        word_confidences=tuple(
            share * math.prod(sure[first : last + 1]) for share, (_, first, last) in zip(shares, spans, strict=True)
        ),
    )


def _seconds(frames: Sequence[int], frame_seconds: float) -> Tuple[float, ...]:
    return tuple(round(frame * frame_seconds, 4) for frame in frames)

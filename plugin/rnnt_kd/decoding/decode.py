"""A system and batches of features -> recognised words, when they came, and the time it took."""

import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Sequence, Tuple

import torch

from rnnt_kd.decoding.hypotheses import Hypothesis
from rnnt_kd.scoring.emissions import Emissions

FRAMES_PER_SECOND = 100  # of features


@dataclass
class Decoded:
    """A test set, recognised.

    Attributes:
      words:         utterance id -> (reference words, recognised words).
      emissions:     utterance id -> tokens, words and their times.
      speakers:      utterance id -> speaker id.
      audio_seconds: sum of the utterances' durations.
      seconds:       encoder, search and BPE -> text; reading features is not counted.
    """

    words: Dict[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = field(default_factory=dict)
    emissions: Dict[str, Emissions] = field(default_factory=dict)
    speakers: Dict[str, str] = field(default_factory=dict)
    audio_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def real_time_factor(self) -> float:
        return self.seconds / self.audio_seconds if self.audio_seconds else 0.0


def decode(
    model, batches: Iterable, search: Callable[..., List[List[Hypothesis]]], tokenizer, *, beam: int, blank_id: int
) -> Decoded:
    """Recognise every batch.

    Args:
      model:     a ``Transducer`` in eval mode, on the device to use.
      batches:   of ``features`` (N, T, 80), ``feature_lens`` (N,), and of N ``texts``, ``utterance_ids``,
                 ``durations`` (seconds), ``speakers``.
      search:    what ``get_search`` gives.
      tokenizer: ``text.tokenizer.Tokenizer`` of the system.
    """
    device = next(model.parameters()).device
    decoded, pieces = Decoded(), tokenizer.pieces()
    frame_seconds = model.encoder.subsampling_factor / FRAMES_PER_SECOND
    for batch in batches:
        started = time.perf_counter()
        with torch.no_grad():
            encoder_out, lens = model.encode(batch.features.to(device), batch.feature_lens.to(device))
        found = search(model, encoder_out, lens, beam=beam, blank_id=blank_id, unk_id=tokenizer.unk_id)
        hypotheses = [best for best, *_ in found]
        texts = [tokenizer.decode(hypothesis.tokens) for hypothesis in hypotheses]
        decoded.seconds += time.perf_counter() - started  # the hypotheses are on the host: the device is done
        decoded.audio_seconds += sum(batch.durations)
        for utterance_id, ref, hyp in zip(batch.utterance_ids, batch.texts, texts, strict=True):
            assert utterance_id not in decoded.words, f"{utterance_id} comes twice"
            decoded.words[utterance_id] = tuple(ref.split()), tuple(hyp.split())
        for utterance_id, hypothesis in zip(batch.utterance_ids, hypotheses, strict=True):
            decoded.emissions[utterance_id] = _emissions(hypothesis, tokenizer, pieces, frame_seconds)
        decoded.speakers.update(zip(batch.utterance_ids, batch.speakers, strict=True))
    return decoded


def _emissions(hypothesis: Hypothesis, tokenizer, pieces: Sequence[str], frame_seconds: float) -> Emissions:
    times = [round(frame * frame_seconds, 4) for frame in hypothesis.timestamps]
    words = tokenizer.words(hypothesis.tokens)
    return Emissions(
        tokens=tuple(pieces[token] for token in hypothesis.tokens),
        timestamps=tuple(times),
        words=tuple(word for word, _ in words),
        word_times=tuple(times[last] for _, last in words),
    )

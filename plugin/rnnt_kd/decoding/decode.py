"""A system and batches of features -> recognised words, and the time it took."""

import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Tuple

import torch

from rnnt_kd.decoding.hypotheses import Hypothesis


@dataclass
class Decoded:
    """A test set, recognised.

    Attributes:
      words:         utterance id -> (reference words, recognised words).
      speakers:      utterance id -> speaker id.
      audio_seconds: sum of the utterances' durations.
      seconds:       encoder, search and BPE -> text; reading features is not counted.
    """

    words: Dict[str, Tuple[Tuple[str, ...], Tuple[str, ...]]] = field(default_factory=dict)
    speakers: Dict[str, str] = field(default_factory=dict)
    audio_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def real_time_factor(self) -> float:
        return self.seconds / self.audio_seconds if self.audio_seconds else 0.0


def decode(
    model, batches: Iterable, search: Callable[..., List[Hypothesis]], tokenizer, *, beam: int, blank_id: int
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
    decoded = Decoded()
    for batch in batches:
        started = time.perf_counter()
        with torch.no_grad():
            encoder_out, lens = model.encode(batch.features.to(device), batch.feature_lens.to(device))
        hypotheses = search(model, encoder_out, lens, beam=beam, blank_id=blank_id, unk_id=tokenizer.unk_id)
        texts = [tokenizer.decode(hypothesis.tokens) for hypothesis in hypotheses]
        decoded.seconds += time.perf_counter() - started  # the hypotheses are on the host: the device is done
        decoded.audio_seconds += sum(batch.durations)
        for utterance_id, ref, hyp in zip(batch.utterance_ids, batch.texts, texts, strict=True):
            assert utterance_id not in decoded.words, f"{utterance_id} comes twice"
            decoded.words[utterance_id] = tuple(ref.split()), tuple(hyp.split())
        decoded.speakers.update(zip(batch.utterance_ids, batch.speakers, strict=True))
    return decoded

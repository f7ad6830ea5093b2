"""Recognisers that take turns on the same batches of audio: what ``bench_decode`` measures.

All of them start from samples and end with text, by one pipeline: filter banks, encoder, search.  In between the clock
is read, so the search is timed alone, too.
"""

import time
from dataclasses import dataclass
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from rnnt_kd.data.speech import Speech, filter_banks


class Pass(NamedTuple):
    """One batch, recognised.  Seconds; None where a part has no clock of its own."""

    texts: List[str]
    whole: float  # samples to text
    encoder_search: Optional[float] = None  # with the tokens put together to text
    search: Optional[float] = None  # encoder's output to tokens


Decode = Callable[[Sequence[Speech]], Pass]


@dataclass
class Turns:
    """What one recogniser did: ``seconds[part][batch]`` is a list, one number a round.

    texts: utterance id -> what it recognised.
    """

    texts: Dict[str, str]
    seconds: Dict[str, List[List[float]]]


def in_torch(model: nn.Module, tokenizer, beam: int, search: Callable) -> Decode:
    """The system in torch with ``search``, which has the call shape of ``decoding``."""

    def decode(batch: Sequence[Speech]) -> Pass:
        start = time.perf_counter()
        features = [filter_banks(item.samples) for item in batch]
        before_encoder = time.perf_counter()
        lens = torch.tensor([len(part) for part in features])
        with torch.no_grad():
            encoder_out, out_lens = model.encode(pad_sequence(features, batch_first=True), lens)
        before_search = time.perf_counter()
        found = search(
            model, encoder_out, out_lens, beam=beam, blank_id=tokenizer.blank_id, unk_id=tokenizer.unk_id
        )  # fmt: skip
        after_search = time.perf_counter()
        texts = [tokenizer.decode(best.tokens) for best, *_ in found]
        end = time.perf_counter()
        return Pass(texts, end - start, end - before_encoder, after_search - before_search)

    return decode


def make_batches(speech: Sequence[Speech], size: int) -> List[List[Speech]]:
    """``size`` utterances a batch, of like length; the last may be smaller."""
    ordered = sorted(speech, key=lambda item: len(item.samples))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def time_in_turns(
    decoders: Sequence[Decode],
    batches: Sequence[Sequence[Speech]],
    rounds: int,
    tell: Callable[[], object] = lambda: None,
) -> List[Turns]:
    """Let all recognise every batch once, for the words and to warm up, and then ``rounds`` times on the clock.

    Batch by batch all have their turn, each time another one first, so disturbances fall on all alike.  ``tell``
    is called after every batch.
    """
    found = [Turns({}, {part: [[] for _ in batches] for part in Pass._fields[1:]}) for _ in decoders]
    for turn in range(-1, rounds):
        for number, batch in enumerate(batches):
            first = (turn + number) % len(decoders)
            for index in [*range(first, len(decoders)), *range(first)]:
                done = decoders[index](batch)
                if turn < 0:
                    found[index].texts.update(zip((item.id for item in batch), done.texts, strict=True))
                    continue
                for part, values in found[index].seconds.items():
                    if getattr(done, part) is not None:
                        values[number].append(getattr(done, part))
            tell()
    return found

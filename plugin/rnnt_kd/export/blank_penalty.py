"""A constant off blank's logit, chosen on a development set and written into the exported joiner's bias.

A student with few weights says blank where it is not sure, and greedy search believes it: of 1,203 words of AN4 one
with 90 % zeros lost 371 by greedy search, 189 by beam search.  One number mends most of that, for every client that
runs the files, without an option of its own (docs/export.md).
"""

import math
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

import torch

from rnnt_kd.data.dataset import read_batches
from rnnt_kd.data.source import open_source
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.errors import UserError
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.scoring.bootstrap import errors_by_utterance
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.text.tokenizer import Tokenizer

BIAS = "joiner.output_linear.bias"
MOST = 1e4  # nats
GRID = tuple(0.25 * step for step in range(9))  # nats
SEARCHES = ("greedy_search", "modified_beam_search")
MOST_SECONDS = 1800.0  # of the development set that are heard
BATCH_SECONDS = 60.0


def choose(
    model: Transducer, tokenizer: Tokenizer, cuts: Path, score_events: bool = True
) -> Tuple[float, Dict[float, int]]:
    """The penalty of ``GRID`` with the fewest errors, of equal ones the smallest; and the errors of each.

    Errors are insertions, deletions and substitutions of greedy and of modified beam search (beam 4) together, so that
    neither pays for the other.  Heard are at most ``MOST_SECONDS`` of the set, every so many utterances of it.

    Raises UserError: the cuts cannot be read, or hold no words.
    """
    heard: Dict[float, List[Recognition]] = {penalty: [] for penalty in GRID}
    searches = [get_search(name) for name in SEARCHES]
    for batch in read_batches(cuts, _plan(cuts)):
        with torch.no_grad():
            encoder_out, lens = model.encode(batch.features, batch.feature_lens)
        for penalty, items in heard.items():
            before = lower(model, penalty)
            for search in searches:
                found = search(model, encoder_out, lens, unk_id=tokenizer.unk_id)
                for name, text, (best, *_) in zip(batch.utterance_ids, batch.texts, found, strict=True):
                    items.append(Recognition(name, tuple(text.split()), tuple(tokenizer.decode(best.tokens).split())))
            _set(model, before)
    counted = {penalty: words_counted(items, score_events) for penalty, items in heard.items()}
    if not any(item.ref for item in counted[0.0]):
        raise UserError(cuts, "holds no words", "a development set with transcripts", "or give --blank-penalty X")
    errors = {penalty: int(errors_by_utterance(items).sum()) for penalty, items in counted.items()}
    return min(GRID, key=lambda penalty: (errors[penalty], penalty)), errors


def lower(model: Transducer, penalty: float) -> float:
    """Take ``penalty`` off the bias of blank's logit; returns the bias as it was."""
    before = model.joiner.output_linear.bias[model.blank_id].item()
    _set(model, before - penalty)
    return before


def _set(model: Transducer, bias: float) -> None:
    with torch.no_grad():
        model.joiner.output_linear.bias[model.blank_id] = bias


def _plan(cuts: Path) -> Iterable[List[int]]:
    """Batches of places, utterances of like length together."""
    infos = list(open_source(cuts).infos())
    step = max(1, math.ceil(sum(info.duration for info in infos) / MOST_SECONDS))
    batch: List[int] = []
    for place in sorted(range(0, len(infos), step), key=lambda place: infos[place].duration):
        if batch and infos[place].duration * (len(batch) + 1) > BATCH_SECONDS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch

"""What a system recognises when an engine runs its encoder."""

from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rnnt_kd.data.speech import Speech
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import count_all

BATCH = 32  # utterances that the search takes together: that changes nothing but its speed


def recognise(
    encode: Callable[[Tensor], Tensor],
    model,
    speech: Sequence[Speech],
    features: Sequence[Tensor],
    tokenizer,
    search,
    beam: int,
) -> List[Recognition]:
    """Encode one by one, search, and put the tokens together; in the order of ``speech``."""
    found = []
    order = sorted(range(len(speech)), key=lambda number: len(features[number]))
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        outputs = [encode(features[number]) for number in numbers]
        lens = torch.tensor([len(output) for output in outputs])
        hypotheses = search(
            model, pad_sequence(outputs, batch_first=True), lens, beam=beam, blank_id=tokenizer.blank_id,
            unk_id=tokenizer.unk_id,
        )  # fmt: skip
        for number, (hypothesis, *_) in zip(numbers, hypotheses):
            words = tuple(tokenizer.decode(hypothesis.tokens).split())
            found.append((number, Recognition(speech[number].id, tuple(speech[number].text.split()), words)))
    return [recognition for _, recognition in sorted(found, key=lambda pair: pair[0])]


def word_figures(recognitions: Sequence[Recognition], torchs: Sequence[Recognition]) -> Dict[str, Any]:
    """Errors, and ``other_words``: utterances whose words differ from those of the torch engine."""
    counts = count_all(recognitions)
    return {
        "wer": round(counts.wer, 4),
        "errors": counts.errors,
        "words": counts.words,
        "ins": counts.ins,
        "del": counts.dels,
        "sub": counts.subs,
        "other_words": sum(ours.hyp != theirs.hyp for ours, theirs in zip(recognitions, torchs)),
    }

"""Confidence of each recognised word: a number in [0, 1].

    confidence(word) = P(word | n-best list) * product over its tokens of P(token | a token is said here)

The first factor is the posterior probability, within the n-best list, of the hypotheses that have this word in
this place (Wessel et al., IEEE Trans. SAP 9(3), 2001, with a list for the lattice): the competition between
word sequences, deletions included, but blind for what fell off the beam.  The second is the joiner's choice among
labels in the frame and context in which the token was said, blank left out: a transducer may say a token now or a
frame later, so the probability of "now" tells little about "what".  Each makes up for the other's weakness.
"""

import math
from typing import List, Optional, Sequence

import torch
from torch import Tensor

from rnnt_kd.decoding.hypotheses import Hypothesis
from rnnt_kd.scoring.word_errors import GAP, align


@torch.no_grad()
def label_posteriors(
    model, encoder_out: Tensor, hypotheses: Sequence[Hypothesis], *, blank_id: int, unk_id: Optional[int]
) -> List[List[float]]:
    """P(token | its frame, the tokens before it, that a token is said), for every token of N hypotheses.

    Args:
      model:       a ``Transducer`` in eval mode.
      encoder_out: (N, T, D), row i is what hypothesis i was found in.
      blank_id, unk_id: what is not said; None: ``<unk>`` is a token like others.
    Returns:
      a list for each hypothesis; one joiner call for all.
    """
    start = model.predictor.start_context()
    rows = [row for row, item in enumerate(hypotheses) for _ in item.tokens]
    if not rows:
        return [[] for _ in hypotheses]
    frames = [frame for item in hypotheses for frame in item.timestamps]
    contexts = [
        ([*start, *item.tokens])[place : place + len(start)] for item in hypotheses for place in range(len(item.tokens))
    ]
    said = torch.tensor([token for item in hypotheses for token in item.tokens], device=encoder_out.device)
    am = model.joiner.encoder_proj(encoder_out[rows, frames])  # (tokens of all, J)
    lm = model.predictor(torch.tensor(contexts, device=encoder_out.device), need_pad=False)[:, 0]
    logits = model.joiner(am, model.joiner.predictor_proj(lm)).double()
    logits[:, [blank_id] if unk_id is None else [blank_id, unk_id]] = -torch.inf
    found = iter(logits.softmax(-1).gather(1, said[:, None])[:, 0].tolist())
    return [[next(found) for _ in item.tokens] for item in hypotheses]


def list_posteriors(texts: Sequence[Sequence[str]], scores: Sequence[float], count: int) -> List[List[float]]:
    """P(word in its place | n-best list), for every word of the first ``count`` hypotheses of one utterance.

    Args:
      texts:  the words of each hypothesis.
      scores: the natural log-probability of each; they need not add up to 1.
    Returns:
      a list for each of them: the share of the hypotheses that, aligned to it, have the same word there.
    """
    highest = max(scores)
    weights = [math.exp(score - highest) if score > -math.inf else 0.0 for score in scores]
    total = sum(weights) or 1.0
    found = []
    for words in texts[:count]:
        shares = [0.0] * len(words)
        for other, weight in zip(texts, weights, strict=True):
            pairs = [pair for pair in align(words, other) if pair[0] != GAP]  # one for each of our words
            for place, (ours, theirs) in enumerate(pairs):
                shares[place] += weight / total * (ours == theirs)
        found.append([min(1.0, share) for share in shares])  # rounding
    return found

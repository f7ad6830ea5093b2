"""The searches as they are often written: one utterance after the other, a loop over its frames, lists and dicts.

That is what batched searches are compared with.  The form is icefall's: the encoder's side is projected once an
utterance, greedy search asks the predictor only after a token, beam search puts its hypotheses into one call a frame.
Call shape and results are those of ``decoding``; greedy search gives no score.
"""

import math
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.hypotheses import Hypothesis

NO_SCORE = float("nan")


@torch.no_grad()
def greedy_search(
    model,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    *,
    beam: int = 1,
    blank_id: int = 0,
    unk_id: Optional[int] = 1,
    nbest: int = 1,
    scorers: Sequence = (),
) -> List[List[Hypothesis]]:
    """As ``decoding.greedy_search.search``."""
    silent = (blank_id, unk_id)
    return [[_greedy(model, x[:n], silent)] for x, n in zip(encoder_out, encoder_out_lens.tolist())]


@torch.no_grad()
def modified_beam_search(
    model,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    *,
    beam: int = 4,
    blank_id: int = 0,
    unk_id: Optional[int] = 1,
    nbest: int = 1,
    scorers: Sequence = (),
) -> List[List[Hypothesis]]:
    """As ``decoding.modified_beam_search.search``; ``nbest`` and ``scorers`` are not used."""
    silent = (blank_id, unk_id)
    return [[_beam(model, x[:n], silent, beam)] for x, n in zip(encoder_out, encoder_out_lens.tolist())]


SEARCHES = {"greedy_search": greedy_search, "modified_beam_search": modified_beam_search}


def _greedy(model, frames: Tensor, silent: Tuple) -> Hypothesis:
    start = model.predictor.start_context()
    tokens, times = list(start), []
    am = model.joiner.encoder_proj(frames)
    lm = _predict(model, [tokens])
    for time in range(len(am)):
        token = model.joiner(am[time : time + 1], lm).argmax().item()
        if token not in silent:
            tokens.append(token)
            times.append(time)
            lm = _predict(model, [tokens[-len(start) :]])
    return Hypothesis(tokens[len(start) :], times, NO_SCORE)


def _beam(model, frames: Tensor, silent: Tuple, beam: int) -> Hypothesis:
    start = tuple(model.predictor.start_context())
    hypotheses: Dict[Tuple[int, ...], Tuple[float, Tuple[int, ...]]] = {start: (0.0, ())}
    am = model.joiner.encoder_proj(frames)
    for time in range(len(am)):
        lm = _predict(model, [tokens[-len(start) :] for tokens in hypotheses])
        log_probs = model.joiner(am[time : time + 1], lm).log_softmax(-1)
        log_probs += log_probs.new_tensor([score for score, _ in hypotheses.values()])[:, None]
        before, C = list(hypotheses.items()), log_probs.size(1)
        scores, choices = log_probs.flatten().topk(min(beam, log_probs.numel()))
        hypotheses = {}
        for score, choice in zip(scores.tolist(), choices.tolist()):
            (tokens, (_, times)), token = before[choice // C], choice % C
            if token not in silent:
                tokens, times = (*tokens, token), (*times, time)
            if tokens in hypotheses:
                other, times = hypotheses[tokens]
                high, low = max(score, other), min(score, other)
                score = high + math.log1p(math.exp(low - high))
            hypotheses[tokens] = (score, times)
    tokens, (score, times) = max(hypotheses.items(), key=lambda item: item[1][0] / len(item[0]))
    return Hypothesis(list(tokens[len(start) :]), list(times), score)


def _predict(model, contexts: List[Sequence[int]]) -> Tensor:
    """(n, J) of n contexts."""
    y = torch.tensor(contexts, device=next(model.parameters()).device)
    return model.joiner.predictor_proj(model.predictor(y, need_pad=False)[:, 0])

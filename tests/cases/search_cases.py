"""Small random transducers, frames, and beam search in plain Python, for the tests of searches."""

import math

import pytest
import torch

from rnnt_kd.models.joiners.tanh import TanhJoiner
from rnnt_kd.models.predictors.stateless import StatelessPredictor

BLANK, UNK = 0, 1


class Model(torch.nn.Module):
    """Predictor and joiner of a random transducer; a search needs no more."""

    def __init__(self, seed, vocab_size=6, peak=1.0, context_size=2, blank_id=BLANK, dim=8):
        super().__init__()
        torch.manual_seed(seed)
        self.predictor = StatelessPredictor(vocab_size, dim, context_size, blank_id)
        self.joiner = TanhJoiner(dim, dim, dim, vocab_size)
        with torch.no_grad():
            self.joiner.output_linear.weight.mul_(peak)
        self.double().eval()  # so that batching cannot change a rounding that matters


def encoder_output(seed, lens, dim=8, padding=1e3):
    """Random frames; what is behind the end is absurd, and must not matter."""
    generator = torch.Generator().manual_seed(seed)
    frames = 3 * torch.randn(len(lens), max(lens, default=0), dim, dtype=torch.float64, generator=generator)
    lens = torch.tensor(lens, dtype=torch.int64)
    frames[torch.arange(frames.shape[1]) >= lens[:, None]] = padding
    return frames, lens


def log_probs(model, frame, tokens):
    """log p(. | one frame, tokens so far) as a list."""
    context = (model.predictor.start_context() + tokens)[-model.predictor.context_size :]
    with torch.no_grad():
        lm = model.joiner.predictor_proj(model.predictor(torch.tensor([context]), need_pad=False)[0, 0])
        return model.joiner(model.joiner.encoder_proj(frame), lm).log_softmax(-1).tolist()


def reference_search(model, frames, beam, blank_id=BLANK, unk_id=UNK, bonus=lambda tokens, ended: 0.0):
    """(tokens, timestamps, score, token log-probabilities) of all hypotheses of one utterance, best first.

    bonus(tokens, ended): what scorers give these tokens, in all.
    """
    hypotheses = {(): ([], 0.0, [])}  # tokens -> timestamps, log-probability, those of its tokens
    for time, frame in enumerate(frames):
        candidates = []
        for rank, (tokens, (times, score, sure)) in enumerate(hypotheses.items()):
            for token, value in enumerate(log_probs(model, frame, list(tokens))):
                said = token not in (blank_id, unk_id)
                more = bonus((*tokens, token), False) - bonus(tokens, False) if said else 0.0
                candidates.append((-(score + value + more), rank, token, tokens, times, [*sure, value]))
        hypotheses = {}
        for negative, _, token, tokens, times, sure in sorted(candidates, key=lambda c: c[:3])[:beam]:
            if token not in (blank_id, unk_id):
                tokens, times = tokens + (token,), times + [time]
            else:
                sure = sure[:-1]
            if tokens in hypotheses:
                first_times, score, first_sure = hypotheses[tokens]
                high, low = max(score, -negative), min(score, -negative)
                hypotheses[tokens] = first_times, high + math.log1p(math.exp(low - high)), first_sure
            else:
                hypotheses[tokens] = times, -negative, sure
    context = model.predictor.context_size
    ended = [
        (list(tokens), times, score + bonus(tokens, True) - bonus(tokens, False), sure)
        for tokens, (times, score, sure) in hypotheses.items()
    ]
    return sorted(ended, key=lambda item: -item[2] / (len(item[0]) + context))


def assert_equal(found, expected):
    """An n-best list and that of ``reference_search``."""
    assert [(h.tokens, h.timestamps) for h in found] == [(h[0], h[1]) for h in expected]
    for hypothesis, (*_, score, sure) in zip(found, expected, strict=True):
        assert hypothesis.score == pytest.approx(score, rel=1e-9, abs=1e-9)
        assert hypothesis.token_log_probs == pytest.approx(sure, rel=1e-9, abs=1e-9)


def assert_plain_python_finds(found, model, frames, lens, beam, nbest=None, **options):
    """The n-best lists of a batch are those of ``reference_search``, utterance by utterance."""
    for hypotheses, utterance, length in zip(found, frames, lens, strict=True):
        assert_equal(hypotheses, reference_search(model, utterance[:length], beam, **options)[:nbest])

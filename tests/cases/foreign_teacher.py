"""A teacher, batches and texts that are not ours."""

import pytest
import reference
import torch
from torch import nn

from rnnt_kd.losses import JoinerParts
from rnnt_kd.losses.packed_posteriors import unpack
from rnnt_kd.teachers.write_cache import cache_facts

BLANK, C = 3, 6
LABELS = {"a": [1, 2, 5], "b-σ": [], "c": [4, 4]}
FRAMES = {"a": 23, "b-σ": 9, "c": 15}


class Recipe(nn.Module):
    """A transducer of some other recipe: its own names, lengths in int32, three feature frames an encoder frame."""

    blank_id = BLANK

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.enc, self.dec = nn.Linear(3 * 7, 8), nn.Embedding(C, 8)
        self.out, self.am_head, self.lm_head = nn.Linear(8, C, bias=False), nn.Linear(8, C), nn.Linear(8, C)

    def encode(self, x, x_lens):
        return self.enc(x[:, : x.size(1) // 3 * 3].reshape(len(x), -1, 21)), (x_lens // 3).int()

    def predict(self, labels):
        return self.dec(nn.functional.pad(labels, (1, 0), value=BLANK))

    def joiner(self, encoder_out, predictor_out):
        return JoinerParts(encoder_out, predictor_out, self.out.weight, None, torch.relu)

    def simple(self, encoder_out, predictor_out):
        return self.am_head(encoder_out), self.lm_head(predictor_out)


def batch(*ids):
    features = torch.zeros(len(ids), max(FRAMES[name] for name in ids), 7)
    for row, name in zip(features, ids):
        row[: FRAMES[name]] = torch.randn(FRAMES[name], 7, generator=torch.Generator().manual_seed(len(name)))
    return list(ids), features, torch.tensor([FRAMES[name] for name in ids]), [LABELS[name] for name in ids]


def facts_of(teacher, **changes):
    return cache_facts(teacher, **{**dict(prune_range=3, lm_only_scale=0.2, subsampling=3, bpe="lang"), **changes})


def assert_holds_the_mean(found, teachers, ids, temperature):
    """What a cache has of ``ids`` is the mean of these teachers' posteriors on its ranges, by plain loops in float64."""
    _, features, lens, texts = batch(*ids)
    for b, (name, text) in enumerate(zip(ids, texts)):
        T, labels = FRAMES[name] // 3, torch.tensor([text + [BLANK] * (3 - len(text))])
        logits = []
        for teacher in teachers:
            encoder_out, _ = teacher.encode(features[b : b + 1, : FRAMES[name]], lens[b : b + 1])
            parts = encoder_out, teacher.predict(labels), teacher.out.weight
            parts = [x.detach().double() for x in parts]
            logits.append(reference.joiner_logits(*parts, None, found.ranges()[b : b + 1, :T], torch.relu))
        for at, stored in ((1.0, found.packed), (temperature, found.packed if temperature == 1.0 else found.tempered)):
            for t, k in ((t, k) for t in range(T) for k in range(3) if int(found.starts[b, t]) + k <= len(text)):
                s = int(found.starts[b, t]) + k
                label = text[s] if s < len(text) else None
                each = [reference.posteriors(own[0, t, k] / at, label, BLANK) for own in logits]
                for which, log_posterior in enumerate(unpack(stored[b, t, k])):
                    own = [0.0 if one[which] is None else float(one[which].exp()) for one in each]
                    assert float(log_posterior.exp()) == pytest.approx(sum(own) / len(teachers), rel=0.01, abs=1e-3)

"""A teacher, batches and texts that are not ours."""

import torch
from torch import nn

from rnnt_kd.losses import JoinerParts
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

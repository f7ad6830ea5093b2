"""Node scores in two float16 numbers, for the teacher's cache.

Not the log-probabilities themselves: near p(blank) + p(label) = 1 rounding them would leave
nothing right of the rest.  Stored are two log-odds,

    log p(blank) / (1 - p(blank))     and     log p(label) / p(rest),

which give back three posteriors that sum to 1, each with a small *relative* error: with u = 2^-11,
float16's rounding, log p is off by at most u (|first| + |second|), and by far less where p is near 1.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rnnt_kd.losses.node_scores import NodeScores

LARGEST = 65504.0  # of float16


def pack(scores: NodeScores) -> Tensor:
    """NodeScores of any shape (...) -> (..., 2) float16.  NaN stays NaN."""
    log_blank, log_label, log_rest = scores
    log_not_blank = torch.logaddexp(log_label, log_rest)
    label_odds = (log_label - log_rest).masked_fill(log_label == log_rest, 0.0)  # both -inf: any odds will do
    odds = torch.stack((log_blank - log_not_blank, label_odds), dim=-1)
    return odds.clamp(-LARGEST, LARGEST).to(torch.float16)


def unpack(packed: Tensor) -> NodeScores:
    """(..., 2) float16 -> NodeScores of shape (...), float32."""
    blank_odds, label_odds = packed.float().unbind(dim=-1)
    log_not_blank = logsigmoid(-blank_odds)
    return NodeScores(
        logsigmoid(blank_odds), log_not_blank + logsigmoid(label_odds), log_not_blank + logsigmoid(-label_odds)
    )

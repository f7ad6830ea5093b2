"""Logits on lattice nodes -> log-probabilities of blank, of the label, of all other symbols.

The one place that walks over all C classes, for the transducer loss and for the collapsed
distillation term alike.  Its backward is written out: one buffer of the logits' size,
where autograd over log_softmax and gather needs four or five.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG_ZERO = -1e30  # a log-probability of nothing that survives 0 * log(0), also in float32


def node_log_probs(logits: Tensor, labels: Tensor, termination_symbol: int) -> Tuple[Tensor, Tensor, Tensor]:
    """log p(blank), log p(label) and log p(rest), each (...,).

    Args:
      logits:  (..., C) float32 or float64, un-normalised; single ones may be -inf.
      labels:  (...,) int64; where it is ``termination_symbol``, log p(label) repeats
               log p(blank), and the rest is everything but blank.

    The rest is a log-sum-exp over its own symbols, and the normaliser the log-sum-exp of the
    three.  1 - p(blank) - p(label) would have no correct digit where the two come close to 1.
    """
    blank, label, log_rest = _Split.apply(logits, labels, termination_symbol)
    once = label.masked_fill(labels == termination_symbol, LOG_ZERO)  # count blank once
    log_total = torch.stack((blank, once, log_rest)).logsumexp(dim=0)
    return blank - log_total, label - log_total, log_rest - log_total


class _Split(torch.autograd.Function):
    """Logit of blank, logit of label, log-sum-exp of all other logits."""

    @staticmethod
    def forward(ctx, logits, labels, termination_symbol):
        labels = labels.unsqueeze(-1)
        blank = logits[..., termination_symbol].clone()
        label = logits.gather(-1, labels).squeeze(-1)
        log_rest = torch.empty_like(blank)
        for rows, columns, out in _blocks(logits, labels, log_rest.unsqueeze(-1)):
            rest = rows.scatter(1, columns, LOG_ZERO)
            rest[:, termination_symbol] = LOG_ZERO
            out[:, 0] = rest.logsumexp(dim=1)
        ctx.save_for_backward(logits, labels, log_rest)
        ctx.termination_symbol = termination_symbol
        return blank, label, log_rest

    @staticmethod
    @once_differentiable
    def backward(ctx, blank_grad, label_grad, rest_grad):
        logits, labels, log_rest = ctx.saved_tensors
        label_grad = label_grad.unsqueeze(-1)
        is_blank = labels == ctx.termination_symbol
        blank_grad = blank_grad.unsqueeze(-1) + torch.where(is_blank, label_grad, torch.zeros_like(label_grad))
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        tensors = (logits, grad, labels, log_rest.unsqueeze(-1), rest_grad.unsqueeze(-1), label_grad, blank_grad)
        for rows, out, columns, total, of_rest, of_label, of_blank in _blocks(*tensors):
            torch.sub(rows, total, out=out).exp_().mul_(of_rest)
            # blank and label are no part of the rest: whatever stands there is replaced
            out.scatter_(1, columns, of_label)
            out[:, ctx.termination_symbol] = of_blank[:, 0]
        return grad, None, None


def _blocks(*tensors: Tensor):
    """The same rows (nodes) of each (..., n), as matrices, a block at a time.

    On a CPU a block is small enough to stay in the cache (four times faster than one pass
    over everything); elsewhere there is one block.
    """
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    size = 2**17 // flat[0].shape[1] + 1 if flat[0].device.type == "cpu" else max(1, flat[0].shape[0])
    return zip(*(tensor.split(size) for tensor in flat))

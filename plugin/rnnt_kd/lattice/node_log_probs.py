"""Logits on lattice nodes -> log-probabilities of blank, of the label, of all other symbols.

The one place that walks over all C classes, for the transducer loss and for the collapsed
distillation term alike.  Its backward is written out: one buffer of the logits' size,
where autograd over log_softmax and gather needs four or five.
"""

from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

LOG_ZERO = -1e30  # a log-probability of nothing that survives 0 * log(0), also in float32


def node_log_probs(
    logits: Tensor, labels: Tensor, termination_symbol: int, use_hat_loss: bool = False
) -> Tuple[Tensor, Tensor, Tensor]:
    """log p(blank), log p(label) and log p(rest), each (...,).

    Args:
      logits:  (..., C) float32 or float64, un-normalised; single ones may be -inf.
      labels:  (...,) int64; where it is ``termination_symbol``, log p(label) is about ``LOG_ZERO``,
               and the rest is everything but blank.
      use_hat_loss:  see ``normalised``.

    The rest is a log-sum-exp over its own symbols, and the normaliser the log-sum-exp of the
    three.  1 - p(blank) - p(label) would have no correct digit where the two come close to 1.
    """
    blank, label, log_rest = _Split.apply(logits, labels, termination_symbol)
    return normalised(blank, label, log_rest, labels, termination_symbol, use_hat_loss)


def normalised(
    blank: Tensor, label: Tensor, log_rest: Tensor, labels: Tensor, termination_symbol: int, use_hat_loss: bool = False
) -> Tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the three classes from their logits, each of the shape of ``labels``.

    By a softmax over all classes, or with ``use_hat_loss`` as in HAT (Variani et al. 2020, arXiv 2003.07705):
    p(blank) = sigmoid(its logit), and 1 - p(blank) is shared out by a softmax over the other classes.
    """
    label = label.masked_fill(labels == termination_symbol, LOG_ZERO)  # count blank once
    if use_hat_loss:
        share = logsigmoid(-blank) - torch.logaddexp(label, log_rest)
        return logsigmoid(blank), label + share, log_rest + share
    log_total = torch.stack((blank, label, log_rest)).logsumexp(dim=0)
    return blank - log_total, label - log_total, log_rest - log_total


def hat_as_softmax(logits: Tensor, blank: int) -> Tensor:
    """(..., C) logits whose softmax is what HAT makes of ``logits``: blank stands against all others together."""
    is_blank = torch.arange(logits.shape[-1], device=logits.device) == blank
    others = logits.masked_fill(is_blank, LOG_ZERO).logsumexp(dim=-1, keepdim=True)
    return torch.where(is_blank, logits + others, logits)


def rest_(logits: Tensor, labels: Tensor, blank: int) -> Tuple[Tensor, Tensor]:
    """(N, 1) each: the largest logit of the rest, all classes but blank and label, and the sum of their exponentials
    relative to it, which overwrite (N, C) ``logits``.  labels: (N, 1)."""
    logits.scatter_(1, labels, LOG_ZERO)
    logits[:, blank] = LOG_ZERO
    largest = logits.amax(dim=1, keepdim=True)
    return largest, exponentials_(logits, largest).sum(dim=1, keepdim=True)


def exponentials_(logits: Tensor, largest: Tensor) -> Tensor:
    """Those that ``rest_`` leaves, of the rest; (N, C) ``logits`` are overwritten."""
    return logits.sub_(largest).exp_()


def split_gradient(
    exponentials: Tensor, labels: Tensor, blank: int, total: Tensor, grads: Sequence[Tensor], out: Tensor
):
    """Writes the gradient of (N, C) logits to ``out``, which may be the ``exponentials`` that ``rest_`` made of them.

    labels, total and the grads of blank, label and rest: (N, 1) each.  Where the label is blank, the label's
    grad is not read: blank's must hold both.
    """
    blank_grad, label_grad, rest_grad = grads
    torch.mul(exponentials, rest_grad / total, out=out)
    # blank and label are no part of the rest: whatever stands there is replaced
    out.scatter_(1, labels, label_grad)
    out[:, blank] = blank_grad[:, 0]


class _Split(torch.autograd.Function):
    """Logit of blank, logit of label, log-sum-exp of all other logits.

    Backward takes it that no gradient comes to a label that is blank: ``normalised`` masks it.
    """

    @staticmethod
    def forward(ctx, logits, labels, termination_symbol):
        labels = labels.unsqueeze(-1)
        blank = logits[..., termination_symbol].clone()
        label = logits.gather(-1, labels).squeeze(-1)
        largest, total = torch.empty_like(labels, dtype=logits.dtype), torch.empty_like(labels, dtype=logits.dtype)
        for rows, columns, *out in _blocks(logits, labels, largest, total):
            out[0][:], out[1][:] = rest_(rows.clone(), columns, termination_symbol)
        ctx.save_for_backward(logits, labels, largest, total)
        ctx.termination_symbol = termination_symbol
        return blank, label, (largest + total.log()).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, blank_grad, label_grad, rest_grad):
        logits, *per_node = ctx.saved_tensors
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        per_node += (x.unsqueeze(-1) for x in (blank_grad, label_grad, rest_grad))
        for rows, out, columns, largest, total, *grads in _blocks(logits, grad, *per_node):
            exponentials_(out.copy_(rows), largest)
            split_gradient(out, columns, ctx.termination_symbol, total, grads, out=out)
        return grad, None, None


def _blocks(*tensors: Tensor):
    """The same rows (nodes) of each (..., n), as matrices, a block at a time.

    On a CPU a block is small enough to stay in the cache (four times faster than one pass
    over everything); elsewhere there is one block.
    """
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    size = 2**17 // flat[0].shape[1] + 1 if flat[0].device.type == "cpu" else max(1, flat[0].shape[0])
    return zip(*(tensor.split(size) for tensor in flat))

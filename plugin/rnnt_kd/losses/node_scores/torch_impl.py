"""Node scores in PyTorch alone: a block of nodes at a time, any device, any activation.

On a CPU a block fits the cache; on a GPU this is the version that needs nothing compiled.
While there is ``memory``, the backward pass finds what the forward pass made of a block; it
makes the rest again, the same numbers to the last bit.

Deterministic: every sum is taken in a fixed order, on a CPU.  On CUDA ``index_add_`` adds in
any order, unless ``torch.use_deterministic_algorithms`` is on.
"""

from typing import Callable, List, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnt_kd.lattice.node_log_probs import exponentials_, rest_, split_gradient
from rnnt_kd.losses.precision import no_autocast

BLOCK_ELEMENTS = 5 * 2**19  # logits held at once: 10 MB in float32, in the last-level cache of most CPUs
GPU_BLOCK_ELEMENTS = 2**26
CPU_MEMORY = 2**29  # kept if nobody says how much
MOST_ROWS = 1000  # nodes a block; not a power of two, for the sake of transposing


def why_not(joiner) -> Optional[str]:
    """None: this runs on anything."""
    return None


def split_logits(
    am: Tensor,
    lm: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    labels: Tensor,
    am_rows: Tensor,
    lm_rows: Tensor,
    blank: int,
    activation: Callable[[Tensor], Tensor],
    memory: Optional[int] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Of ``weight @ activation(am[am_rows[n]] + lm[lm_rows[n]]) + bias``, for every node n:

    the logit of ``blank``, the logit of ``labels[n]``, and the log-sum-exp of all the others
    (about -1e30 if there are none); each (N,), float32, or float64 for float64 inputs.

    Args:
      am, lm:   (A, J) and (L, J).
      weight:   (C, J).
      bias:     (C,) or None.
      labels, am_rows, lm_rows:  (N,) int64.
      memory:   bytes, see ``JoinerParts``.

    Differentiable once, with respect to am, lm, weight and bias.
    """
    if not torch.is_grad_enabled():
        memory = 0
    elif memory is None:
        memory = CPU_MEMORY if am.device.type == "cpu" else 0
    return _SplitLogits.apply(am, lm, weight, bias, labels, am_rows, lm_rows, blank, activation, memory)


class _SplitLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, am, lm, weight, bias, labels, am_rows, lm_rows, blank, activation, memory):
        block = _Blocks(am, lm, weight, bias, am_rows, lm_rows)
        N = labels.numel()
        blank_logit, label_logit = block.weight.new_empty(N), block.weight.new_empty(N)
        largest, total = block.weight.new_empty(N, 1), block.weight.new_empty(N, 1)
        kept: List[Tensor] = []
        for rows in block.slices():
            hidden = activation(block.inputs(rows))
            logits = block.logits(hidden)
            columns = labels[rows].unsqueeze(1)
            blank_logit[rows] = logits[:, blank]
            label_logit[rows] = logits.gather(1, columns).squeeze(1)
            largest[rows], total[rows] = rest_(logits, columns, blank)
            memory -= sum(x.numel() * x.element_size() for x in (logits, hidden))
            if memory >= 0 and any(ctx.needs_input_grad):
                kept += (logits, hidden)
        ctx.save_for_backward(am, lm, weight, bias, labels, am_rows, lm_rows, largest, total, *kept)
        ctx.blank, ctx.activation = blank, activation
        return blank_logit, label_logit, (largest + total.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, blank_grad, label_grad, rest_grad):
        am, lm, weight, bias, labels, am_rows, lm_rows, largest, total, *kept = ctx.saved_tensors
        needs_am, needs_lm, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        with no_autocast(am):
            block = _Blocks(am, lm, weight, bias, am_rows, lm_rows)
            new_zeros = block.weight.new_zeros
            am_grad = new_zeros(am.shape) if needs_am else None
            lm_grad = new_zeros(lm.shape) if needs_lm else None
            weight_grad = new_zeros(weight.shape) if needs_weight else None
            bias_grad = new_zeros(weight.shape[0]) if needs_bias else None
            blank_grad = blank_grad + label_grad.masked_fill(labels != ctx.blank, 0.0)
            per_node = [largest, labels.unsqueeze(1), total]
            per_node += (x.unsqueeze(1) for x in (blank_grad, label_grad, rest_grad))
            for rows in block.slices():
                most, columns, sums, *grads = (x[rows] for x in per_node)
                if kept:
                    found, hidden, *kept = kept
                else:
                    hidden = ctx.activation(block.inputs(rows))
                    found = exponentials_(block.logits(hidden), most)
                grad = torch.empty_like(found)
                split_gradient(found, columns, ctx.blank, sums, grads, out=grad)
                if weight_grad is not None:
                    weight_grad.addmm_(grad.t(), hidden)
                if bias_grad is not None:
                    bias_grad += grad.sum(dim=0)
                if am_grad is None and lm_grad is None:
                    continue
                hidden_grad = grad @ block.weight
                if ctx.activation is torch.tanh:
                    inputs_grad = torch.ops.aten.tanh_backward(hidden_grad, hidden)
                else:
                    inputs = block.inputs(rows).requires_grad_()
                    with torch.enable_grad():
                        found = ctx.activation(inputs.clone())  # it may work in place
                    (inputs_grad,) = torch.autograd.grad(found, inputs, hidden_grad)
                if am_grad is not None:
                    am_grad.index_add_(0, am_rows[rows], inputs_grad)
                if lm_grad is not None:
                    lm_grad.index_add_(0, lm_rows[rows], inputs_grad)
        found = zip((am_grad, lm_grad, weight_grad, bias_grad), (am, lm, weight, bias))
        return (*(None if grad is None else grad.to(x.dtype) for grad, x in found), *(None,) * 6)


class _Blocks:
    """The nodes, some rows at a time; ``weight`` and ``bias`` in the dtype of the work."""

    def __init__(self, am, lm, weight, bias, am_rows, lm_rows):
        dtype = torch.float64 if torch.float64 in (am.dtype, weight.dtype) else torch.float32
        self.am, self.lm, self.am_rows, self.lm_rows = am, lm, am_rows, lm_rows
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.size = _rows_a_block(weight.shape[0], weight.device)

    def slices(self):
        N = self.am_rows.numel()
        return (slice(start, min(start + self.size, N)) for start in range(0, N, self.size))

    def inputs(self, rows: slice) -> Tensor:
        """(R, J), what goes into the activation."""
        am = self.am.detach().index_select(0, self.am_rows[rows]).to(self.weight.dtype)
        lm = self.lm.detach().index_select(0, self.lm_rows[rows]).to(self.weight.dtype)
        return am.add_(lm)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, C), fresh memory."""
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


def _rows_a_block(C: int, device: torch.device) -> int:
    if device.type == "cpu":
        return min(MOST_ROWS, max(1, BLOCK_ELEMENTS // C))
    return max(1, GPU_BLOCK_ELEMENTS // C)

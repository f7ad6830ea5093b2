"""The sum over all paths of a pruned lattice, from the posteriors on its kept nodes.

    pruned_recursion = pruned_recursion_with(recursion)

for backends whose recursion wants the whole lattice: the kept nodes are laid out in it, -inf
elsewhere, and the arcs' occupancies are read back.  Its gradient comes with its value, so
nothing of the whole lattice outlives the forward pass.

Shapes: B = batch, T = frames, s_range = kept symbol positions a frame.
"""

from typing import Callable, Tuple, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnnt_kd.lattice.arc_log_probs import arcs_of_nodes, penalise_delay


def pruned_recursion_with(recursion: Callable) -> Callable:
    """``pruned_recursion`` on this recursion over the whole lattice."""

    def pruned_recursion(
        log_blank: Tensor,
        log_label: Tensor,
        ranges: Tensor,
        boundary: Tensor,
        rnnt_type: str = "regular",
        delay_penalty: float = 0.0,
        return_grad: bool = False,
    ) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
        """Log-probability of all paths over the kept nodes.

        Args:
          log_blank, log_label:  (B, T, s_range), float32 or float64; what padded nodes hold is not read.
          ranges:         (B, T, s_range) int64, see ``get_rnnt_prune_ranges``.
          boundary:       (B, 4) int64, rows [0, 0, S_b, T_b].
          rnnt_type:      "regular", "modified" or "constrained".
          delay_penalty:  added to the symbol arcs, (middle frame - t) times this.

        Returns:
          scores (B,), differentiable; with ``return_grad`` (scores, (blank_grad, label_grad)), each
          (B, T, s_range): the gradient of ``scores.sum()``, which is how often a path reads each
          posterior.  0 on padded nodes.
        """
        T = ranges.shape[1]
        S = int(torch.maximum(ranges.max(), boundary[:, 2].max()))

        def recurse(log_blank: Tensor, log_label: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
            """Nodes -> whole lattice -> recursion -> nodes."""
            px, py = arcs_of_nodes(log_blank, log_label, ranges, S, boundary, rnnt_type)
            px = penalise_delay(px, T, boundary, delay_penalty)
            scores, (px_grad, py_grad) = recursion(px, py, boundary, return_grad=True)
            label_reads = torch.zeros_like(py_grad)  # (B, S + 1, T): no symbol arc leaves position S
            label_reads[:, :S] = px_grad[:, :, :T]
            blank_reads = py_grad
            if rnnt_type == "constrained":  # a symbol arc goes on with the next position's blank, in the same frame
                blank_reads = py_grad.clone()
                blank_reads[:, 1:] += px_grad
            on_nodes = (reads.transpose(1, 2).gather(2, ranges) for reads in (blank_reads, label_reads))
            return (scores, *on_nodes)

        scores, *grads = ScoresWithGradient.apply(log_blank, log_label, recurse)
        return (scores, tuple(grads)) if return_grad else scores

    return pruned_recursion


class ScoresWithGradient(torch.autograd.Function):
    """``recurse(x, y)`` -> scores (B,) and their gradients, shaped like x and y (B, ...), as a differentiable function.

    The gradients come with the value: they are kept, and scaled in backward.
    """

    @staticmethod
    def forward(ctx, x, y, recurse):
        scores, x_grad, y_grad = recurse(x, y)
        ctx.save_for_backward(x_grad, y_grad)
        ctx.mark_non_differentiable(x_grad, y_grad)
        return scores, x_grad, y_grad

    @staticmethod
    @once_differentiable
    def backward(ctx, scores_grad, *_):
        scale = scores_grad.reshape(-1, 1, 1)
        x_grad, y_grad = ctx.saved_tensors
        return x_grad * scale, y_grad * scale, None

"""The sum over all paths of a pruned lattice, from the posteriors on its kept nodes.

    pruned_recursion = pruned_recursion_with(mutual_information_recursion)

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


def pruned_recursion_with(mutual_information_recursion: Callable) -> Callable:
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
        recurse = _Whole(mutual_information_recursion, rnnt_type, delay_penalty)
        scores, blank_grad, label_grad = ScoresWithGradient.apply(
            log_blank, log_label, lambda blank, label: recurse(blank, label, ranges, boundary)
        )
        return (scores, (blank_grad, label_grad)) if return_grad else scores

    return pruned_recursion


class ScoresWithGradient(torch.autograd.Function):
    """``recurse(log_blank, log_label)`` -> scores (B,), blank_grad, label_grad, as a differentiable function.

    The gradient comes with the value: it is kept, and scaled in backward.
    """

    @staticmethod
    def forward(ctx, log_blank, log_label, recurse):
        scores, blank_grad, label_grad = recurse(log_blank, log_label)
        ctx.save_for_backward(blank_grad, label_grad)
        ctx.mark_non_differentiable(blank_grad, label_grad)
        return scores, blank_grad, label_grad

    @staticmethod
    @once_differentiable
    def backward(ctx, scores_grad, *_):
        scale = scores_grad.reshape(-1, 1, 1)
        blank_grad, label_grad = ctx.saved_tensors
        return blank_grad * scale, label_grad * scale, None


class _Whole:
    """Nodes -> whole lattice -> recursion -> nodes."""

    def __init__(self, recursion: Callable, rnnt_type: str, delay_penalty: float):
        self.recursion, self.rnnt_type, self.delay_penalty = recursion, rnnt_type, delay_penalty

    def __call__(
        self, log_blank: Tensor, log_label: Tensor, ranges: Tensor, boundary: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        T = ranges.shape[1]
        S = int(torch.maximum(ranges.max(), boundary[:, 2].max()))
        px, py = arcs_of_nodes(log_blank, log_label, ranges, S, boundary, self.rnnt_type)
        px = penalise_delay(px, T, boundary, self.delay_penalty)
        scores, (px_grad, py_grad) = self.recursion(px, py, boundary, return_grad=True)

        label_reads = torch.zeros_like(py_grad)  # (B, S + 1, T): no symbol arc leaves position S
        label_reads[:, :S] = px_grad[:, :, :T]
        blank_reads = py_grad
        if self.rnnt_type == "constrained":  # a symbol arc goes on with the next position's blank, in the same frame
            blank_reads = py_grad.clone()
            blank_reads[:, 1:] += px_grad

        def on_nodes(reads: Tensor) -> Tensor:
            return reads.transpose(1, 2).gather(2, ranges)

        return scores, on_nodes(blank_reads), on_nodes(label_reads)

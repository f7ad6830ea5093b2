"""The two transducer losses, given the recursion of a backend.

    rnnt_loss_smoothed, rnnt_loss_pruned = losses_with(mutual_information_recursion)

Signatures and results are those of k2 1.23.4.  Shapes: B = batch, T = frames, S = symbols,
C = classes including blank; ``boundary`` is (B, 4) int64, rows [0, 0, S_b, T_b].
"""

from typing import Callable, Optional, Tuple, Union

from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.arc_log_probs import get_rnnt_logprobs_pruned, get_rnnt_logprobs_smoothed, penalise_delay


def losses_with(mutual_information_recursion: Callable) -> Tuple[Callable, Callable]:
    """``rnnt_loss_smoothed`` and ``rnnt_loss_pruned`` on this recursion."""

    def rnnt_loss_smoothed(
        lm: Tensor,
        am: Tensor,
        symbols: Tensor,
        termination_symbol: int,
        lm_only_scale: float = 0.1,
        am_only_scale: float = 0.1,
        boundary: Optional[Tensor] = None,
        rnnt_type: str = "regular",
        delay_penalty: float = 0.0,
        reduction: str = "mean",
        return_grad: bool = False,
    ) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
        """RNN-T loss of the joiner am + lm, interpolated with am alone and lm alone.

        Args:
          lm:       (B, S + 1, C), logits of the predictor side.
          am:       (B, T, C), logits of the encoder side.
          symbols:  (B, S) int64, values in [0, C).
          lm_only_scale, am_only_scale:  shares of the log-probabilities that see only one side.
          delay_penalty:  added to the symbol arcs, (middle frame - t) times this.
          reduction:  "none" (B,), "mean" or "sum" over the batch.

        Returns:
          the loss, or with ``return_grad`` (loss, (px_grad, py_grad)): the probability that
          a path uses each arc, for ``get_rnnt_prune_ranges``.
        """
        px, py = get_rnnt_logprobs_smoothed(
            lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type
        )
        px = penalise_delay(px, py.shape[2], boundary, delay_penalty)
        if return_grad:
            scores, occupancies = mutual_information_recursion(px, py, boundary, return_grad=True)
            return _reduce(-scores, reduction), occupancies
        return _reduce(-mutual_information_recursion(px, py, boundary), reduction)

    def rnnt_loss_pruned(
        logits: Tensor,
        symbols: Tensor,
        ranges: Tensor,
        termination_symbol: int,
        boundary: Optional[Tensor] = None,
        rnnt_type: str = "regular",
        delay_penalty: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:
        """RNN-T loss over the kept nodes.

        Args:
          logits:   (B, T, s_range, C), un-normalised.
          symbols:  (B, S) int64, values in [0, C).
          ranges:   (B, T, s_range) int64, see ``get_rnnt_prune_ranges``.
          delay_penalty, reduction:  as above.
        """
        px, py = get_rnnt_logprobs_pruned(logits, symbols, ranges, termination_symbol, boundary, rnnt_type)
        px = penalise_delay(px, py.shape[2], boundary, delay_penalty)
        return _reduce(-mutual_information_recursion(px, py, boundary), reduction)

    return rnnt_loss_smoothed, rnnt_loss_pruned


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    raise UserError("reduction", repr(reduction), "none, mean or sum")

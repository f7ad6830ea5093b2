"""The loss of the simple heads, whose arc occupancies say which nodes to keep.

Signature and results are those of k2 1.23.4.  Shapes: B = batch, T = frames, S = symbols,
C = classes including blank.
"""

from types import ModuleType
from typing import Optional, Tuple, Union

from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.lattice.arc_log_probs import get_rnnt_logprobs_smoothed, penalise_delay


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
    *,
    backend: ModuleType,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """RNN-T loss of the joiner am + lm, interpolated with am alone and lm alone.

    Args:
      lm:       (B, S + 1, C), logits of the predictor side.
      am:       (B, T, C), logits of the encoder side.
      symbols:  (B, S) int64, values in [0, C).
      lm_only_scale, am_only_scale:  shares of the log-probabilities that see only one side.
      boundary:  (B, 4) int64, rows [0, 0, S_b, T_b]; None: no padding.
      delay_penalty:  added to the symbol arcs, (middle frame - t) times this.
      reduction:  "none" (B,), "mean" or "sum" over the batch.
      backend:  of ``get_backend``.

    Returns:
      the loss, or with ``return_grad`` (loss, (px_grad, py_grad)): the probability that
      a path uses each arc, for ``get_rnnt_prune_ranges``.

    Raises:
      UserError: an unknown ``rnnt_type`` or ``reduction``.
    """
    if reduction not in ("none", "mean", "sum"):
        raise UserError("reduction", repr(reduction), "none, mean or sum")
    px, py = get_rnnt_logprobs_smoothed(
        lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type
    )
    px = penalise_delay(px, py.shape[2], boundary, delay_penalty)
    scores, occupancies = backend.recursion(px, py, boundary, return_grad=True)
    loss = -scores if reduction == "none" else getattr(-scores, reduction)()
    return (loss, occupancies) if return_grad else loss

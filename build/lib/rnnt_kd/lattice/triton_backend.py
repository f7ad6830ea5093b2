"""The lattice on a GPU by Triton: a kernel forward and one back, an utterance per program.

The pruned recursion walks the band of kept nodes itself (``triton_kernels.py``); the recursion over
a whole lattice is the same band, as wide as S + 1.  Arguments and results are those of
``torch_backend``.  Against it and k2: scores to 1e-5 relative, occupancies to 1e-4 absolute, on
2000 frames (mostly far better); float64 inputs to 1e-9.  Bitwise the same from run to run.

Needs CUDA and Triton 3.2 or newer; without a GPU it runs in Triton's interpreter, slowly, if
TRITON_INTERPRET=1 was set before Python started.
"""

from functools import partial
from typing import Optional, Tuple, Union

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import torch_backend, triton_kernels
from rnnt_kd.lattice.arc_log_probs import RNNT_TYPES, penalise_delay
from rnnt_kd.lattice.pruned_recursion import ScoresWithGradient

WIDEST = 1024  # positions a frame that a program holds in registers
IS_INTERPRETED = not isinstance(triton_kernels.sum_paths, triton.runtime.JITFunction)


def supports(device: torch.device) -> bool:
    """CUDA; in Triton's interpreter the CPU as well."""
    return device.type == "cuda" or (device.type == "cpu" and IS_INTERPRETED)


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

    Args and results as in ``pruned_recursion_with``; the score is -inf where no path exists.

    Raises:
      UserError: an unknown ``rnnt_type``, or an s_range above 1024.
    """
    if rnnt_type not in RNNT_TYPES:
        raise UserError("rnnt_type", repr(rnnt_type), "one of: " + ", ".join(RNNT_TYPES))
    if ranges.shape[2] > WIDEST:
        problem = f"{ranges.shape[2]} positions a frame"
        raise UserError("ranges", problem, f"at most {WIDEST}", "use the torch backend, which takes any number")
    if delay_penalty > 0.0:
        by_frame = log_label.transpose(1, 2)  # (B, s_range, T)
        log_label = penalise_delay(by_frame, ranges.shape[1], boundary, delay_penalty).transpose(1, 2)
    walk = partial(_walk, starts=ranges[:, :, 0], boundary=boundary, rnnt_type=rnnt_type)
    scores, *grads = ScoresWithGradient.apply(log_blank, log_label, walk)
    return (scores, tuple(grads)) if return_grad else scores


def recursion(
    px: Tensor,
    py: Tensor,
    boundary: Optional[Tensor] = None,
    return_grad: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tuple[Tensor, Tensor]]]:
    """Log-probability of all paths from node (0, 0) to (S_b, T_b).

    Args, results and errors are those of ``torch_backend.recursion``, which
    also does the work where S is too large for a program.
    """
    B, S, T1 = px.shape
    T = py.shape[2]
    if S + 1 > WIDEST:
        return torch_backend.recursion(px, py, boundary, return_grad)
    if boundary is None:
        boundary = torch.tensor([[0, 0, S, T]], device=px.device).expand(B, 4).contiguous()
    else:
        torch_backend.check_boundary(boundary, S, T)

    log_label = pad(px, (0, 0, 0, 1)).transpose(1, 2)  # (B, T1, S + 1); none leaves the last position
    log_blank = py.transpose(1, 2)
    is_regular = T1 == T + 1
    if is_regular:
        # Symbols may also be emitted at T_b, after the last blank.  One more frame, with a blank that
        # costs nothing, holds those arcs.
        last = boundary[:, 3].reshape(B, 1, 1).expand(B, 1, S + 1)
        log_blank = pad(log_blank, (0, 0, 0, 1)).scatter(1, last, 0.0)
        boundary = boundary + boundary.new_tensor([0, 0, 0, 1])
    starts = torch.zeros(B, T1, dtype=torch.int64, device=px.device)
    rnnt_type = "regular" if is_regular else "modified"  # px of "constrained" holds its blank already
    walk = partial(_walk, starts=starts, boundary=boundary, rnnt_type=rnnt_type)
    scores, blank_grad, label_grad = ScoresWithGradient.apply(log_blank, log_label, walk)
    if not return_grad:
        return scores
    py_grad = blank_grad[:, :T].transpose(1, 2)
    if is_regular:
        is_frame = torch.arange(T, device=px.device) < boundary[:, 3:4] - 1  # (B, T)
        py_grad = py_grad * is_frame.unsqueeze(1)
    return scores, (label_grad[:, :, :S].transpose(1, 2), py_grad)


def _walk(
    log_blank: Tensor, log_label: Tensor, starts: Tensor, boundary: Tensor, rnnt_type: str
) -> Tuple[Tensor, Tensor, Tensor]:
    """scores (B,), blank_grad and label_grad (B, T, s_range)."""
    B, T, W = log_blank.shape
    assert log_label.shape == (B, T, W) and starts.shape == (B, T), (log_blank.shape, log_label.shape, starts.shape)
    assert boundary.shape == (B, 4) and boundary.dtype == starts.dtype == torch.int64, boundary
    scores = log_blank.new_empty(B)
    shares = log_blank.new_empty(B, T + 1, W)
    blank_grad, label_grad = log_blank.new_zeros(B, T, W), log_blank.new_zeros(B, T, W)
    if B == 0:
        return scores, blank_grad, label_grad
    starts, boundary = starts.contiguous(), boundary.contiguous()
    lanes = max(2, triton.next_power_of_2(W))
    options = dict(
        REGULAR=rnnt_type == "regular",
        CONSTRAINED=rnnt_type == "constrained",
        EXACT=log_blank.dtype == torch.float64,
        LANES=lanes,
        num_warps=1 if lanes <= 64 else 4,
    )
    with torch.cuda.device_of(log_blank):
        triton_kernels.sum_paths[(B,)](
            log_blank.contiguous(), log_label.contiguous(), starts, boundary, scores, shares, T, W, **options
        )
        triton_kernels.count_reads[(B,)](starts, boundary, scores, shares, blank_grad, label_grad, T, W, **options)
    return scores, blank_grad, label_grad

"""The sum over all paths of a transducer lattice, and how often each arc is used.

One recursion serves all three ``rnnt_type``s.  With ``alpha`` the log-probability
of all paths from the origin to a node,

    modified:  alpha[s, t] = alpha[s-1, t-1] px[s-1, t-1]  (+)  alpha[s, t-1] py[s, t-1]
    regular:   alpha[s, t] = alpha[s-1, t]   px[s-1, t]    (+)  alpha[s, t-1] py[s, t-1]

the first needs nothing but the frame before, so it is T steps over all (b, s) at
once.  The second becomes the first when d = s + t takes the place of t: both arcs
go from anti-diagonal d - 1 to anti-diagonal d.  So ``regular`` is T + S steps.

The way back needs no logarithm: among the paths into a node the fraction that came
over its symbol arc is sigmoid(score over symbol arc - score over blank arc), whatever
follows.  Starting with 1 at the end node, multiplying by these fractions gives the
probability that a path uses an arc.  That is the gradient of the total score with
respect to px and py, and it involves no difference of large numbers.

Shapes: B = batch, T = frames, S = symbols, N = steps (T + S regular, else T).
Everything is computed in float64, in one buffer that is overwritten in place.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

NEG_INF = float("-inf")


def scan_lattice(
    px: Tensor,
    py: Tensor,
    boundary: Optional[Tensor] = None,
    semiring: str = "log",
) -> Tuple[Tensor, Tensor, Tensor]:
    """Score of all paths (``log``) or of the best one (``max``), and the use of arcs.

    Differentiates nothing itself; ``torch_backend.recursion`` does.

    Args:
      px:        (B, S, T + 1) for regular, (B, S, T) for modified and constrained;
                 log-probability of the symbol arc that leaves node (s, t).
      py:        (B, S + 1, T), log-probability of the blank arc.
      boundary:  (B, 4) int64, rows [0, 0, S_b, T_b]; None means [0, 0, S, T].
      semiring:  "log" or "max".

    Returns:
      scores (B,); -inf where no path exists.
      px_grad, py_grad, shaped like px and py: the probability that a path uses the arc
      ("log"), or 1 on the best path and 0 elsewhere ("max"; of two equally good arcs
      into a node the blank one is kept).
    """
    assert semiring in ("log", "max"), semiring
    B, S, T1 = px.shape
    T = py.shape[2]
    assert T1 in (T, T + 1) and py.shape == (B, S + 1, T), (px.shape, py.shape)
    is_regular = T1 == T + 1
    if boundary is None:
        s_end = torch.full((B,), S, device=px.device)
        t_end = torch.full((B,), T, device=px.device)
    else:
        s_end, t_end = boundary[:, 2], boundary[:, 3]
    end_step = t_end + s_end if is_regular else t_end
    end_node = (end_step, torch.arange(B, device=px.device), s_end + 1)

    arcs = _arcs_by_step(px, py)  # (N, 2, B, S + 1)
    N = arcs.shape[0]

    # Column s + 1 is node s; column 0 stands for the missing node s = -1.
    nodes = torch.full((N + 1, B, S + 2), NEG_INF, dtype=arcs.dtype, device=arcs.device)
    nodes[0, :, 1] = 0.0
    # The same memory, seen as (symbol arc: node s - 1, blank arc: node s) for each s.  The two views overlap:
    # reading is safe, writing to ``sources`` as a whole is not.
    sources = nodes.as_strided((N + 1, 2, B, S + 1), (B * (S + 2), 1, S + 2, 1))
    add = torch.logaddexp if semiring == "log" else torch.maximum
    targets = nodes[:, :, 1:]
    # In place: nothing is allocated within the N steps.
    for arc, source, target in zip(arcs.unbind(0), sources.unbind(0), targets[1:].unbind(0)):
        torch.add(source, arc, out=arc)  # now the score of all paths that end with this arc
        add(arc[0], arc[1], out=target)
    scores = nodes[end_node].to(px.dtype)

    over_symbol, over_blank = arcs[:, 0], arcs[:, 1]
    # Each arc's score becomes its share of the paths into its node; shares of two sigmoids, not 1 - share, which
    # would lose the small one's digits.
    if semiring == "log":
        difference = over_symbol - over_blank
        torch.sigmoid(difference, out=over_symbol)
        torch.sigmoid(difference.neg_(), out=over_blank)
        arcs.nan_to_num_(nan=0.0)  # -inf - -inf: no path leads here
    else:
        is_symbol = over_symbol > over_blank
        over_symbol.copy_(is_symbol)
        over_blank.copy_(~is_symbol & (over_blank > NEG_INF))

    # ``nodes`` is overwritten from here on: the scores were read off above.  Symbol and blank arcs are added one
    # after the other, because their views overlap.
    occupancy = nodes.zero_()
    occupancy[end_node] = 1.0
    from_symbol, from_blank = sources[:, 0], sources[:, 1]
    for step in range(N - 1, -1, -1):
        arc = arcs[step]
        arc.mul_(targets[step + 1])
        from_symbol[step].add_(arc[0])
        from_blank[step].add_(arc[1])
    px_grad, py_grad = _arcs_by_node(arcs, px.shape, py.shape)
    return scores, px_grad.to(px.dtype), py_grad.to(py.dtype)


def _arcs_by_step(px: Tensor, py: Tensor) -> Tensor:
    """(N, 2, B, S + 1): [step, 0 or 1, b, s] is the symbol or blank arc *into* node s."""
    B, S, T1 = px.shape
    T = py.shape[2]
    dtype = torch.float32 if px.device.type == "mps" else torch.float64  # mps has no float64
    if T1 == T:
        arcs = torch.full((T, 2, B, S + 1), NEG_INF, dtype=dtype, device=px.device)
        arcs[:, 0, :, 1:] = px.permute(2, 0, 1)
        arcs[:, 1] = py.permute(2, 0, 1)
        return arcs
    # Skew: rows of width W read with stride W - 1.  Row s' holds the arcs into s', the
    # symbol arc (s' - 1, t) in column t and the blank arc (s', t) in column t + 1; step
    # d reads column d - s' + 1.  Columns < 0 fall on the row before, into its -inf tail; so W needs S
    # columns more than there are arcs, or a skewed read would meet another row's arcs.
    W = T + S + 1
    rows = torch.full((2, B, S + 1, W), NEG_INF, dtype=dtype, device=px.device)
    rows[0, :, 1:, : T + 1] = px
    rows[1, :, :, 1 : T + 1] = py
    strides = (1, B * (S + 1) * W, (S + 1) * W, W - 1)
    return rows.as_strided((T + S, 2, B, S + 1), strides, 1).contiguous()


def _arcs_by_node(arcs: Tensor, px_shape: Tuple[int, ...], py_shape: Tuple[int, ...]) -> Tuple[Tensor, Tensor]:
    """The inverse of ``_arcs_by_step``."""
    B, S, T1 = px_shape
    T = py_shape[2]
    if T1 == T:
        return arcs[:, 0, :, 1:].permute(1, 2, 0).contiguous(), arcs[:, 1].permute(1, 2, 0).contiguous()
    step = 2 * B * (S + 1)
    strides = (S + 1, step + 1, step)  # one symbol on is one step and one column on
    px = arcs.as_strided((B, S, T + 1), strides, 1)
    py = arcs.as_strided((B, S + 1, T), strides, B * (S + 1))
    return px.contiguous(), py.contiguous()

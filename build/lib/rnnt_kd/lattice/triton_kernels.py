"""Triton kernels that walk the band of kept nodes, a program for each utterance.

    sum_paths     frame after frame: the score of all paths, and each node's share_symbol
    count_reads   back again: how often a path uses each arc

``alpha[t, s]``, the log-probability of all paths from (0, 0) to a node, is kept for one frame at
a time, in registers and in float64: lane k is the node s = start[t] + k, and from one frame to the
next the lanes move by start[t + 1] - start[t].  For ``regular`` the symbol arcs within a frame are
a chain, alpha[s] = log_add(into[s], alpha[s - 1] + label[s - 1]), that an associative scan
resolves in log2(s_range) steps.

The way back needs no logarithm: ``share_symbol`` is the fraction of the paths into a node that came
over its symbol arc, and starting with 1 at the end node these fractions distribute the paths
over the arcs (see ``scan.py``).

Only log(1 + exp(x)) and the shares are in float32 (in float64 for float64 inputs): a step's error is
1e-7, not relative to scores in the thousands, and the shares of a node's two arcs sum to 1.  No
sum is shared between programs, so the results are the same bits every time.

Arrays: scores (B, T, W), W = s_range; starts (B, T) int64, the first position kept in a frame;
boundary (B, 4) int64; shares (B, T + 1, W).  All contiguous.  Positions above S_b and frames from
T_b on are not read.
"""

import triton
import triton.language as tl

if not hasattr(tl, "gather"):
    raise ImportError(f"triton {triton.__version__} is older than 3.2")

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _log_add(a, b, WORK: tl.constexpr):
    top = tl.maximum(a, b)
    finite = tl.where(top == NOTHING, 0.0, top)  # -inf - -inf would be NaN
    return top + tl.log(1.0 + tl.exp((tl.minimum(a, b) - finite).to(WORK)))


# An associative scan takes no extra argument, so the chain stands here once for each precision.
@triton.jit
def _log_chain_32(step, start, next_step, next_start):
    """Two links of x -> log_add(start, x + step) as one; the sums in float64."""
    return step + next_step, _log_add(start + next_step, next_start, tl.float32)


@triton.jit
def _log_chain_64(step, start, next_step, next_start):
    return step + next_step, _log_add(start + next_step, next_start, tl.float64)


@triton.jit
def _chain(factor, start, next_factor, next_start):
    """Two links of x -> start + factor * x as one."""
    return factor * next_factor, next_start + next_factor * start


@triton.jit
def _take(values, index, otherwise, LANES: tl.constexpr):
    """values[index], and ``otherwise`` where that is no lane."""
    is_lane = (index >= 0) & (index < LANES)
    return tl.where(is_lane, tl.gather(values, tl.where(is_lane, index, 0).to(tl.int32), 0), otherwise)


@triton.jit
def _share_symbol(over_symbol, over_blank, WORK: tl.constexpr):
    """Of the paths into a node; 0 where none leads."""
    top = tl.maximum(over_symbol, over_blank)
    top = tl.where(top == NOTHING, 0.0, top)
    symbol_weight = tl.exp((over_symbol - top).to(WORK))
    blank_weight = tl.exp((over_blank - top).to(WORK))
    return symbol_weight / tl.maximum(symbol_weight + blank_weight, 0.5)  # one of them is 1, or both are 0


@triton.jit
def sum_paths(
    log_blank, log_label, starts, boundary, scores, shares, T, W,
    REGULAR: tl.constexpr, CONSTRAINED: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Writes ``scores`` (B,) and ``shares``.  LANES: a power of two, at least W."""
    WORK: tl.constexpr = tl.float64 if EXACT else tl.float32
    utterance = tl.program_id(0).to(tl.int64)
    s_end = tl.load(boundary + utterance * 4 + 2)
    t_end = tl.minimum(tl.load(boundary + utterance * 4 + 3), T)
    log_blank += utterance * T * W
    log_label += utterance * T * W
    starts += utterance * T
    shares += utterance * (T + 1) * W
    k = tl.arange(0, LANES)

    # The end node (t_end, s_end) is lane 0 of the frame after the last.
    start = tl.load(starts, mask=t_end > 0, other=s_end)
    next_start = tl.load(starts + 1, mask=t_end > 1, other=s_end)
    label_at = k - 1 if REGULAR else k  # of a lane's own position, or of the one before
    is_label = (label_at >= 0) & (k < W)
    next_blank = tl.load(log_blank + k, mask=(k < W) & (t_end > 0), other=NOTHING)
    next_label = tl.load(log_label + label_at, mask=is_label & (t_end > 0), other=NOTHING)
    into = tl.where(start + k == 0, 0.0, NOTHING).to(tl.float64)  # scores reach the thousands: float32 is too coarse
    for t in range(0, t_end):
        s = start + k
        # Padding may hold NaN: mask by ``where``, never by a product.
        is_node = (k < W) & (s >= 0) & (s <= s_end)
        blank = tl.where(is_node, next_blank, NOTHING).to(tl.float64)
        label = tl.where(is_node, next_label, NOTHING).to(tl.float64)
        moved = k + next_start - start  # the lane here of position next_start + k
        # What the next step reads comes from memory while this one computes.
        start = next_start
        next_start = tl.load(starts + t + 2, mask=t + 2 < t_end, other=s_end)
        next_blank = tl.load(log_blank + (t + 1) * W + k, mask=(k < W) & (t + 1 < t_end), other=NOTHING)
        next_label = tl.load(log_label + (t + 1) * W + label_at, mask=is_label & (t + 1 < t_end), other=NOTHING)
        if REGULAR:
            # Symbol arcs stay in the frame: the chain over positions is one scan, and its shares belong to this frame.
            if EXACT:
                _, alpha = tl.associative_scan((label, into), 0, _log_chain_64)
            else:
                _, alpha = tl.associative_scan((label, into), 0, _log_chain_32)
            over_symbol = _take(alpha, k - 1, NOTHING, LANES) + label
            tl.store(shares + t * W + k, _share_symbol(over_symbol, into, WORK), mask=k < W)
            into = _take(alpha + blank, moved, NOTHING, LANES)
        else:
            # Symbol arcs lead to the next frame, where the shares belong.  None leaves s_end, whatever stands there.
            label = tl.where(s < s_end, label, NOTHING)
            if CONSTRAINED:  # the blank of the next position follows, in the same frame
                label += _take(blank, k + 1, NOTHING, LANES)
            over_blank = _take(into + blank, moved, NOTHING, LANES)
            over_symbol = _take(into + label, moved - 1, NOTHING, LANES)
            tl.store(shares + (t + 1) * W + k, _share_symbol(over_symbol, over_blank, WORK), mask=k < W)
            into = _log_add(over_blank, over_symbol, WORK)
    tl.store(scores + utterance, tl.max(tl.where(k == 0, into, NOTHING), 0))


@triton.jit
def count_reads(
    starts, boundary, scores, shares, blank_reads, label_reads, T, W,
    REGULAR: tl.constexpr, CONSTRAINED: tl.constexpr, EXACT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Writes ``blank_reads`` and ``label_reads`` (B, T, W) for t < T_b.  0 where no path reaches the end.

    Lanes run backwards here, lane 0 is k = LANES - 1, so that the chain within a frame, which
    leads from high positions to low ones, is a scan from the first lane on.
    """
    WORK: tl.constexpr = tl.float64 if EXACT else tl.float32
    utterance = tl.program_id(0).to(tl.int64)
    s_end = tl.load(boundary + utterance * 4 + 2)
    t_end = tl.minimum(tl.load(boundary + utterance * 4 + 3), T)
    starts += utterance * T
    shares += utterance * (T + 1) * W
    blank_reads += utterance * T * W
    label_reads += utterance * T * W
    lane = tl.arange(0, LANES)
    k = LANES - 1 - lane

    has_path = tl.where(tl.load(scores + utterance) > NOTHING, 1.0, 0.0)
    paths = tl.where(k == 0, has_path, 0.0).to(WORK)  # through the nodes of the frame after
    next_start = s_end
    if REGULAR:
        share = tl.zeros([LANES], WORK)  # no symbol arc leads into the end node
    else:
        share = tl.load(shares + t_end * W + k, mask=k < W, other=0.0)
    start = tl.load(starts + t_end - 1, mask=t_end > 0, other=0)
    share_here = tl.load(shares + (t_end - 1) * W + k, mask=(k < W) & (t_end > 0), other=0.0)
    for i in range(0, t_end):
        t = t_end - 1 - i
        # Of the frame after: its paths, split by the arc that they came over.
        over_blank = paths * (1.0 - share)
        over_symbol = paths * share
        moved = lane + next_start - start  # the lane there of this lane's position
        next_start = start
        share = share_here
        start = tl.load(starts + t - 1, mask=t > 0, other=0)
        share_here = tl.load(shares + (t - 1) * W + k, mask=(k < W) & (t > 0), other=0.0)
        read_blank = _take(over_blank, moved, 0.0, LANES)
        if REGULAR:
            share_above = _take(share, lane - 1, 0.0, LANES)
            read_blank_above = _take(over_blank, moved - 1, 0.0, LANES)
            _, read_label = tl.associative_scan((share_above, share_above * read_blank_above), 0, _chain)
            paths = read_blank + read_label
        else:
            read_label = _take(over_symbol, moved - 1, 0.0, LANES)
            paths = read_blank + read_label
            if CONSTRAINED:
                read_blank += _take(over_symbol, moved, 0.0, LANES)
        tl.store(blank_reads + t * W + k, read_blank, mask=k < W)
        tl.store(label_reads + t * W + k, read_label, mask=k < W)

"""Triton kernels of the node scores: a block of logits at a time, in registers or in one buffer.

    make_hidden      am, lm             -> hidden = tanh(am + lm) of some nodes
    split            hidden, weight     -> logit of blank, logit of the label, log-sum-exp of the rest
    fill_grads       hidden, weight     -> the gradient of some nodes' logits, and its column sums
    add_weight_grad  grads, hidden      -> weight_grad += grads.T @ hidden
    inputs_grad      grads, weight      -> (grads @ weight) * (1 - hidden ** 2)
    add_to_rows      gradient of nodes  -> added up by the row of am or of lm that they came from

``split`` keeps its logits in registers (online log-sum-exp over blocks of classes).  The backward
pass makes them again, and stores their gradient for as many nodes as stay in the cache: both
products that read it then run as plain matrix products.

N nodes at hand, C classes, J joiner dimension.  Two row lengths are rounded up to a multiple of 16
so that rows stay aligned: ``hidden`` and ``weight`` have Jp >= J columns, ``grads`` has Cp >= C, and
the columns above are zero.  Sums are in float32.  No two programs add to the same place, and
the order of every sum is fixed.
"""

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))
LOG_ZERO = tl.constexpr(-1e30)  # that of ``lattice/node_log_probs.py``


@triton.jit
def _tanh(x):
    """To float32 rounding: near 0 by a polynomial, where 1 - exp(-2 |x|) would lose digits."""
    z = tl.minimum(x * x, 1.0)
    p = 0.02063786 - 0.00570404 * z
    p = p * z - 0.05373916
    p = p * z + 0.13331432
    p = p * z - 0.33333281
    shrunk = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(tl.abs(x) < 0.625, x + x * z * p, tl.where(x < 0.0, -far, far))


@triton.jit
def _dot(x, y, total, PRECISION: tl.constexpr):
    if PRECISION == "widened":  # the interpreter takes bfloat16 for integers; float32 holds these products exactly
        total = tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(x, y, total, input_precision=PRECISION)
    return total


@triton.jit
def _product(
    x, y, rows, columns, x_rows, x_step, y_columns, y_step, has_row, has_column, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLUMNS) float32: sum over d < depth of x[row, d] * y[d, column]."""
    # Strides are given, so that one loop serves x @ y, x @ y.T and x.T @ y.
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, depth, DEPTH):
        d = first + tl.arange(0, DEPTH)
        is_there = d < depth
        x_at = x + rows[:, None] * x_rows + d[None, :] * x_step
        y_at = y + d[:, None] * y_step + columns[None, :] * y_columns
        x_block = tl.load(x_at, mask=has_row[:, None] & is_there[None, :], other=0.0)
        y_block = tl.load(y_at, mask=is_there[:, None] & has_column[None, :], other=0.0)
        total = _dot(x_block, y_block, total, PRECISION)
    return total


@triton.jit
def _logits(
    hidden, weight, bias, n, c, N, C, Jp,
    HAS_BIAS: tl.constexpr, NODES: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    logits = _product(hidden, weight, n, c, Jp, 1, Jp, 1, n < N, c < C, Jp, NODES, CLASSES, DEPTH, PRECISION)
    if HAS_BIAS:
        logits += tl.load(bias + c, mask=c < C, other=0.0)[None, :]
    return logits


@triton.jit
def make_hidden(am, lm, am_rows, lm_rows, hidden, N, J, Jp, NODES: tl.constexpr, WIDTH: tl.constexpr):
    """Writes ``hidden`` (N, Jp).  am_rows, lm_rows: (N,) int64.  Grid: blocks of nodes, of columns."""
    n = tl.program_id(0) * NODES + tl.arange(0, NODES)
    j = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    am_row = tl.load(am_rows + n, mask=n < N, other=0)
    lm_row = tl.load(lm_rows + n, mask=n < N, other=0)
    mask = (n < N)[:, None] & (j < J)[None, :]
    x = tl.load(am + am_row[:, None] * J + j[None, :], mask=mask, other=0.0).to(tl.float32)
    x += tl.load(lm + lm_row[:, None] * J + j[None, :], mask=mask, other=0.0).to(tl.float32)
    at = hidden + n[:, None] * Jp + j[None, :]
    tl.store(at, _tanh(x).to(hidden.dtype.element_ty), mask=(n < N)[:, None] & (j < Jp)[None, :])


@triton.jit
def split(
    hidden, weight, bias, labels, blank_logits, label_logits, log_rest, N, C, Jp, blank,
    HAS_BIAS: tl.constexpr, NODES: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes ``blank_logits``, ``label_logits`` and ``log_rest``, (N,) float32.  Grid: blocks of nodes."""
    n = tl.program_id(0) * NODES + tl.arange(0, NODES)
    label = tl.load(labels + n, mask=n < N, other=-1)
    blank_logit = tl.zeros([NODES], tl.float32)
    label_logit = tl.zeros([NODES], tl.float32)
    top = tl.full([NODES], NOTHING, tl.float32)
    total = tl.zeros([NODES], tl.float32)  # of exp(rest - top)
    for first in range(0, C, CLASSES):
        c = first + tl.arange(0, CLASSES)
        logits = _logits(hidden, weight, bias, n, c, N, C, Jp, HAS_BIAS, NODES, CLASSES, DEPTH, PRECISION)
        is_label = c[None, :] == label[:, None]
        is_blank = (c == blank)[None, :]
        label_logit += tl.sum(tl.where(is_label, logits, 0.0), 1)
        blank_logit += tl.sum(tl.where(is_blank, logits, 0.0), 1)
        rest = tl.where(is_label | is_blank | (c >= C)[None, :], NOTHING, logits)
        # Online log-sum-exp: when a larger logit comes, what was added so far is scaled down to it.
        new_top = tl.maximum(top, tl.max(rest, 1))
        finite = tl.where(new_top == NOTHING, 0.0, new_top)
        total = total * tl.exp(top - finite) + tl.sum(tl.exp(rest - finite[:, None]), 1)
        top = new_top
    # No class left, or all of them at -inf: LOG_ZERO, because -inf would give NaN in 0 * log(0) later on.
    finite = tl.where(total > 0.0, top, LOG_ZERO)
    rest = tl.maximum(finite + tl.log(tl.where(total > 0.0, total, 1.0)), LOG_ZERO)
    tl.store(blank_logits + n, blank_logit, mask=n < N)
    tl.store(label_logits + n, label_logit, mask=n < N)
    tl.store(log_rest + n, rest, mask=n < N)


@triton.jit
def fill_grads(
    hidden, weight, bias, labels, log_rest, blank_grad, label_grad, rest_grad, grads, column_sums,
    N, C, Jp, Cp, blank,
    HAS_BIAS: tl.constexpr, NODES: tl.constexpr, CLASSES: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes ``grads`` (N, Cp), and ``column_sums`` (blocks of nodes, Cp) float32.

    Grid: blocks of nodes times blocks of classes; the classes of a block of nodes run side by
    side and share its rows in the cache.
    """
    class_blocks = tl.cdiv(Cp, CLASSES)
    node_block = tl.program_id(0) // class_blocks
    n = node_block * NODES + tl.arange(0, NODES)
    c = tl.program_id(0) % class_blocks * CLASSES + tl.arange(0, CLASSES)
    logits = _logits(hidden, weight, bias, n, c, N, C, Jp, HAS_BIAS, NODES, CLASSES, DEPTH, PRECISION)
    is_node = n < N
    label = tl.load(labels + n, mask=is_node, other=-1)
    total = tl.load(log_rest + n, mask=is_node, other=0.0)
    d_rest = tl.load(rest_grad + n, mask=is_node, other=0.0)
    d_label = tl.load(label_grad + n, mask=is_node, other=0.0)
    d_blank = tl.load(blank_grad + n, mask=is_node, other=0.0)
    # No share is above 1; the rounding of extreme logits would make it so.
    grad = tl.exp(tl.minimum(logits - total[:, None], 0.0)) * d_rest[:, None]
    # Blank and label are no part of the rest: whatever stands there is replaced.
    grad = tl.where(c[None, :] == label[:, None], d_label[:, None], grad)
    grad = tl.where((c == blank)[None, :], d_blank[:, None], grad)
    grad = tl.where((c < C)[None, :] & is_node[:, None], grad, 0.0)
    # Sums in float32 before the gradient is rounded to bfloat16 or float16; columns up to Cp must be written as 0.
    tl.store(column_sums + node_block * Cp + c, tl.sum(grad, 0), mask=c < Cp)
    at = grads + n[:, None] * Cp + c[None, :]
    tl.store(at, grad.to(grads.dtype.element_ty), mask=is_node[:, None] & (c < Cp)[None, :])


@triton.jit
def add_weight_grad(
    grads, hidden, weight_grad, N, C, Jp, Cp, nodes_a_part,
    CLASSES: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to ``weight_grad`` (parts, C, Jp) float32.

    Grid: tiles, parts.  A part takes its own nodes, so that few classes fill a GPU as well; the
    caller adds up the parts.
    """
    column_blocks = tl.cdiv(Jp, WIDTH)
    c = tl.program_id(0) // column_blocks * CLASSES + tl.arange(0, CLASSES)
    j = tl.program_id(0) % column_blocks * WIDTH + tl.arange(0, WIDTH)
    part = tl.program_id(1)
    first = part * nodes_a_part
    some = tl.minimum(nodes_a_part, N - first)
    total = _product(
        grads + first * Cp, hidden + first * Jp, c, j, 1, Cp, 1, Jp, c < Cp, j < Jp, some,
        CLASSES, WIDTH, DEPTH, PRECISION,
    )  # fmt: skip
    at = weight_grad + (part * C + c)[:, None] * Jp + j[None, :]
    mask = (c < C)[:, None] & (j < Jp)[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0.0) + total, mask=mask)


@triton.jit
def inputs_grad(
    grads, weight, hidden, input_grad, N, C, Jp, Cp,
    NODES: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes ``input_grad`` (N, Jp), the gradient of am + lm.  Grid: blocks of nodes times blocks of columns."""
    column_blocks = tl.cdiv(Jp, WIDTH)
    n = tl.program_id(0) // column_blocks * NODES + tl.arange(0, NODES)
    j = tl.program_id(0) % column_blocks * WIDTH + tl.arange(0, WIDTH)
    total = _product(grads, weight, n, j, Cp, 1, 1, Jp, n < N, j < Jp, C, NODES, WIDTH, DEPTH, PRECISION)
    mask = (n < N)[:, None] & (j < Jp)[None, :]
    at = n[:, None] * Jp + j[None, :]
    h = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(input_grad + at, (total * (1.0 - h * h)).to(input_grad.dtype.element_ty), mask=mask)


@triton.jit
def add_to_rows(
    input_grad, rows, first_node, last_node, out, start, stop, num_rows, J, Jp,
    ROWS: tl.constexpr, NODES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds ``input_grad``, of the nodes [start, stop), to ``out`` (num_rows, J) float32.

    rows:                   (all nodes,) int64, the row that each node came from.
    first_node, last_node:  (num_rows,) int64, the nodes of a row lie between them.

    Grid: blocks of rows, of columns.  A program goes through the nodes that may be its own, and
    a product with the 0/1 matrix "node is of row" picks and adds.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_row = r < num_rows
    lowest = tl.maximum(tl.min(tl.load(first_node + r, mask=is_row, other=stop), 0), start)
    beyond = tl.minimum(tl.max(tl.load(last_node + r, mask=is_row, other=-1), 0) + 1, stop)
    # Rows of am come in order, so a block has few nodes.  Those of lm recur in every frame: up to an utterance.
    if lowest < beyond:
        total = tl.zeros([ROWS, WIDTH], tl.float32)
        for node in range(lowest, beyond, NODES):
            n = node + tl.arange(0, NODES)
            row = tl.load(rows + n, mask=n < beyond, other=-1)
            is_own = tl.where(r[:, None] == row[None, :], 1.0, 0.0).to(input_grad.dtype.element_ty)
            at = input_grad + (n - start)[:, None] * Jp + j[None, :]
            grad = tl.load(at, mask=(n < beyond)[:, None] & (j < Jp)[None, :], other=0.0)
            total = _dot(is_own, grad, total, PRECISION)
        at = out + r.to(tl.int64)[:, None] * J + j[None, :]
        mask = is_row[:, None] & (j < J)[None, :]
        tl.store(at, tl.load(at, mask=mask, other=0.0) + total, mask=mask)

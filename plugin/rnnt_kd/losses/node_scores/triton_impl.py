"""Node scores on a GPU, by Triton kernels (``triton_kernels.py``), forward and backward.

The products run on the tensor cores in the dtype of ``am`` and ``lm`` where both are bfloat16 or both
float16 (``weight`` is rounded to it, as under autocast), and in float32 otherwise: true float32,
or TF32 where ``torch.backends.cuda.matmul.allow_tf32`` permits it.  Sums are always in float32.

Memory above the inputs and their gradients, however many nodes and classes there are: at most 2^16
rows of the joiner's width, and 64 MB of logits' gradients; and, for few classes, copies of the output layer.

Deterministic: no atomic additions and no tuning at run time, so two runs on one kind of GPU agree
bit for bit.  Nodes in any order give correct sums; in (b, t, s) order they are fast.

Without a GPU it runs in Triton's interpreter, slowly, if TRITON_INTERPRET=1 was set before
Python started; "auto" leaves it alone there.
"""

from types import ModuleType
from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

FORWARD_NODES = 2**16  # nodes whose hidden rows are held at once
BACKWARD_NODES = 2**15
BLOCK_BYTES = 2**26  # of logits' gradients held at once: what the cache of a large GPU can keep
TILES = 256  # programs that fill a GPU
OLDEST_GPU = (8, 0)


class _Sizes(NamedTuple):
    """Sides of the blocks a program works on, and its warps and pipeline stages."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


HALF = _Sizes(128, 128, 64, 8, 3)
SINGLE = _Sizes(64, 64, 32, 8, 2)


def why_not(joiner) -> Optional[str]:
    """None if the kernels can run on these tensors, else the reason."""
    tensors = [x for x in (joiner.am, joiner.lm, joiner.weight, joiner.bias) if x is not None]
    if joiner.activation is not torch.tanh:
        return "the activation is not torch.tanh"
    if not all(x.dtype in (torch.float32, torch.float16, torch.bfloat16) for x in tensors):
        return "it works in float32 at most"
    try:
        _kernels()
    except (ImportError, OSError) as error:
        return f"triton cannot be imported ({error})"
    device = joiner.am.device
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST_GPU:
            return "the GPU has a compute capability below 8.0"
        return None
    if device.type == "cpu" and is_interpreted():
        return None
    return f"the tensors are on {device.type}, not on a GPU"


def is_interpreted() -> bool:
    """True if Triton was imported with TRITON_INTERPRET=1."""
    import triton

    return not isinstance(_kernels().split, triton.runtime.JITFunction)


def split_logits(
    am: Tensor,
    lm: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    labels: Tensor,
    am_rows: Tensor,
    lm_rows: Tensor,
    blank: int,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    memory: Optional[int] = None,
) -> Tuple[Tensor, Tensor, Tensor]:
    """As ``torch_impl.split_logits``, for ``activation`` torch.tanh; the results are float32.  Nothing is kept."""
    assert activation is torch.tanh, activation
    return _SplitLogits.apply(am, lm, weight, bias, labels, am_rows, lm_rows, blank)


class _SplitLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, am, lm, weight, bias, labels, am_rows, lm_rows, blank):
        with torch.cuda.device_of(am):
            work = _FusedJoiner(am, lm, weight, bias, labels, am_rows, lm_rows, blank)
            results = work.split()
        ctx.save_for_backward(am, lm, weight, bias, labels, am_rows, lm_rows, results[2])
        ctx.blank = blank
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx, blank_grad, label_grad, rest_grad):
        am, lm, weight, bias, labels, am_rows, lm_rows, log_rest = ctx.saved_tensors
        with torch.cuda.device_of(am):
            work = _FusedJoiner(am, lm, weight, bias, labels, am_rows, lm_rows, ctx.blank)
            blank_grad = blank_grad + label_grad.masked_fill(labels != ctx.blank, 0.0)
            grads, scale = _in_range([blank_grad, label_grad, rest_grad], work.dtype)
            found = work.gradients(log_rest, grads, ctx.needs_input_grad[:4])
            return (
                *(
                    None if grad is None else (grad if scale is None else grad * scale).to(x.dtype)
                    for grad, x in zip(found, (am, lm, weight, bias))
                ),
                *(None,) * 4,
            )


class _FusedJoiner:
    """The inputs as the kernels want them, and one method for each direction."""

    def __init__(self, am, lm, weight, bias, labels, am_rows, lm_rows, blank):
        self.kernels = _kernels()
        is_half = am.dtype == lm.dtype and am.dtype in (torch.float16, torch.bfloat16)
        self.dtype = am.dtype if is_half else torch.float32
        self.sizes = HALF if is_half else SINGLE
        self.precision = _precision(is_half)
        self.am, self.lm = am.detach().contiguous(), lm.detach().contiguous()
        self.labels, self.am_rows, self.lm_rows = labels.contiguous(), am_rows.contiguous(), lm_rows.contiguous()
        self.N, (self.C, self.J) = labels.numel(), weight.shape
        self.Jp, self.Cp = _round_up(self.J, 16), _round_up(self.C, 16)
        self.weight = pad(weight.detach().to(self.dtype), (0, self.Jp - self.J)).contiguous()
        self.has_bias = bias is not None
        self.bias = bias.detach().float().contiguous() if self.has_bias else self.weight
        self.blank = blank

    def split(self) -> Tuple[Tensor, Tensor, Tensor]:
        """Logit of blank, logit of the label, log-sum-exp of the rest, each (N,)."""
        results = tuple(self.am.new_empty(self.N, dtype=torch.float32) for _ in range(3))
        hidden = self._buffer(FORWARD_NODES, self.Jp)
        for nodes in self._blocks(FORWARD_NODES):
            R = self._make_hidden(nodes, hidden)
            self.kernels.split[(_cdiv(R, self.sizes.rows),)](
                hidden, self.weight, self.bias, self.labels[nodes], *(result[nodes] for result in results),
                R, self.C, self.Jp, self.blank, self.has_bias, *self.sizes[:3], self.precision, **self._launch,
            )  # fmt: skip
        return results

    def gradients(self, log_rest: Tensor, grads: List[Tensor], needs: Tuple[bool, ...]) -> List[Optional[Tensor]]:
        """Those of am, lm, weight and bias, float32; None where not needed.

        grads: of blank, label and log_rest, each (N,) float32.
        """
        needs_am, needs_lm, needs_weight, needs_bias = needs
        rows, columns, depth = self.sizes[:3]
        size = max(rows, min(BACKWARD_NODES, BLOCK_BYTES // (self.Cp * self.weight.element_size()) // rows * rows))
        am_grad, lm_grad = (
            torch.zeros_like(x, dtype=torch.float32) if needed else None
            for x, needed in ((self.am, needs_am), (self.lm, needs_lm))
        )
        am_nodes = _first_and_last(self.am_rows, self.am.shape[0]) if needs_am else None
        lm_nodes = _first_and_last(self.lm_rows, self.lm.shape[0]) if needs_lm else None
        tiles = _cdiv(self.C, rows) * _cdiv(self.Jp, columns)
        parts = max(1, min(TILES // tiles, _cdiv(min(size, self.N), 8 * depth)))
        weight_grad = self.am.new_zeros(parts, self.C, self.Jp, dtype=torch.float32) if needs_weight else None
        bias_grad = self.am.new_zeros(self.Cp, dtype=torch.float32) if needs_bias else None

        hidden, input_grad = self._buffer(size, self.Jp), self._buffer(size, self.Jp)
        logit_grad = self._buffer(size, self.Cp)
        column_sums = self.am.new_empty(_cdiv(size, rows), self.Cp, dtype=torch.float32)
        for nodes in self._blocks(size):
            R = self._make_hidden(nodes, hidden)
            node_blocks = _cdiv(R, rows)
            self.kernels.fill_grads[(node_blocks * _cdiv(self.Cp, columns),)](
                hidden, self.weight, self.bias, self.labels[nodes], log_rest[nodes], *(grad[nodes] for grad in grads),
                logit_grad, column_sums, R, self.C, self.Jp, self.Cp, self.blank,
                self.has_bias, rows, columns, depth, self.precision, **self._launch,
            )  # fmt: skip
            if bias_grad is not None:
                bias_grad += column_sums[:node_blocks].sum(dim=0)
            if weight_grad is not None:
                nodes_a_part = _round_up(_cdiv(R, parts), depth)
                self.kernels.add_weight_grad[(tiles, _cdiv(R, nodes_a_part))](
                    logit_grad, hidden, weight_grad, R, self.C, self.Jp, self.Cp, nodes_a_part,
                    rows, columns, depth, self.precision, **self._launch,
                )  # fmt: skip
            if am_grad is None and lm_grad is None:
                continue
            self.kernels.inputs_grad[(node_blocks * _cdiv(self.Jp, columns),)](
                logit_grad, self.weight, hidden, input_grad, R, self.C, self.Jp, self.Cp,
                rows, columns, depth, self.precision, **self._launch,
            )  # fmt: skip
            for out, row_index, between in ((am_grad, self.am_rows, am_nodes), (lm_grad, self.lm_rows, lm_nodes)):
                if out is not None and between is not None:
                    self._add_to_rows(input_grad, row_index, between, out, nodes)
        return [
            am_grad,
            lm_grad,
            None if weight_grad is None else weight_grad.sum(dim=0)[:, : self.J],
            None if bias_grad is None else bias_grad[: self.C],
        ]

    def _make_hidden(self, nodes: slice, hidden: Tensor) -> int:
        """Fills ``hidden``; returns the number of nodes."""
        R = nodes.stop - nodes.start
        self.kernels.make_hidden[(_cdiv(R, 16), _cdiv(self.Jp, 128))](
            self.am, self.lm, self.am_rows[nodes], self.lm_rows[nodes], hidden, R, self.J, self.Jp, 16, 128, num_warps=4
        )
        return R

    def _add_to_rows(self, input_grad: Tensor, rows: Tensor, between: Tuple[Tensor, Tensor], out: Tensor, nodes: slice):
        self.kernels.add_to_rows[(_cdiv(out.shape[0], 16), _cdiv(self.J, 128))](
            input_grad, rows, *between, out, nodes.start, nodes.stop, out.shape[0], self.J, self.Jp,
            16, 32, 128, self.precision, num_warps=4,
        )  # fmt: skip

    def _buffer(self, most: int, width: int) -> Tensor:
        return self.weight.new_empty(min(most, self.N), width)

    def _blocks(self, size: int):
        return (slice(start, min(start + size, self.N)) for start in range(0, self.N, size))

    @property
    def _launch(self):
        return dict(num_warps=self.sizes.num_warps, num_stages=self.sizes.num_stages)


def _kernels() -> ModuleType:
    """Imported late: Triton may be absent."""
    from rnnt_kd.losses.node_scores import triton_kernels

    return triton_kernels


def _precision(is_half: bool) -> str:
    """What the products of the kernels do with their operands; sums are in float32 anyway."""
    if is_interpreted():
        return "widened"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 and not is_half else "ieee"


def _in_range(grads: List[Tensor], dtype: torch.dtype) -> Tuple[List[Tensor], Optional[Tensor]]:
    """(gradients / scale, scale): for float16, whose range ends at 65504, the largest becomes about 1."""
    grads = [grad.contiguous() for grad in grads]
    if dtype != torch.float16 or grads[0].numel() == 0:
        return grads, None
    largest = torch.stack([grad.abs().max() for grad in grads]).max()
    scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)  # a power of two: exact
    return [grad / scale for grad in grads], scale


def _first_and_last(rows: Tensor, num_rows: int) -> Tuple[Tensor, Tensor]:
    """(num_rows,) each: the first and the last node of each row."""
    node = torch.arange(rows.numel(), device=rows.device)
    first = torch.full((num_rows,), rows.numel(), device=rows.device).scatter_reduce_(0, rows, node, "amin")
    last = torch.full((num_rows,), -1, device=rows.device).scatter_reduce_(0, rows, node, "amax")
    return first, last


def _cdiv(x: int, y: int) -> int:
    return -(-x // y)


def _round_up(x: int, to: int) -> int:
    return _cdiv(x, to) * to

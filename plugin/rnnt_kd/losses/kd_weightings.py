"""How much each node of the lattice counts in the distillation term.

A weighting is one public function of this module; its name, with "-" for "_", is the
value of ``--kd-weighting``:

    weighting(nodes, logits, teacher_logits, backend) -> (B, T, s_range), >= 0

    nodes                   losses.kept_nodes.KeptNodes
    logits, teacher_logits  (B, T, s_range, C), without gradient
    backend                 module, see ``rnnt_kd.lattice``

Only the proportions within an utterance matter, and padding does not: ``pruned_rnnt``
puts it to zero and makes the rest sum to T_b + S_b, the number of arcs on a path.
"""

from types import ModuleType
from typing import Tuple

import torch
from torch import Tensor

from rnnt_kd.lattice.scan import scan_lattice
from rnnt_kd.losses.kept_nodes import KeptNodes


def uniform(nodes: KeptNodes, logits: Tensor, teacher_logits: Tensor, backend: ModuleType) -> Tensor:
    """All alike: arXiv 2011.06110."""
    return torch.ones_like(logits[..., 0])


def occupancy(nodes: KeptNodes, logits: Tensor, teacher_logits: Tensor, backend: ModuleType) -> Tensor:
    """Probability, by the teacher, that a path passes the node."""
    return _path_occupancy(nodes, teacher_logits, backend)


def student_occupancy(nodes: KeptNodes, logits: Tensor, teacher_logits: Tensor, backend: ModuleType) -> Tensor:
    """Probability, by the student, that a path passes the node."""
    return _path_occupancy(nodes, logits, backend)


def one_best(nodes: KeptNodes, logits: Tensor, teacher_logits: Tensor, backend: ModuleType) -> Tensor:
    """One on the teacher's best path, zero elsewhere."""
    px, py = _log_probs(nodes, teacher_logits, backend)
    _, px_grad, py_grad = scan_lattice(px, py, nodes.boundary, semiring="max")
    return _arcs_to_nodes(px_grad, py_grad, nodes)


def _path_occupancy(nodes: KeptNodes, logits: Tensor, backend: ModuleType) -> Tensor:
    px, py = _log_probs(nodes, logits, backend)
    _, (px_grad, py_grad) = backend.mutual_information_recursion(px, py, nodes.boundary, return_grad=True)
    return _arcs_to_nodes(px_grad, py_grad, nodes)


def _log_probs(nodes: KeptNodes, logits: Tensor, backend: ModuleType) -> Tuple[Tensor, Tensor]:
    return backend.get_rnnt_logprobs_pruned(
        logits, nodes.symbols, nodes.ranges, nodes.termination_symbol, nodes.boundary, nodes.rnnt_type
    )


def _arcs_to_nodes(px_grad: Tensor, py_grad: Tensor, nodes: KeptNodes) -> Tensor:
    """How often a path reads the node's distribution: the use of the arcs that leave it.

    A symbol arc of rnnt_type "constrained" goes on with the blank of the next symbol
    position, in the same frame: it reads that node, too.
    """
    B, S, _ = px_grad.shape
    T = py_grad.shape[2]
    reads = py_grad.clone()  # (B, S + 1, T)
    reads[:, :S] += px_grad[:, :, :T]
    if nodes.rnnt_type == "constrained":
        reads[:, 1:] += px_grad
    return reads.transpose(1, 2).gather(2, nodes.ranges)

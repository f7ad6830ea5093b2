"""How much each node of the lattice counts in the distillation term.

A weighting is one public function of this module; its name, with "-" for "_", is the
value of ``--kd-weighting``:

    weighting(nodes, scores, teacher_scores, backend) -> (B, T, s_range), >= 0

    nodes                   losses.kept_nodes.KeptNodes
    scores, teacher_scores  losses.node_scores.NodeScores at temperature 1, without gradient
    backend                 module, see ``rnnt_kd.lattice``

Only the proportions within an utterance matter, and padding does not: ``terms.py``
puts it to zero and makes the rest sum to T_b + S_b, the number of arcs on a path.
"""

from types import ModuleType

import torch
from torch import Tensor

from rnnt_kd.lattice.node_log_probs import LOG_ZERO
from rnnt_kd.lattice.pruned_recursion import pruned_recursion_with
from rnnt_kd.lattice.scan import scan_lattice
from rnnt_kd.losses.kept_nodes import KeptNodes
from rnnt_kd.losses.node_scores import NodeScores


def uniform(nodes: KeptNodes, scores: NodeScores, teacher_scores: NodeScores, backend: ModuleType) -> Tensor:
    """All alike: arXiv 2011.06110."""
    return torch.ones_like(scores.log_blank)


def occupancy(nodes: KeptNodes, scores: NodeScores, teacher_scores: NodeScores, backend: ModuleType) -> Tensor:
    """Probability, by the teacher, that a path passes the node."""
    return _reads(nodes, teacher_scores, backend.pruned_recursion)


def student_occupancy(nodes: KeptNodes, scores: NodeScores, teacher_scores: NodeScores, backend: ModuleType) -> Tensor:
    """Probability, by the student, that a path passes the node."""
    return _reads(nodes, scores, backend.pruned_recursion)


def one_best(nodes: KeptNodes, scores: NodeScores, teacher_scores: NodeScores, backend: ModuleType) -> Tensor:
    """One on the teacher's best path, zero elsewhere."""
    return _reads(nodes, teacher_scores, pruned_recursion_with(_best_path))


def mixed(nodes: KeptNodes, scores: NodeScores, teacher_scores: NodeScores, backend: ModuleType) -> Tensor:
    """Half as ``uniform``, half as ``student_occupancy``: on its paths for timing, off them for the search."""
    on_paths = student_occupancy(nodes, scores, teacher_scores, backend) * nodes.node_mask
    return on_paths + on_paths.sum(dim=(1, 2), keepdim=True) / nodes.node_mask.sum(dim=(1, 2)).reshape(-1, 1, 1)


def _best_path(px, py, boundary, return_grad):
    score, px_grad, py_grad = scan_lattice(px, py, boundary, semiring="max")
    return score, (px_grad, py_grad)


def _reads(nodes: KeptNodes, scores: NodeScores, pruned_recursion) -> Tensor:
    """How often a path reads the node's distribution: once for each arc that leaves it; 0 where no path is possible."""
    score, (blank_reads, label_reads) = pruned_recursion(
        scores.log_blank, scores.log_label, nodes.ranges, nodes.boundary, nodes.rnnt_type, return_grad=True
    )
    return (blank_reads + label_reads).masked_fill(~(score > LOG_ZERO / 2).reshape(-1, 1, 1), 0.0)

"""Several teachers as one, whose posteriors are the mean of theirs: it fills a cache, which costs no more than another.

    write_cache(Ensemble([teacher, another]), batches, "kd_cache", cache_facts(...))

The lattice is pruned where the first of them would.  The mean is that of probabilities, not of their logarithms: what
one teacher thinks impossible keeps what the others give it.
"""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.errors import UserError
from rnnt_kd.losses import JoinerParts
from rnnt_kd.losses.kept_nodes import KeptNodes
from rnnt_kd.losses.node_scores import NodeScores
from rnnt_kd.teachers.interface import Teacher


@dataclass(frozen=True)
class MeanScores:
    """Where a joiner's scores on the nodes are asked for: the mean of several."""

    joiners: Sequence[JoinerParts]

    def scores(self, nodes: KeptNodes, temperature: float = 1.0) -> NodeScores:
        """Logarithms of mean probabilities; of each joiner at ``temperature``."""
        each = torch.stack([torch.stack(joiner.scores(nodes, temperature)) for joiner in self.joiners])
        mean = (each.logsumexp(dim=0) - math.log(len(self.joiners))).masked_fill(~nodes.node_mask, 0.0)
        return NodeScores(*mean)


class Ensemble:
    """A ``Teacher`` for ``write_cache``; it does not run online.

    Args: ``teachers``: in eval mode, with the same labels, blank and frames; the first has simple heads.
    Raises: UserError: none at all; other blanks; and while it runs: other numbers of frames or classes.
    """

    def __init__(self, teachers: Sequence[Teacher]):
        self.teachers, self._widths = list(teachers), ([0], [0])  # of what encode and predict put side by side
        if not self.teachers:
            raise UserError("ensemble", "no teacher", "at least one")
        blanks = [teacher.blank_id for teacher in self.teachers]
        if len(set(blanks)) > 1:
            raise UserError("ensemble", f"blank ids {', '.join(map(str, blanks))}", "teachers with the same labels")

    @property
    def blank_id(self) -> int:
        return self.teachers[0].blank_id

    @property
    def training(self) -> bool:
        return any(getattr(teacher, "training", False) for teacher in self.teachers)

    def state_dict(self) -> Dict[str, Tensor]:
        """Of all, for a digest of them.  UserError: one has none."""
        for teacher in self.teachers:
            if not hasattr(teacher, "state_dict"):
                raise UserError("ensemble", f"{type(teacher).__name__} has no state_dict()", "modules")
        states = [teacher.state_dict() for teacher in self.teachers]  # type: ignore[attr-defined]
        return {f"{number}.{name}": value for number, state in enumerate(states) for name, value in state.items()}

    def encode(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Encoder outputs of all, side by side in the last dimension."""
        outputs, lens = zip(*(teacher.encode(x, x_lens) for teacher in self.teachers))
        for other in lens:
            if not torch.equal(other, lens[0]):
                problem = f"{lens[0].tolist()} and {other.tolist()} encoder frames"
                raise UserError("ensemble", problem, "teachers with the same subsampling")
        most = int(lens[0].max())  # they may pad otherwise
        return self._side_by_side(0, [output[:, :most] for output in outputs]), lens[0]

    def predict(self, labels: Tensor) -> Tensor:
        return self._side_by_side(1, [teacher.predict(labels) for teacher in self.teachers])

    def joiner(self, encoder_out: Tensor, predictor_out: Tensor) -> Any:
        """``MeanScores``: of ``JoinerParts`` it has what a cache asks for."""
        parts = [teacher.joiner(*own) for teacher, own in zip(self.teachers, self._apart(encoder_out, predictor_out))]
        classes = [part.weight.shape[0] for part in parts]
        if len(set(classes)) > 1:
            raise UserError("ensemble", f"{', '.join(map(str, classes))} classes", "teachers with the same labels")
        return MeanScores(parts)

    def simple(self, encoder_out: Tensor, predictor_out: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        return self.teachers[0].simple(*self._apart(encoder_out, predictor_out)[0])

    def _side_by_side(self, which: int, outputs: Sequence[Tensor]) -> Tensor:
        self._widths[which][:] = [output.shape[-1] for output in outputs]
        return torch.cat(list(outputs), dim=-1)

    def _apart(self, *both: Tensor) -> List[Tuple[Tensor, ...]]:
        return list(zip(*(x.split(widths, dim=-1) for x, widths in zip(both, self._widths))))

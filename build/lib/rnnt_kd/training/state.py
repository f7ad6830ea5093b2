"""Where a run is: everything but tensors that a resumed run needs, and the seeds.

Every random draw of training is a pure function of ``(seed, step)`` or ``(seed, epoch)``,
so no generator state is saved: a run that was killed draws what an uninterrupted one does.
"""

import dataclasses
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List

from rnnt_kd.errors import UserError

FORMAT = 1  # of the dictionary below


@dataclass
class EpochResult:
    """One validated epoch end."""

    checkpoint: str  # folder name below checkpoints/
    epoch: int  # from 1
    step: int
    dev_loss: float  # transducer loss per encoder frame
    can_average: bool  # False while the weight masks still move


@dataclass
class TrainState:
    """Position and running sums after ``step`` batches."""

    step: int = 0  # batches taken so far, skipped ones too
    epoch: int = 0  # of the next batch, from 0
    batch_in_epoch: int = 0  # of the next batch, from 0
    train_seconds: float = 0.0  # over all resumes
    nonfinite_in_a_row: int = 0
    nonfinite_batches: int = 0
    metrics_bytes: int = 0  # size of metrics.jsonl; a resumed run cuts the file here
    processes: int = 1  # of this training
    first_step: int = 0  # where the schedules begin; not 0 once the number of processes has changed
    window: List[float] = field(default_factory=list)  # sums since the last logged line
    results: List[EpochResult] = field(default_factory=list)

    def position(self, step: int) -> int:
        """Of a step in the schedules: an epoch of other processes had another number of steps."""
        return step - self.first_step

    def to_dict(self) -> Dict[str, Any]:
        """For JSON; floats survive exactly."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(values: Dict[str, Any], where: object) -> "TrainState":
        """Inverse of ``to_dict``.  Raises UserError (naming ``where``) for anything else."""
        try:
            values = dict(values)
            if values.pop("format") != FORMAT:
                raise ValueError
            values["results"] = [EpochResult(**result) for result in values["results"]]
            if not all(re.fullmatch(r"step-[0-9]+(-epoch-[0-9]+)?", result.checkpoint) for result in values["results"]):
                raise ValueError("not a folder's name")
            return TrainState(**values)
        except (KeyError, TypeError, ValueError):
            problem, next_step = "not a training state of this version", "delete this checkpoint's folder"
            raise UserError(where, problem, "a file that rnnt_kd wrote", next_step) from None


def draw_seed(seed: int, purpose: str, number: int, rank: int = 0) -> int:
    """A 63-bit seed for one draw of one process, for example ``draw_seed(1, "dropout", step)``."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}{f'/{rank}' if rank else ''}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

"""What a distillation term is made of, in one object."""

from dataclasses import dataclass
from typing import Optional, Sequence

from rnnt_kd.errors import UserError
from rnnt_kd.losses.choices import get_variant, get_weighting


@dataclass(frozen=True)
class Distillation:
    """Options of the distillation term; one that exists is valid.

    variant:       a function of ``losses/kd_variants.py``.
    weighting:     a function of ``losses/kd_weightings.py``.
    temperature:   > 0; divides the logits of both in the comparison (not in the weights).
    class_scales:  factors >= 0 of the classes blank, label and rest, or None.
    shift:         frames that the teacher's lattice is moved later, see ``losses/kd_shift.py``.  The terms of the
                   loss do not read it: who makes the teacher's view of a batch does (``rnnt_kd.teachers.views``).

    Raises:
      UserError: an unknown name, or a value out of its range.
    """

    variant: str = "collapsed"
    weighting: str = "uniform"
    temperature: float = 1.0
    class_scales: Optional[Sequence[float]] = None
    shift: int = 0

    def __post_init__(self):
        get_variant(self.variant), get_weighting(self.weighting)
        scales = self.class_scales
        if isinstance(self.temperature, str) or not 0.0 < self.temperature < float("inf"):
            raise UserError("kd temperature", str(self.temperature), "a number above 0")
        if scales is not None and (
            isinstance(scales, (str, float, int))
            or len(scales) != 3
            or not all(isinstance(x, (float, int)) and 0.0 <= x < float("inf") for x in scales)
        ):
            raise UserError("kd class scales", str(scales), "three numbers >= 0, for blank, label and rest")
        if not isinstance(self.shift, int) or self.shift < 0:
            raise UserError("kd shift", str(self.shift), "a number of frames, 0 or more")

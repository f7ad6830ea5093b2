"""What a teacher says of a batch: one that runs in the step, and one that left it in a cache.

Both give a ``losses.terms.TeacherView``.  Where recipes subsample differently, the teacher has a frame or two more or
fewer than the student (1000 feature frames become 247, 248, 249 or 250).  ``align`` says what then:

    strict     an error that names both
    crop-pad   frame t is compared with frame t: the teacher's surplus frames are dropped, and frames that it lacks are
               ones of which it knows nothing, without a term; more than two frames are an error still

B batch, T encoder frames of the student, T' of the teacher, S symbols.
"""

from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.losses import Posteriors, TeacherView
from rnnt_kd.losses.kd_shift import align_nodes, later, shift_nodes
from rnnt_kd.losses.packed_posteriors import unpack
from rnnt_kd.teachers.interface import OurTransducer, Teacher

MOST_FRAMES = 2  # that align="crop-pad" crops or pads


@dataclass(frozen=True)
class OnlineTeacher:
    """Runs ``teacher``, without gradient, on what it is to hear; its lattice is moved ``shift`` frames later."""

    teacher: Teacher
    shift: int = 0
    align: str = "strict"

    @property
    def model(self) -> nn.Module:
        """Whose layers a student may imitate; one without any where the teacher is not ours."""
        return self.teacher.model if isinstance(self.teacher, OurTransducer) else nn.Identity()

    @torch.no_grad()
    def view(self, features: Tensor, feature_lens: Tensor, labels: Tensor, num_frames: Tensor, T: int) -> TeacherView:
        """On the student's nodes.

        Args:
          features, feature_lens, labels:  (B, frames, F), (B,), (B, S) int64 padded with blank.
          num_frames, T:                   (B,) integers, the student's encoder frames, and to how many it pads.
        Raises:
          UserError: other numbers of frames than ``align`` can do with.
        """
        encoder_out, frames = self.teacher.encode(features, feature_lens)
        parts = self.teacher.joiner(encoder_out, self.teacher.predict(labels))
        is_known, missing = None, T - parts.am.shape[1]
        if missing:
            parts = parts._replace(am=torch.nn.functional.pad(parts.am, (0, 0, 0, missing)))  # below 0 it crops
        if check_frames("teacher", frames, num_frames, self.align):
            is_known = torch.arange(T, device=frames.device).reshape(1, T, 1) < frames.reshape(-1, 1, 1)
        if self.shift == 0:
            return TeacherView(parts, is_known)
        return TeacherView(
            parts._replace(am=later(parts.am, self.shift)), None if is_known is None else later(is_known, self.shift)
        )


class CachedTeacher(NamedTuple):
    """What a teacher left for one batch in its cache.

    starts:    (B, T') int64, first kept symbol position of each frame; padding: any.
    packed:    (B, T', s_range, 2) float16, posteriors on the kept nodes, see ``losses/packed_posteriors.py``.
    tempered:  the same at the temperature of the distillation; None where that is 1.
    is_known:  (B, T', s_range) bool, False where ``packed`` says nothing of a node; None: it says all.
    frames:    (B,) int64, T'_b; None: those of the student.
    """

    starts: Tensor
    packed: Tensor
    tempered: Optional[Tensor] = None
    is_known: Optional[Tensor] = None
    frames: Optional[Tensor] = None

    def ranges(self) -> Tensor:
        """(B, T', s_range) int64."""
        return self.starts.unsqueeze(2) + torch.arange(self.packed.shape[2], device=self.starts.device)

    def view(
        self, num_frames: Tensor, T: int, *, shift: int = 0, align: str = "strict", rnnt_type: str = "regular"
    ) -> TeacherView:
        """On its own nodes, fitted to the student's frames, then ``shift`` frames later.  Arguments as above."""
        found = self
        if self.frames is not None and check_frames("teacher's cache", self.frames, num_frames, align):
            step = max(self.packed.shape[2] - 1, 1) if rnnt_type == "regular" else 1
            found = found._on(*align_nodes(self.starts, self._values(), self.frames, num_frames, T, step))
        if shift != 0:
            found = found._on(*shift_nodes(found.starts, found._values(), num_frames, shift))
        tempered = None if found.tempered is None else unpack(found.tempered)
        return TeacherView(Posteriors(unpack(found.packed), tempered), found.is_known, found.ranges())

    def to(self, device: torch.device) -> "CachedTeacher":
        """The same on ``device``."""
        return CachedTeacher(*(x if x is None else x.to(device) for x in self))  # type: ignore[arg-type]

    def _values(self):
        return self.packed, self.tempered, self.is_known

    def _on(self, starts, is_there, values) -> "CachedTeacher":
        packed, tempered, is_known = values
        return CachedTeacher(starts, packed, tempered, is_there if is_known is None else is_there & is_known)


def kept_ranges(teacher: Optional[TeacherView], own: Callable[[], Tensor]) -> Tensor:
    """(B, T, s_range): the teacher's where it has any; in utterances of which it knows nothing, the student's own."""
    if teacher is None or teacher.ranges is None:
        return own()
    if teacher.is_known is None:
        return teacher.ranges
    is_taught = teacher.is_known.flatten(1).any(dim=1).reshape(-1, 1, 1)
    return torch.where(is_taught, teacher.ranges, own())


def most_frames(align: str) -> int:
    """By how many encoder frames teacher and student may differ."""
    return MOST_FRAMES if align == "crop-pad" else 0


def check_frames(where: str, theirs: Tensor, ours: Tensor, align: str) -> bool:
    """Are the numbers of encoder frames of an utterance, (B,) each, to be aligned?

    Raises:
      UserError: they differ, and by more than ``align`` can do with; both are named.
    """
    difference = (theirs - ours).abs()
    if not bool(difference.any()):
        return False
    if int(difference.max()) > most_frames(align):
        b = int(difference.argmax())
        problem = f"{int(theirs[b])} encoder frames where the student makes {int(ours[b])} (utterance {b} of the batch)"
        expected = f"equal numbers, or with kd.align crop-pad at most {MOST_FRAMES} more or fewer"
        raise UserError(where, problem, expected, "give both the same features and the same subsampling")
    return True

"""The pip package ``zipformer``, whose transducer trains here without k2, and distilled.

    python -m rnnt_kd.zipformer train --kd-teacher exp-large --kd-teacher-epoch 30 ...      # __main__.py

or by hand, in a training of one's own:

    without_k2()                                                        # once, in every process
    teacher = load_teacher("exp-large", epoch=30, avg=5)                # or "jit_script.pt"
    kd = distill(model, teacher=teacher)                                # an AsrModel; info["kd_loss"] = kd.last.item()
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from rnnt_kd.errors import UserError
from rnnt_kd.icefall import IcefallModel, distill
from rnnt_kd.icefall import load_teacher as _load_teacher
from rnnt_kd.losses.as_k2 import as_k2

__all__ = ["distill", "load_teacher", "train_py", "without_k2"]


def without_k2(backend: str = "auto") -> None:
    """Let ``AsrModel.forward_transducer`` call our loss where it would call k2's; same values and gradients.

    Args:
      backend:  of the lattice, "auto", "torch", "triton" or "k2"; see ``rnnt_kd.lattice``.

    Raises:
      UserError: the package is not there, or no such backend.
    """
    lattice = as_k2(backend)
    try:
        module: Any = importlib.import_module("zipformer.modules.model")
    except ImportError as error:
        raise _missing(str(error)) from error
    module.k2 = lattice


def load_teacher(place: Path, epoch=None, avg: int = 1, **options: Any) -> IcefallModel:
    """A model that ``zipformer train`` wrote, or a jit_script.pt; see ``rnnt_kd.icefall.load_teacher``."""
    return _load_teacher(place, epoch, avg, **{"recipe": train_py().parent, **options})


def train_py() -> Path:
    """The package's own training script.  UserError: the package is not there."""
    found = importlib.util.find_spec("zipformer")
    if found is None or not found.submodule_search_locations:
        raise _missing("not installed")
    return Path(found.submodule_search_locations[0], "bin", "train.py")


def _missing(problem: str) -> UserError:
    return UserError("the package zipformer", problem, "the package and what it needs", "pip install zipformer==0.1.3")

"""The pip package ``zipformer``, whose transducer trains here without k2.

    from rnnt_kd.zipformer import without_k2
    without_k2()                          # before or after its models are built; in every process

It needs k2 for the transducer loss alone, and k2 has no wheel for today's torch.
"""

from functools import wraps
from types import SimpleNamespace
from typing import Any

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning, get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses import rnnt_loss_pruned


def model_module() -> Any:
    """``zipformer.modules.model``.

    Raises:
      UserError: it is not installed, or lacks what the package's own requirements would have brought.
    """
    try:
        import zipformer.modules.model as module
    except ImportError as error:
        raise UserError("the package zipformer", str(error), "it installed", "pip install zipformer==0.1.3") from error
    return module


def without_k2(backend: str = "auto") -> None:
    """Let zipformer's ``AsrModel.forward_transducer`` call our loss where it calls k2's; same values and gradients.

    Args:
      backend:  of the lattice, "auto", "torch", "triton" or "k2"; see ``rnnt_kd.lattice``.

    Raises:
      UserError: the package is not there, or no such backend.
    """
    if backend != "auto":
        get_backend(backend)

    @wraps(rnnt_loss_smoothed)
    def smoothed(lm, am, *arguments, **options):
        return rnnt_loss_smoothed(lm, am, *arguments, **options, backend=get_backend(backend, am.device))

    @wraps(rnnt_loss_pruned)
    def pruned(*arguments, **options):
        return rnnt_loss_pruned(*arguments, **options, backend=backend)

    model_module().k2 = SimpleNamespace(
        rnnt_loss_smoothed=smoothed,
        get_rnnt_prune_ranges=get_rnnt_prune_ranges,
        do_rnnt_pruning=do_rnnt_pruning,
        rnnt_loss_pruned=pruned,
    )

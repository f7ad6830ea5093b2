"""k2's functions for the pruned transducer loss, where there is no k2: ``model_module.k2 = as_k2()``."""

from functools import wraps
from types import SimpleNamespace

from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning, get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses.pruned_rnnt import rnnt_loss_pruned


def as_k2(backend: str = "auto") -> SimpleNamespace:
    """``rnnt_loss_smoothed``, ``get_rnnt_prune_ranges``, ``do_rnnt_pruning``, ``rnnt_loss_pruned``, with k2's results.

    Args:
      backend:  of the lattice; "auto": what is best where the tensors lie.

    Raises:
      UserError: no such backend.
    """
    if backend != "auto":
        get_backend(backend)

    @wraps(rnnt_loss_smoothed)
    def smoothed(lm, am, *arguments, **options):
        return rnnt_loss_smoothed(lm, am, *arguments, **options, backend=get_backend(backend, am.device))

    @wraps(rnnt_loss_pruned)
    def pruned(*arguments, **options):
        return rnnt_loss_pruned(*arguments, **options, backend=backend)

    return SimpleNamespace(
        rnnt_loss_smoothed=smoothed,
        get_rnnt_prune_ranges=get_rnnt_prune_ranges,
        do_rnnt_pruning=do_rnnt_pruning,
        rnnt_loss_pruned=pruned,
    )

"""The transducer loss with distillation over the pruned lattice.

    rnnt_loss_pruned   k2's function, with an optional teacher
    rnnt_kd_loss       the teacher term alone
"""

from rnnt_kd.losses.kd_variants import available_variants
from rnnt_kd.losses.kd_weightings import available_weightings
from rnnt_kd.losses.pruned_rnnt import rnnt_kd_loss, rnnt_loss_pruned

__all__ = ["available_variants", "available_weightings", "rnnt_kd_loss", "rnnt_loss_pruned"]

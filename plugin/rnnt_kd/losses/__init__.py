"""The transducer loss with distillation over the pruned lattice.

    rnnt_loss_pruned   k2's function, with an optional teacher
    rnnt_kd_loss       the teacher term alone
    available_variants, available_weightings   what ``kd_variant`` and ``kd_weighting`` may be
"""

from rnnt_kd.losses.choices import available_variants, available_weightings
from rnnt_kd.losses.pruned_rnnt import rnnt_kd_loss, rnnt_loss_pruned

__all__ = ["available_variants", "available_weightings", "rnnt_kd_loss", "rnnt_loss_pruned"]

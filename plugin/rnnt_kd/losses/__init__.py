"""The transducer loss with distillation over the pruned lattice.

pruned_transducer_loss   from the joiner's inputs and output layer; logits are never built
rnnt_loss_pruned         k2's function, from logits, with an optional teacher
rnnt_kd_loss             the teacher term alone, from logits
JoinerParts, NodeScores  the two forms of a teacher
transducer_terms         the one algorithm behind them: a student, a TeacherView and a Distillation
lattice_terms            the same on ``kept_nodes``, with any number of teachers; OtherHalf is the student's other view
available_variants, available_weightings, available_impls   what the options may be
"""

from rnnt_kd.losses.choices import available_variants, available_weightings
from rnnt_kd.losses.distillation import Distillation
from rnnt_kd.losses.kept_nodes import kept_nodes
from rnnt_kd.losses.node_scores import JoinerParts, Logits, NodeScores, Posteriors, available_impls
from rnnt_kd.losses.pruned_rnnt import rnnt_kd_loss, rnnt_loss_pruned
from rnnt_kd.losses.terms import OtherHalf, TeacherView, lattice_terms, transducer_terms
from rnnt_kd.losses.transducer_loss import pruned_transducer_loss, pruned_transducer_terms

__all__ = [
    "Distillation",
    "JoinerParts",
    "Logits",
    "NodeScores",
    "OtherHalf",
    "Posteriors",
    "TeacherView",
    "available_impls",
    "available_variants",
    "available_weightings",
    "kept_nodes",
    "lattice_terms",
    "pruned_transducer_loss",
    "pruned_transducer_terms",
    "rnnt_kd_loss",
    "rnnt_loss_pruned",
    "transducer_terms",
]

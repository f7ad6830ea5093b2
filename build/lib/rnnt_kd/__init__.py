"""Distillation for RNN transducers over the pruned lattice.

    from rnnt_kd import pruned_transducer_loss, rnnt_loss_pruned, rnnt_kd_loss, JoinerParts

are loaded on first use, so that importing a part of the package stays cheap.
"""

__all__ = [
    "JoinerParts",
    "NodeScores",
    "pruned_transducer_loss",
    "pruned_transducer_terms",
    "rnnt_kd_loss",
    "rnnt_loss_pruned",
]


def __getattr__(name: str):
    if name in __all__:
        from rnnt_kd import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

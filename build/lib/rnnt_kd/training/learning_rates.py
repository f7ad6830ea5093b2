"""Learning rates: pure functions of the step.

A function here is a value of ``training.schedule``; it is called as ``cosine`` is.  There is no scheduler
state to save: a resumed run asks for the same step and gets the same number.
"""

import math


def cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """Learning rate of update number ``step`` (from 0).

    Rises linearly and reaches ``peak`` at step ``warmup_steps - 1``, then falls as half
    a cosine to ``final_fraction * peak`` at ``total_steps - 1``; it stays there afterwards.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / max(1, total_steps - warmup_steps)
    half_wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_fraction + (1.0 - final_fraction) * half_wave)

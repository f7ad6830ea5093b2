"""How much of a matrix is zero at which step: pure functions of the step.

A function here is a value of ``sparsity.schedule``; it is called as ``cubic`` is.
"""


def cubic(step: int, begin_step: int, end_step: int, final_sparsity: float, initial_sparsity: float = 0.0) -> float:
    """Sparsity after ``step`` optimizer steps (Zhu & Gupta 2017, arXiv 1710.01878, equation 1).

    ``initial + (final - initial) * (1 - (1 - (step - begin_step) / (end_step - begin_step)) ** 3)`` on the ramp:
    fast while many weights are superfluous, slow near the end.  0 up to its begin, ``final_sparsity`` after it;
    with ``begin_step == end_step`` a single jump.
    """
    if step >= end_step:
        return float(final_sparsity)
    if step <= begin_step:
        return 0.0
    remaining = 1.0 - (step - begin_step) / (end_step - begin_step)
    return initial_sparsity + (final_sparsity - initial_sparsity) * (1.0 - remaining**3)

"""From measured passes to numbers: a batch's time is the median over its rounds, low and high are its extremes."""

from statistics import median
from typing import Any, Callable, Dict, Optional

from benchmark.turns import Measurement


def middle(job: Measurement) -> Dict[str, Any]:
    """``seconds``, ``low``, ``high`` and ``peak_mb`` (1 MB is 10**6 bytes): medians over the batches; ``rounds``."""
    return {
        "seconds": median(map(median, job.seconds)),
        "low": median(map(min, job.seconds)),
        "high": median(map(max, job.seconds)),
        "peak_mb": median(job.peak_bytes) / 1e6,
        "rounds": len(job.seconds[0]),
    }


def real_time_factor(
    job: Measurement, audio_seconds: float, part: Optional[str] = None, choose: Callable = median
) -> Optional[float]:
    """Seconds of all batches together, of the whole pass or of a part, divided by those of the audio; None: that part
    has no clock of its own."""
    seconds = job.seconds if part is None else job.parts.get(part)
    return sum(map(choose, seconds)) / audio_seconds if seconds else None


def times_as_fast(job: Measurement, as_other: Optional[Measurement], part: Optional[str] = None) -> Optional[float]:
    """The other's seconds divided by this one's: the median over all batches and rounds of two taken in one turn."""
    if as_other is None or as_other.cannot is not None:
        return None
    ours, theirs = ((one.seconds if part is None else one.parts.get(part, [])) for one in (job, as_other))
    ratios = [other / own for pair in zip(theirs, ours) for other, own in zip(*pair)]
    return median(ratios) if ratios else None


def quotient(value: float, other: Optional[float]) -> Optional[float]:
    """``value / other``; None where there is nothing to divide by."""
    return value / other if other else None

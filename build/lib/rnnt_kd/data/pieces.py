"""Long audio in pieces, cut where it is quiet.

An encoder that looks at the whole recording needs time and memory for the square of its length.
"""

from typing import List, Tuple

import numpy as np

from rnnt_kd.data.audio_format import FRAME_SAMPLES as STEP
from rnnt_kd.data.audio_format import SAMPLING_RATE

LONGEST_SECONDS = 30.0
WINDOW_STEPS = 20  # a cut lies in the middle of the quietest 200 ms


def cut_at_quiet(samples: np.ndarray, longest_seconds: float = LONGEST_SECONDS) -> List[Tuple[int, int]]:
    """(n,) samples at 16 kHz -> first and last + 1 sample of each piece; together they are the whole, in order.

    A piece is at most ``longest_seconds`` long (0.4 or more) and, but for the last, at least half of it: the cut is
    made in the quietest 200 ms of the second half, the last of equals.
    """
    longest = int(longest_seconds * SAMPLING_RATE) // STEP
    assert longest >= 2 * WINDOW_STEPS, longest_seconds
    steps = len(samples) // STEP
    energy = np.square(samples[: steps * STEP].reshape(steps, STEP)).sum(1, dtype=np.float64)
    total = np.concatenate(([0.0], np.cumsum(energy)))
    pieces, start = [], 0
    while len(samples) - start * STEP > longest * STEP:
        centres = np.arange(start + longest // 2, start + longest - WINDOW_STEPS // 2 + 1)
        loudness = total[centres + WINDOW_STEPS // 2] - total[centres - WINDOW_STEPS // 2]
        best = int(centres[len(centres) - 1 - int(np.argmin(loudness[::-1]))])
        pieces.append((start * STEP, best * STEP))
        start = best
    return [*pieces, (start * STEP, len(samples))]

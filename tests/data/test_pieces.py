"""Long recordings in pieces that end where it is quiet."""

import numpy as np
import pytest
from audio_cases import noise

from rnnt_kd.data.pieces import cut_at_quiet


def test_pieces_are_the_whole_and_none_is_too_long():
    for samples in (0, 1, 16000, 480000, 480001, 480160, 48000000):
        audio = np.random.default_rng(0).normal(size=samples).astype(np.float32)
        pieces = cut_at_quiet(audio)
        assert pieces[0][0] == 0 and pieces[-1][1] == samples
        assert all(one[1] == two[0] for one, two in zip(pieces, pieces[1:]))
        lengths = [end - start for start, end in pieces]
        assert max(lengths) <= 480000 and all(length >= 240000 - 160 for length in lengths[:-1])
        assert len(pieces) == 1 or samples > 480000


@pytest.mark.parametrize("longest", [5.0, 11.3, 30.0])
def test_cuts_are_the_quietest_place_found_one_by_one(longest):
    audio = noise(50, seed=9)
    start, expected, longest_steps = 0, [], int(longest * 16000) // 160
    while len(audio) - start > longest_steps * 160:
        best, least = None, np.inf
        for centre in range(start // 160 + longest_steps // 2, start // 160 + longest_steps - 10 + 1):
            energy = (audio[(centre - 10) * 160 : (centre + 10) * 160].astype(np.float64) ** 2).sum()
            if energy <= least * (1 + 1e-12):
                best, least = centre, energy
        expected.append((start, best * 160))
        start = best * 160
    assert cut_at_quiet(audio, longest) == [*expected, (start, len(audio))]


def test_each_sample_of_an_hour_is_looked_at_a_few_times(monkeypatch):
    looked_at = []
    real = np.argmin
    monkeypatch.setattr(np, "argmin", lambda values: looked_at.append(len(values)) or real(values))
    pieces = cut_at_quiet(np.tile(noise(60), 60))
    assert len(pieces) - 1 == len(looked_at) >= 119 and sum(looked_at) * 160 < 2 * 3600 * 16000

"""SpecAugment: deterministic, inside the utterance, within its limits, filled with the mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.data.specaugment import spec_augment

LIMITS = dict(
    num_frequency_masks=2, max_frequency_bins=20, num_time_masks=2, max_time_frames=40, max_time_fraction=0.15
)


def batch(lens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((len(lens), max(lens), 80), generator=generator) - 5.0, torch.tensor(lens)


def augment(features, lens, seed=1, **changes):
    return spec_augment(features, lens, torch.Generator().manual_seed(seed), **{**LIMITS, **changes})


def test_the_generator_decides_alone_and_the_input_stays_as_it_was():
    features, lens = batch([300, 200, 7])
    copy = features.clone()
    torch.manual_seed(1)
    first = augment(features, lens)
    before = torch.get_rng_state()
    assert torch.equal(augment(features, lens), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(augment(features, lens, seed=2), first)
    assert torch.equal(features, copy) and not torch.equal(first, copy)


@given(lens=st.lists(st.integers(1, 120), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_masks_keep_to_their_limits_and_are_filled_with_the_mean(lens, seed):
    features, lens = batch(lens)
    masked = augment(features, lens, seed)
    assert masked.dtype == features.dtype and masked.shape == features.shape
    for before, after, length in zip(features, masked, lens.tolist(), strict=True):
        assert torch.equal(after[length:], before[length:])
        changed = after[:length] != before[:length]
        frames = changed.all(dim=1)
        bins = changed[~frames].all(dim=0) if (~frames).any() else torch.zeros(80, dtype=torch.bool)
        assert int(frames.sum()) <= min(0.15 * length, 2 * 40)
        assert int(bins.sum()) <= 2 * 20
        assert torch.equal(changed, frames[:, None] | bins[None, :])
        if changed.any():
            torch.testing.assert_close(after[:length][changed].mean(), before[:length].mean())
            assert after[:length][changed].unique().numel() == 1


def test_padding_has_no_influence():
    features, lens = batch([90, 50])
    other = features.clone()
    other[1, 50:] = 1e6
    assert torch.equal(augment(features, lens)[1, :50], augment(other, lens)[1, :50])


@pytest.mark.parametrize("frequency", ["num_frequency_masks", "max_frequency_bins"])
@pytest.mark.parametrize("time", ["num_time_masks", "max_time_frames", "max_time_fraction"])
def test_masks_of_zero_number_or_size_change_nothing(frequency, time):
    features, lens = batch([50, 30])
    assert torch.equal(augment(features, lens, **{frequency: 0, time: 0}), features)


def test_every_width_and_place_occurs():
    features, lens = batch([200] * 400)
    changed = (augment(features, lens, num_time_masks=0, num_frequency_masks=1) != features).any(dim=1)
    widths = changed.sum(dim=1)
    assert set(widths.tolist()) == set(range(21))
    assert changed.any(dim=0).all() and changed[:, 0].any() and changed[:, 79].any()
    frames = (augment(features, lens, num_time_masks=1, num_frequency_masks=0) != features).any(dim=2)
    assert int(frames.sum(dim=1).max()) == 30 and frames.any(dim=0).all()  # 15 % of 200

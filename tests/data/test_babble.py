"""Babble of the batch: levels against plain numpy, who is mixed, and what does not change."""

import numpy as np
import pytest
import torch

from rnnt_kd.config import BabbleConfig
from rnnt_kd.data.babble import mix_babble
from rnnt_kd.errors import UserError

LENS = torch.tensor([40, 25, 33, 10])


def batch(seed=0):
    """Four utterances of other levels, with padding."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((4, 40, 80), generator=generator) + torch.tensor([2.0, 5.0, -3.0, 9.0])[:, None, None]
    for row, length in enumerate(LENS.tolist()):
        features[row, length:] = -23.0
    return features


def mixed(features, seed=1, **options):
    return mix_babble(features, LENS, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
@pytest.mark.parametrize("talkers", [1, 3, 9])
def test_babble_is_as_far_below_the_speech_as_asked(snr, talkers):
    features = batch().double()
    result = mixed(features, share=1.0, snr_db=[snr, snr], talkers=talkers)
    energies = np.exp(features.numpy()), np.exp(result.numpy())
    for row, length in enumerate(LENS.tolist()):
        speech, all_ = (energy[row, :length] for energy in energies)
        babble = all_ - speech
        assert 10 * np.log10(speech.sum() / babble.sum()) == pytest.approx(snr, abs=1e-4)
        others = [other for other in range(4) if other != row]
        repeated = [energies[0][other][np.arange(length) % int(LENS[other])] for other in others]
        columns = np.stack([(one / one.sum()).ravel() for one in repeated], 1)
        coefficients = np.linalg.lstsq(columns, babble.ravel(), rcond=None)[0]
        heard = [value for value in coefficients / coefficients.max() if value > 0.5]
        assert len(heard) == min(talkers, 3) and np.allclose(heard, 1, rtol=1e-4)


def test_padding_and_the_utterances_that_are_not_chosen_stay_as_they_are():
    features = batch()
    before = features.clone()
    counts = []
    for seed in range(200):
        result = mixed(features, seed, share=0.5)
        changed = (result != features).flatten(1).any(1)
        counts.append(int(changed.sum()))
        for row, length in enumerate(LENS.tolist()):
            assert torch.equal(result[row, length:], features[row, length:])
            assert bool(changed[row]) == bool((result[row, :length] != features[row, :length]).any())
    assert torch.equal(features, before) and 1.7 < np.mean(counts) < 2.3
    assert torch.equal(mixed(features, share=0.0), features)


def test_it_is_a_function_of_the_generator():
    features = batch()
    assert torch.equal(mixed(features, 3, share=1.0), mixed(features, 3, share=1.0))
    assert not torch.equal(mixed(features, 3, share=1.0), mixed(features, 4, share=1.0))


def test_an_utterance_alone_has_nobody_behind_it():
    features = batch()[:1]
    assert torch.equal(mix_babble(features, LENS[:1], torch.Generator(), share=1.0), features)


@pytest.mark.parametrize("values", [{"share": 1.5}, {"snr_db": [20.0, 10.0]}, {"snr_db": [1.0]}, {"talkers": 0}])
def test_values_that_cannot_be_are_refused(values):
    with pytest.raises((UserError, ValueError)):
        BabbleConfig(**values)

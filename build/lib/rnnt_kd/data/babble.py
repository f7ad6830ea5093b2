"""Babble in training: other utterances of the batch behind a share of its utterances, drawn anew in every step.

What CutMix with MUSAN is in icefall, without a corpus of noise: mixed as energies of the filter banks, as Lhotse mixes
features.  All randomness comes from the generator that is given.
"""

from typing import Sequence

import torch


def mix_babble(
    features: torch.Tensor,
    feature_lens: torch.Tensor,
    generator: torch.Generator,
    *,
    share: float = 0.5,
    snr_db: Sequence[float] = (10.0, 20.0),
    talkers: int = 3,
) -> torch.Tensor:
    """A batch, some of it with babble.

    Args:
      features:     (N, T, F) float, natural logarithms of energies; padding may be anything finite, and stays.
      feature_lens: (N,) int64, valid frames, at least 1.
      generator:    on the CPU.
      share:        of the utterances that are mixed, each by itself.
      snr_db:       lowest and highest; speech above babble, both summed over the valid frames of the utterance.
      talkers:      other utterances in a babble, equally loud, as many as there are at most; a short one begins again.
    Returns: (N, T, F), a new tensor.
    """
    count, num_frames, _ = features.shape
    chosen = torch.rand(count, generator=generator) < share
    snr = snr_db[0] + (snr_db[1] - snr_db[0]) * torch.rand(count, generator=generator)
    order = torch.rand((count, max(count - 1, 0)), generator=generator).argsort(dim=1)[:, :talkers]  # of the others
    mixed, frames = features.clone(), torch.arange(num_frames)
    for row in chosen.nonzero().flatten().tolist() if count > 1 else ():
        own = int(feature_lens[row])
        speech = features[row, :own].double().exp()
        others = [(row + 1 + int(step)) % count for step in order[row]]
        heard = [features[other][frames[:own] % int(feature_lens[other])].double().exp() for other in others]
        babble = torch.stack([one / one.sum() for one in heard]).mean(dim=0)
        gain = speech.sum() * 10.0 ** (-float(snr[row]) / 10.0)
        mixed[row, :own] = (speech + gain * babble).log().to(features.dtype)
    return mixed

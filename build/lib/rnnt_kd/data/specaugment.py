"""SpecAugment (arXiv 1904.08779) without time warping: frequency and time masks, vectorised.

A mask's place is filled with the mean of its utterance over valid frames, so that the encoder's
normalisation, which expects raw log-mel values, sees nothing foreign.  All randomness comes from the
generator that is given, and every call draws the same amount from it for a batch of one size.
"""

import torch


def spec_augment(
    features: torch.Tensor,
    feature_lens: torch.Tensor,
    generator: torch.Generator,
    *,
    num_frequency_masks: int = 2,
    max_frequency_bins: int = 20,
    num_time_masks: int = 2,
    max_time_frames: int = 40,
    max_time_fraction: float = 0.15,
) -> torch.Tensor:
    """Masked copy of a batch.

    Args:
      features:     (N, T, F) float; padding may be anything finite and comes back as it was.
      feature_lens: (N,) int64, valid frames.
      generator:    on the CPU, whatever the device of ``features``, so that both draw the same masks.
      num_frequency_masks, max_frequency_bins: masks an utterance, each 0 to so many bins wide.
      num_time_masks, max_time_frames: masks an utterance, each 0 to so many frames long ...
      max_time_fraction: ... and all of them together at most this fraction of the utterance.
    Returns: (N, T, F), a new tensor.
    """
    num_utterances, num_frames, num_bins = features.shape
    lens = feature_lens.cpu()
    longest = torch.full((num_utterances,), min(max_time_frames, num_frames))
    if num_time_masks > 0:
        longest = torch.minimum(longest, (lens * max_time_fraction / num_time_masks).long())
    widest = torch.full((num_utterances,), min(max_frequency_bins, num_bins))
    time_mask = _masked_positions(num_time_masks, longest, lens, num_frames, generator)
    frequency_mask = _masked_positions(
        num_frequency_masks, widest, torch.full_like(lens, num_bins), num_bins, generator
    )
    time_mask, frequency_mask = time_mask.to(features.device), frequency_mask.to(features.device)

    valid = torch.arange(num_frames, device=features.device) < feature_lens.to(features.device)[:, None]
    total = features.masked_fill(~valid[:, :, None], 0.0).sum(dim=(1, 2), dtype=torch.float64)
    mean = (total / (feature_lens.to(features.device).clamp(min=1) * num_bins)).to(features.dtype)
    masked = (time_mask[:, :, None] | frequency_mask[:, None, :]) & valid[:, :, None]
    return torch.where(masked, mean[:, None, None], features)


def _masked_positions(
    num_masks: int, largest: torch.Tensor, limits: torch.Tensor, size: int, generator: torch.Generator
) -> torch.Tensor:
    """(N, size) bool, True = masked: ``num_masks`` intervals of 0 to ``largest`` (N,) inside [0, ``limits`` (N,))."""
    if num_masks <= 0:
        return torch.zeros((len(largest), size), dtype=torch.bool)
    draws = torch.rand((2, len(largest), num_masks), generator=generator)
    lengths = (draws[0] * (largest[:, None] + 1)).long().clamp(max=int(largest.max()))
    starts = (draws[1] * (limits[:, None] - lengths + 1)).long()
    position = torch.arange(size)
    inside = (position >= starts[:, :, None]) & (position < (starts + lengths)[:, :, None])
    return inside.any(dim=1)

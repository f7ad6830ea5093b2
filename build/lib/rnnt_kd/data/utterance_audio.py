"""From a recording to its utterances: which samples are whose, as a cut at 16 kHz, and what cannot be used."""

from pathlib import Path
from typing import Dict, Tuple

import numpy as np
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.augmentation import Speed
from lhotse.augmentation.torchaudio import get_or_create_resampler
from lhotse.utils import compute_num_samples

from rnnt_kd.data.audio import SILENT, Audio, BadAudio, is_silent
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import RecordingEntry, Utterance
from rnnt_kd.errors import UserError

SEGMENT_OVERSHOOT = 0.5  # seconds that a segment may end after its recording (clipped), as in Kaldi
SHORTEST = 0.025  # seconds: one window
MAX_BAD_FRACTION = 0.05  # of utterances, that may have bad audio


def recording_manifest(recording: RecordingEntry, num_samples: int, rate: int) -> Recording:
    """Lhotse's, at 16 kHz."""
    source = AudioSource("command" if recording.is_pipe else "file", channels=[0], source=recording.source)
    manifest = Recording(recording.id, [source], rate, num_samples, num_samples / rate)
    return manifest if rate == SAMPLING_RATE else manifest.resample(SAMPLING_RATE)


def span_of(utterance: Utterance, audio: Audio) -> np.ndarray:
    """The (n,) samples of an utterance, in its recording's rate; BadAudio where there are none to use."""
    samples, rate = audio.samples, audio.rate
    duration = len(samples) / rate
    end = duration if utterance.end is None else utterance.end
    if utterance.start >= duration or end > duration + SEGMENT_OVERSHOOT:
        advice = "; are the times samples, not seconds?" if end > 100 * duration else ""
        raise BadAudio(f"segment {utterance.start:g} to {end:g} s is outside its recording of {duration:g} s{advice}")
    span = samples[round(utterance.start * rate) : round(end * rate)]
    if len(span) < 2 * SHORTEST * rate:  # room for a speed of 2
        raise BadAudio(f"is only {len(span) / rate:g} s long")
    if is_silent(span):
        raise BadAudio(SILENT + audio.elsewhere, len(span) / rate)
    return span


def cut_of(
    utterance: Utterance, recording: Recording, span: np.ndarray, rate: int, speed: float
) -> Tuple[MonoCut, np.ndarray]:
    """A cut without features, and its (1, n) float32 samples at 16 kHz; ``span`` (m,) is at ``rate``."""
    samples = torch.from_numpy(np.ascontiguousarray(span))[None]
    if rate != SAMPLING_RATE:
        samples = get_or_create_resampler(rate, SAMPLING_RATE)(samples)
    duration = compute_num_samples(len(span) / rate, SAMPLING_RATE) / SAMPLING_RATE
    supervision = SupervisionSegment(
        utterance.id, recording.id, 0.0, duration, channel=0, text=utterance.text, speaker=utterance.speaker
    )
    cut = MonoCut(utterance.id, utterance.start, duration, 0, supervisions=[supervision], recording=recording)
    if speed != 1.0:
        cut = cut.perturb_speed(speed)
        samples = torch.from_numpy(Speed(speed)(samples.numpy(), SAMPLING_RATE))
    # Resamplers round lengths up, Lhotse's manifests round to the nearest.
    missing = cut.num_samples - samples.shape[1]
    assert abs(missing) <= 2, (cut.id, cut.num_samples, samples.shape)
    return cut, torch.nn.functional.pad(samples, (0, missing)).numpy()


def check_left_out(data_dir: Path, total: int, left_out: Dict[str, str], max_bad_fraction: float) -> None:
    """``left_out``: utterance id -> reason.  UserError: nothing is left of ``total``, or too much is bad."""
    bad = {key: reason for key, reason in left_out.items() if not reason.startswith(SILENT)}
    first = next((f"{key} {reason}" for key, reason in (bad or left_out).items()), "")
    if len(left_out) == total:
        raise UserError(data_dir, f"no utterance can be used ({total} left out; {first})", "usable audio")
    if len(bad) > max_bad_fraction * total:
        problem = f"{len(bad)} of {total} utterances have bad audio (the first: {first})"
        advice = "repair or remove them, or raise --max-bad-fraction"
        raise UserError(data_dir, problem, f"at most {100 * max_bad_fraction:g} %", advice)

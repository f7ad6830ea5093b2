"""A quick check of a data directory's audio, by the headers, before hours of work start.

The same rule as in ``compute_features``, which decodes every file and so sees more: a little bad audio
is named (and left out there), more of it is an error.
"""

from dataclasses import dataclass
from typing import Dict, Tuple

from rnnt_kd.data.audio import BadAudio, check_header
from rnnt_kd.data.kaldi_dir import KaldiDataDir
from rnnt_kd.data.utterance_audio import MAX_BAD_FRACTION, SEGMENT_OVERSHOOT
from rnnt_kd.errors import UserError


@dataclass(frozen=True)
class AudioCheck:
    """Result of ``check_audio``."""

    seconds: float  # of good utterances; those behind pipes do not count
    bad: Dict[str, str]  # utterance id -> reason


def check_audio(data: KaldiDataDir, max_bad_fraction: float = MAX_BAD_FRACTION) -> AudioCheck:
    """Read the header of every recording; look for segments outside their recording.  Pipes are not run.

    Raises: UserError, naming file and line of the first, where more than ``max_bad_fraction`` of the utterances
      stand on a file that is empty, unreadable or truncated, or are a segment outside its recording.
    """
    durations: Dict[str, float] = {}
    broken: Dict[str, str] = {}
    for recording in data.recordings.values():
        try:
            duration = check_header(recording)
        except BadAudio as error:
            broken[recording.id] = str(error)
        else:
            if duration is not None:
                durations[recording.id] = duration
    seconds = 0.0
    bad: Dict[str, str] = {}
    first: Tuple[str, str] = ("", "")
    for utterance in data.utterances:
        if utterance.recording_id in broken:
            recording = data.recordings[utterance.recording_id]
            bad[utterance.id] = broken[recording.id]
            first = first if len(bad) > 1 else (recording.where, f"audio {recording.source} {broken[recording.id]}")
        elif utterance.recording_id in durations:
            duration = durations[utterance.recording_id]
            end = duration if utterance.end is None else utterance.end
            if utterance.start < duration and end <= duration + SEGMENT_OVERSHOOT:
                seconds += min(end, duration) - utterance.start
                continue
            reason = f"segment from {utterance.start:g} to {end:g} s is outside its recording of {duration:g} s"
            bad[utterance.id] = reason + "; are the times samples, or of another sampling rate?"
            first = first if len(bad) > 1 else (utterance.where, bad[utterance.id])
    if len(bad) > max_bad_fraction * len(data.utterances):
        where, what = first
        counts = f"{len(bad)} of {len(data.utterances)} utterances have bad audio"
        raise UserError(where, f"{what} ({counts})", f"at most {100 * max_bad_fraction:g} %", "repair or remove them")
    return AudioCheck(seconds, bad)

"""What a data directory's audio promises: checked by the headers, before hours of work start.

``compute_features`` decodes every file and leaves the bad ones out; this one is strict and quick.
"""

from typing import Dict

from rnnt_kd.data.audio import BadAudio, check_header
from rnnt_kd.data.features import SEGMENT_OVERSHOOT
from rnnt_kd.data.kaldi_dir import KaldiDataDir
from rnnt_kd.errors import UserError


def check_audio(data: KaldiDataDir) -> float:
    """Seconds of audio in all utterances; recordings behind pipes do not count.

    Raises: UserError, naming file and line: the first recording whose file is empty, unreadable or truncated,
      or the first segment outside its recording.
    """
    durations: Dict[str, float] = {}
    for recording in data.recordings.values():
        try:
            duration = check_header(recording)
        except BadAudio as error:
            raise UserError(
                recording.where, f"audio {recording.source} {error}", "a sound file", "repair or remove it"
            ) from None
        if duration is not None:
            durations[recording.id] = duration
    total = 0.0
    for utterance in data.utterances:
        if utterance.recording_id not in durations:
            continue
        duration = durations[utterance.recording_id]
        end = duration if utterance.end is None else utterance.end
        if utterance.start >= duration or end > duration + SEGMENT_OVERSHOOT:
            raise UserError(
                utterance.where,
                f"segment from {utterance.start:g} to {end:g} s is outside its recording of {duration:g} s",
                "times in seconds",
                "are they samples, or those of another sampling rate?",
            )
        total += min(end, duration) - utterance.start
    return total

"""The audio behind the cuts of stage 1, for people to hear."""

import io
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np
import soundfile

from rnnt_kd.data.audio import BadAudio, read_recording
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import find_recordings
from rnnt_kd.data.source import open_source
from rnnt_kd.data.speech import resample


def cut_samples(
    cuts_path: Path, places: Sequence[int], data_dir: Path, allow_pipes: bool = False
) -> Iterator[Optional[np.ndarray]]:
    """(n,) float32 at 16 kHz of each cut, named by its place in the file; cuts at their own speed only.

    The audio is what ``wav.scp`` of ``data_dir`` says of the cut's recording; what the cuts file says is not opened.
    None where the recording is gone or damaged since stage 1, or is a shell pipe that may not run.
    """
    source = open_source(cuts_path)
    cuts = [source[place] for place in places]
    recordings = find_recordings(data_dir, [cut.features.recording_id for cut in cuts], allow_pipes)
    for cut, recording in zip(cuts, recordings):
        try:
            audio = read_recording(recording) if recording else None
        except BadAudio:
            audio = None
        if audio is None:
            yield None
        else:
            first, end = (round(seconds * audio.rate) for seconds in (cut.start, cut.start + cut.duration))
            yield resample(audio.samples[first:end], audio.rate)


def compressed(samples: np.ndarray) -> Tuple[bytes, str]:
    """(n,) float32 at 16 kHz -> a small file that browsers and phones play, and its MIME type.

    MP3 (a third of FLAC's size; speech at about 45 kbit/s), or FLAC where libsndfile is too old for it.
    """
    form, mime = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "audio/flac")
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(samples, -1.0, 1.0), SAMPLING_RATE, format=form)
    return stream.getvalue(), mime


def loudness(samples: np.ndarray, num_frames: int, window: int) -> np.ndarray:
    """(num_frames,) float32: root mean square of each ``window`` samples; 0 past the end."""
    padded = np.zeros(num_frames * window, dtype=np.float64)
    kept = samples[: len(padded)]
    padded[: len(kept)] = kept
    return np.sqrt((padded.reshape(num_frames, window) ** 2).mean(axis=1)).astype(np.float32)

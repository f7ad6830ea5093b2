"""Audio files and pipes -> samples; what is wrong with bad ones, in words.

Everything libsndfile reads (FLAC, WAV, OGG Opus and Vorbis, NIST SPHERE without shorten, MP3 ...).
Of several channels the first is taken (Kaldi's habit for mono recipes); values stay in [-1, 1].
A damaged file is a ``BadAudio`` with the reason, also where libsndfile reads the stump without
complaint: a truncated file is recognised by what its header promises.
"""

import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO, Optional, Tuple

import numpy as np
import soundfile

from rnnt_kd.data.kaldi_dir import RecordingEntry

SILENCE_PEAK_TO_PEAK = 3.0 / 32768  # of 16-bit audio: nothing but the last bit moves


class BadAudio(Exception):
    """Audio that cannot be used; the message is the reason, without the name of the file."""


def load_recording(recording: RecordingEntry) -> Tuple[np.ndarray, int]:
    """First channel of a recording.

    Returns: samples (n,) float32, n > 0, all finite; sampling rate in Hz.
    Raises: BadAudio where the audio is missing, unreadable, truncated, empty, or holds NaN or infinity,
      or where the pipe fails.
    """
    if recording.is_pipe:
        stream: BinaryIO = tempfile.TemporaryFile()
        stream.write(_run_pipe(recording.source))
        stream.seek(0)
    else:
        _check_whole(Path(recording.source))
        stream = open(recording.source, "rb")
    with stream:
        samples, sampling_rate, frames = _decode(stream)
    if len(samples) == 0:
        raise BadAudio("has no samples")
    if len(samples) < frames and not recording.is_pipe:  # headers in a pipe cannot know the length
        raise BadAudio(f"truncated: {len(samples)} samples where the header promises {frames}")
    if not np.isfinite(samples).all():
        raise BadAudio(f"{int((~np.isfinite(samples)).sum())} samples are NaN or infinite")
    return samples, sampling_rate


def is_silent(samples: np.ndarray) -> bool:
    """True where (n,) samples are constant but for the last bit of 16."""
    return float(samples.max() - samples.min()) < SILENCE_PEAK_TO_PEAK


def check_header(recording: RecordingEntry) -> Optional[float]:
    """Duration in seconds by the header alone; None for a pipe (it is not run).

    Raises: BadAudio for a file that is missing, empty, unreadable or truncated.
    """
    if recording.is_pipe:
        return None
    path = Path(recording.source)
    _check_whole(path)
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise BadAudio(_reason(error)) from None
    if header.frames <= 0:
        raise BadAudio("has no samples")
    return header.frames / header.samplerate


def _check_whole(path: Path) -> None:
    """BadAudio for an empty file, and for a WAV, SPHERE or Ogg file that ends before its time.

    libsndfile reads such a stump without complaint.  (Of FLAC it complains by itself.)
    """
    if not path.is_file():
        raise BadAudio("does not exist")
    size, promised = path.stat().st_size, None
    if size == 0:
        raise BadAudio("is an empty file")
    with open(path, "rb") as stream:
        head = stream.read(1024)
        if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
            promised = _wav_promise(stream)
        elif head[:7] == b"NIST_1A":
            promised = _sphere_promise(head)
        elif head[:4] == b"OggS" and not _ogg_ends(stream, size):
            raise BadAudio("truncated: its last Ogg page is cut off or not marked as the last")
    if promised is not None and promised > size:
        raise BadAudio(f"truncated: {size} bytes where the header promises {promised}")


def _wav_promise(stream: BinaryIO) -> Optional[int]:
    position = 12
    while True:
        stream.seek(position)
        chunk = stream.read(8)
        if len(chunk) < 8:
            return None
        name, size = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        if name == b"data":
            return None if size >= 0x7FFF0000 else position + 8 + size  # a streamed file promises nothing
        position += 8 + size + size % 2


def _sphere_promise(head: bytes) -> Optional[int]:
    text = head.decode("latin-1")
    fields = dict(re.findall(r"^(\w+) -\w+ (\d+)\s*$", text, flags=re.MULTILINE))
    if "shorten" in text or not {"sample_count", "sample_n_bytes"} <= set(fields):
        return None
    header_size, channels = int(text.split("\n")[1]), int(fields.get("channel_count", 1))
    return header_size + int(fields["sample_count"]) * int(fields["sample_n_bytes"]) * channels


def _ogg_ends(stream: BinaryIO, size: int) -> bool:
    stream.seek(max(0, size - 65307))  # no page is longer
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    if len(page) < 27 or not page[5] & 4:  # flag: last page of the stream
        return False
    segments = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(segments)


def _decode(stream: BinaryIO) -> Tuple[np.ndarray, int, int]:
    """First channel, sampling rate, and the number of samples that the header promises."""
    try:
        # By its descriptor: libsndfile would swallow Ctrl-C in a Python callback, and the file would seem truncated.
        with soundfile.SoundFile(stream.fileno(), closefd=False) as audio:
            blocks = [block[:, 0].copy() for block in audio.blocks(1 << 20, dtype="float32", always_2d=True)]
            samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
            return samples, audio.samplerate, audio.frames
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise BadAudio(_reason(error)) from None


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    text = re.sub(r"^Error opening .*?: ", "", " ".join(str(text).split())).rstrip(".: ")
    return f"unreadable or truncated ({text})" if text else "unreadable or truncated"


def _run_pipe(command: str) -> bytes:
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise BadAudio(f"pipe ended with status {done.returncode} ({last})")
    return done.stdout

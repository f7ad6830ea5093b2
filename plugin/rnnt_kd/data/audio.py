"""Audio files, archives and pipes -> samples; what is wrong with bad ones, in words.

libsndfile (by soundfile) decodes: it reads what corpora come in (WAV with every codec of telephony, FLAC, Ogg, MP3,
SPHERE without shorten, AIFF, AU, CAF ...), and says in its log where a header and the file disagree.
Of several channels the first is taken (Kaldi's habit for mono recipes); values stay in [-1, 1].

What a header says is a claim: audio is decoded block by block, and no more memory is asked for than there are samples.
A file that ends before its header says is a ``BadAudio``, in every container; a header that leaves the length open (a
recorder or a pipe that never came back to it) promises nothing, and the file is read to its end.
"""

import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple

import numpy as np
import soundfile

from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import RecordingEntry

SILENT = "is silent"
SILENCE_PEAK_TO_PEAK = 3.0 / 32768  # of 16-bit audio: nothing but the last bit moves
SHORTAGE = 0.02  # seconds that a file may end before its header says
LOUDEST = 8.0  # floating-point samples may exceed 1, those in the range of integers do so by far
RATES = (2000, 768_000)  # Hz
LARGEST_RESAMPLER = 1 << 24  # entries of its kernel, 64 MiB
LONGEST = 24  # hours
SIZES = r"^ *(?:RIFF|riff|Riff size|FORM|data|SSND|BODY|Data Size) *: (\d+)\b(?: \(should be (\d+))?"  # in a log
FIELDS = r"^ *(Channels|Block Align|Bit Width|Bytes/sec) *: (\d+)"
BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # Ogg's check sum is zlib's, mirrored
BLOCK = 1 << 20  # samples of each channel that are decoded at once
OPEN_LENGTH = (1 << 62) - 1  # libsndfile's "to the end", and more than any file holds


class BadAudio(Exception):
    """Audio that cannot be used; the message is the reason, without the name of the file.

    Attributes:
      seconds: that it lasts, 0 where nobody knows.
    """

    def __init__(self, reason: str, seconds: float = 0.0):
        super().__init__(reason, seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class Audio:
    """The first channel of a recording.

    Attributes:
      samples:   (n,) float32, n > 0, all finite.
      rate:      Hz.
      missing:   seconds by which it ends before its header says, few enough to be taken as it is.
      elsewhere: where the sound is if it is not in the first channel, in words to follow "is silent"; or empty.
    """

    samples: np.ndarray
    rate: int
    missing: float = 0.0
    elsewhere: str = ""


def read_recording(recording: RecordingEntry) -> Audio:
    """Decode a recording.

    Raises: BadAudio where the audio is missing, unreadable, truncated, empty, of a rate that nothing is sampled at,
      or holds NaN, infinity or floating-point samples in the range of integers, or where the pipe fails.
    """
    with _opened(recording) as sound:
        if sound.format == "OGG":
            _check_pages(sound.name)
        samples, elsewhere = _decode(sound)
        missing = _missing_seconds(sound, len(samples))
        _check_all_read(sound, len(samples))
    if not len(samples):
        raise BadAudio("has no samples")
    if not np.isfinite(samples).all():
        raise BadAudio(f"{int((~np.isfinite(samples)).sum())} samples are NaN or infinite")
    peak = float(np.abs(samples).max())
    if peak > LOUDEST:
        raise BadAudio(
            f"samples up to {peak:g}, floating-point audio has the range [-1, 1]: scale it once (by 1/32768?)"
        )
    return Audio(samples, sound.samplerate, missing, elsewhere)


def is_silent(samples: np.ndarray) -> bool:
    """True where (n,) samples are constant but for the last bit of 16."""
    return float(samples.max() - samples.min()) < SILENCE_PEAK_TO_PEAK


def check_header(recording: RecordingEntry) -> Optional[float]:
    """Duration in seconds by the header alone, where it says one; None for a pipe (it is not run).

    Raises: BadAudio for a file that is missing, empty, unreadable or, as far as the header tells, truncated.
    """
    if recording.is_pipe:
        return None
    with _opened(recording) as sound:
        if sound.frames < OPEN_LENGTH:
            _missing_seconds(sound, sound.frames)
            if sound.frames <= 0:
                raise BadAudio("has no samples")
            return sound.frames / sound.samplerate
    audio = read_recording(recording)
    return len(audio.samples) / audio.rate


class _Sound(soundfile.SoundFile):
    """A file that is read from its beginning to its end."""

    head = b""  # its first bytes

    def seekable(self) -> bool:
        """soundfile seeks after each block, which not all decoders can; it changes the last bits of MP3 alone."""
        return self.subtype[:4] == "MPEG" and super().seekable()


@contextmanager
def _opened(recording: RecordingEntry) -> Iterator[_Sound]:
    """BadAudio for what libsndfile cannot open; also for what it cannot read in the body."""
    path, offset = recording.file
    page = b""
    try:
        if recording.is_pipe:
            stream: BinaryIO = tempfile.TemporaryFile()
            stream.write(_run_pipe(recording.source))
            stream.flush()
        elif not os.path.isfile(path):
            raise BadAudio("does not exist")
        else:
            stream = open(path, "rb")
        with stream, _with_open_length(stream, offset) as whole:
            head = _check_head(whole, offset)
            page = _last_ogg_page(whole) if head[:4] == b"OggS" else b""
            os.lseek(whole.fileno(), offset, os.SEEK_SET)
            # By its descriptor: libsndfile would swallow Ctrl-C in a Python callback: a file would seem truncated.
            with _Sound(whole.fileno(), closefd=False) as sound:
                sound.head = head
                _check_format(sound)
                yield sound
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        if page and not page[5] & 4:
            advice = "write it again, for example with ffmpeg -i IN -c copy OUT"
            raise BadAudio(f"its last Ogg page is not marked as the last, which Opus needs: {advice}") from None
        raise BadAudio(_reason(error)) from None


def _decode(sound: _Sound) -> Tuple[np.ndarray, str]:
    """The first channel, and ``Audio.elsewhere``."""
    blocks: List[np.ndarray] = []
    low, high = np.full(sound.channels, np.inf), np.full(sound.channels, -np.inf)
    buffer = np.zeros((min(BLOCK, 16 * BLOCK // sound.channels, sound.frames), sound.channels), dtype=np.float32)
    count = 0
    while len(buffer):
        block = sound.read(out=buffer)
        blocks.append(block[:, 0].copy())
        count += len(block)
        if count > LONGEST * 3600 * sound.samplerate:
            raise BadAudio(f"is longer than {LONGEST} hours: split it")
        if not len(block):
            break
        if sound.channels > 1:
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    heard = np.nonzero((high - low)[1:] >= SILENCE_PEAK_TO_PEAK)[0]
    samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    if not len(heard):
        return samples, ""
    channel = heard[0] + 2
    return samples, f" in its first channel, and channel {channel} is not: extract it (sox IN OUT remix {channel})"


def _missing_seconds(sound: _Sound, count: int) -> float:
    """How much audio is not there, where ``count`` samples are; BadAudio: more than SHORTAGE, or a hole in it."""
    log, rate = sound.extra_info, sound.samplerate
    _check_fields(sound, log)
    if sound.format in ("VOC", "MAT4", "WVE") and re.search(r"truncated|Data length \d+ should be", log):
        raise BadAudio(f"truncated: {count / rate:.2f} s, and its header says more")
    missing = (_claimed(sound, count, log) - count) / rate
    # Not all encoders of MP3 count the frame of their header alike.
    if missing > SHORTAGE + (1152 / max(rate, 32000) if sound.format == "MP3" else 0.0):
        raise BadAudio(f"truncated: {count / rate:.2f} s where its header says {count / rate + missing:.2f} s")
    return max(0.0, missing)


def _claimed(sound: _Sound, count: int, log: str) -> float:
    """How many samples the header says there are; ``count`` where it leaves that open."""
    guessed = sound.format == "MP3" and not _has_mp3_header(sound)
    if guessed or sound.format == "OGG" or sound.frames >= OPEN_LENGTH:  # the last Ogg page may say what it likes
        return count
    claims = [float(sound.frames)]
    sizes = re.findall(SIZES, log, flags=re.MULTILINE) or [("0", "")]
    said, there = sizes[0 if sound.format == "W64" else -1]  # the innermost: that of the samples
    if there and not _is_open(int(said)):
        align = re.search(r"^ *Block Align +: ([1-9]\d*)$", log, flags=re.MULTILINE)
        block = int(align[1]) if align and sound.subtype == "MS_ADPCM" else 1  # bytes of which it decodes all or none
        whole = int(there) // block * block
        each = max(max(count, 1) / max(whole, 1), 1 / int(align[1]) if align else 0.0)  # samples a byte, at least
        claims.append(count + each * (int(said) - whole))
    elif not there and sound.format in ("RF64", "AVR", "MPC2K", "AIFF"):
        claims += map(float, re.findall(r"Frames +: (\d{1,15})\b", log))
    elif sound.format == "NIST":
        claims += map(float, re.findall(rb"^sample_count -i (\d{1,15})\s*$", sound.head, flags=re.MULTILINE))
    return max(claims)


def _has_mp3_header(sound: _Sound) -> bool:
    """Whether the first frame says how many there are; otherwise that is guessed from its bit rate."""
    tag = sum(byte << shift for byte, shift in zip(sound.head[6:10], (21, 14, 7, 0))) + 10
    frame = os.pread(sound.name, 64, tag if sound.head[:3] == b"ID3" else 0)
    return re.search(rb"Xing|Info|VBRI", frame) is not None


def _check_fields(sound: _Sound, log: str) -> None:
    """BadAudio: the fields of a WAV with uncompressed samples contradict each other, so that one of them is wrong."""
    fields = {name: int(value) for name, value in re.findall(FIELDS, log, flags=re.MULTILINE)}
    if len(fields) < 4 or not sound.subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")):
        return
    width, align = fields["Bit Width"], fields["Block Align"]
    widths = ((width + 7) // 8, 4 if 16 < width < 32 else 0)
    if sound.subtype[2:] != "LAW" and align not in [sound.channels * bytes_ for bytes_ in widths]:
        raise BadAudio(f"its header contradicts itself: {align} bytes for {sound.channels} channels of {width} bits")
    if fields["Bytes/sec"] not in (0, sound.samplerate * align):
        rates = f"{sound.samplerate} Hz of {align} bytes, and {fields['Bytes/sec']} bytes a second"
        raise BadAudio(f"its header contradicts itself: {rates}")


def _check_all_read(sound: _Sound, count: int) -> None:
    """BadAudio: behind the length that the header says, or that is guessed where none does, the sound goes on."""
    size, place = os.fstat(sound.name).st_size, os.lseek(sound.name, 0, os.SEEK_CUR)
    left, follows = size - place, os.pread(sound.name, 2, place)
    if sound.format == "MP3":  # of another bit rate than its first frame
        more = left * count > 0.15 * sound.samplerate * place and follows >= b"\xff\xe0"
    else:
        to_the_end = sound.format in ("FLAC", "OGG", "AU", "NIST") or "Exiting parser" in sound.extra_info
        too_large = sound.format in ("WAV", "WAVEX") and size > 0xFFFFFFFF  # for its header
        more = (to_the_end or too_large) and left > max(1024, size // 50)  # more than tags
    if more:
        advice = "write it again, for example with ffmpeg -i IN OUT"
        raise BadAudio(f"holds more than its beginning says: {left} bytes are left over; {advice}")


def _is_open(size: int) -> bool:
    """Whether a size in a header is what is written there until the length is known, or where it never will be."""
    near = ((0, 8), (0x7F000000, 0x7F000100), (0x7FFF0000, 0x80000100), (0xFFFF0000, 0xFFFFFFFF), (1 << 62, 1 << 64))
    return any(first <= size <= last for first, last in near)


def _check_head(stream: BinaryIO, start: int) -> bytes:
    """The first 1024 bytes; BadAudio for what libsndfile reads without complaint, or refuses without a reason."""
    head = os.pread(stream.fileno(), 1024, start)
    if not head:
        raise BadAudio(f"ends before byte {start}" if start else "is an empty file")
    packed = (
        re.search(rb"^sample_coding .*embedded-(\w+)", head, flags=re.MULTILINE) if head[:7] == b"NIST_1A" else None
    )
    if packed:
        how = packed[1].decode()
        raise BadAudio(
            f'SPHERE with {how}: convert it once ("sph2pipe -f wav IN OUT"), or as a pipe with --allow-pipes'
        )
    if start and (head[:4] != b"RIFF" or _is_open(_data_chunk(stream, start)[2])):
        raise BadAudio(
            f"holds no WAV whose header says its length at byte {start}: what Kaldi's wav-copy writes is read"
        )
    return head


def _check_format(sound: _Sound) -> None:
    rate = sound.samplerate
    if sound.format in ("IRCAM", "MAT5", "PAF", "PVF", "SDS", "XI"):
        raise BadAudio(f"is {sound.format}, whose length cannot be checked: convert it to WAV or FLAC")
    divisor = gcd(rate, SAMPLING_RATE)
    too_large = rate // divisor * (SAMPLING_RATE // divisor) > LARGEST_RESAMPLER
    if too_large or not RATES[0] <= rate <= RATES[1]:
        advice = f"resample it once, for example with sox IN -r {SAMPLING_RATE} OUT"
        raise BadAudio(f"has the sampling rate {rate} Hz, which is not resampled here: {advice}")


def _last_ogg_page(stream: BinaryIO) -> bytes:
    """BadAudio: it is cut off."""
    size = os.fstat(stream.fileno()).st_size
    tail = os.pread(stream.fileno(), 65307, max(0, size - 65307))  # no page is longer
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    if len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
        raise BadAudio("truncated: its last Ogg page is cut off")
    return page


def _check_pages(descriptor: int) -> None:
    """BadAudio: an Ogg page is missing or broken, by their numbers and check sums; libsndfile goes on without it.

    A stream that was recorded from its middle on has a gap behind its headers, whose position is 0.
    """
    place, size, ended = 0, os.fstat(descriptor).st_size, False
    before: Dict[bytes, Tuple[int, int]] = {}  # serial number of a stream -> number and position of its last page
    while place < size:
        head = os.pread(descriptor, 282, place)
        length = 27 + head[26] + sum(head[27 : 27 + head[26]]) if len(head) > 26 else 0
        page = os.pread(descriptor, length, place)
        if page[:4] != b"OggS" and ended:  # tags
            return
        if ended and page[5] & 2:
            raise BadAudio("holds more than one Ogg stream, one after the other: write it again (ffmpeg -i IN OUT)")
        checked = (page[:22] + bytes(4) + page[26:]).translate(BITS_REVERSED)
        check_sum = f"{zlib.crc32(checked, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1]
        stream, number = page[14:18], int.from_bytes(page[18:22], "little")
        follows = stream not in before or number == before[stream][0] + 1 or before[stream][1] == 0
        if page[:4] != b"OggS" or len(page) < length or int(check_sum, 2) != int.from_bytes(page[22:26], "little"):
            follows = False
        if not follows:
            raise BadAudio(f"damaged or truncated: its Ogg page at byte {place} is broken, or one before it is missing")
        before[stream] = number, int.from_bytes(page[6:14], "little")
        ended, place = bool(page[5] & 4), place + length


def _data_chunk(stream: BinaryIO, start: int) -> Tuple[int, int, int]:
    """Of a WAV or RF64: where its chunks "data" and "ds64" (or 0) begin, and the size of its samples."""
    place, wide = start + 12, 0
    for _ in range(1000):
        name, size = struct.unpack("<4sI", os.pread(stream.fileno(), 8, place).ljust(8, b"\0"))
        if name == b"data":
            large = os.pread(stream.fileno(), 8, wide + 16) if wide and size in (0, 0xFFFFFFFF) else b""
            return place, wide, int.from_bytes(large, "little") if large else size
        wide = place if name == b"ds64" else wide
        place += 8 + size + size % 2
    return 0, 0, 0


@contextmanager
def _with_open_length(stream: BinaryIO, start: int) -> Iterator[BinaryIO]:
    """The file; where it says that no samples follow, and they do, a copy whose header leaves the length open.

    libsndfile reads none of them in WAV, RF64 and AU.
    """
    head = os.pread(stream.fileno(), 12, 0)
    changes: List[Tuple[int, bytes]] = []
    if start == 0 and head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        data, wide, size = _data_chunk(stream, 0)
        behind = os.pread(stream.fileno(), 8, data + 8)
        length = os.fstat(stream.fileno()).st_size
        chunk = re.match(rb"[ -~]{4}", behind) and data + 16 + int.from_bytes(behind[4:], "little") <= length
        if data and size == 0 and len(behind) == 8 and not chunk:
            changes = [(0, b"RIFF"), (data + 4, b"\xff" * 4), *([(wide, b"JUNK")] if wide else [])]
    elif start == 0 and head[:4] == b".snd" and head[8:] == bytes(4):
        changes = [(8, b"\xff" * 4)]
    if not changes:
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        stream.seek(0)
        shutil.copyfileobj(stream, copy)
        for place, content in changes:
            copy.seek(place)
            copy.write(content)
        copy.flush()
        yield copy


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

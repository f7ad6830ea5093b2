"""Speech as a microphone across the room hears it: far copies of training cuts, and far sets to test on.

A far utterance is the close one in a room, with noise somewhere below it: as many samples, so the same frames, and the
same energy of the speech.  Room, noise and level follow from (seed, id of the copy) alone; all sums are those of
``synthesis.acoustics``, so a copy is the same in every process and with every library version.

Rooms are drawn there (0.3 to 0.8 s), or taken from a folder of responses; noise is pink, or babble of some talkers of
the training set, or taken from a folder: a Kaldi data directory (``wav.scp`` is enough), or a tree of audio files.
"""

import functools
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import soundfile

from rnnt_kd import atomic
from rnnt_kd.children import in_processes
from rnnt_kd.data.audio import Audio, BadAudio, is_silent, read_recording
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import (
    KaldiDataDir,
    RecordingEntry,
    Utterance,
    find_recordings,
    read_data_dir,
    read_table,
    write_data_dir,
)
from rnnt_kd.data.speech import resample
from rnnt_kd.data.synthesis import acoustics
from rnnt_kd.data.utterance_audio import MAX_BAD_FRACTION, check_left_out, span_of
from rnnt_kd.errors import UserError
from rnnt_kd.progress_bar import ProgressBar

ROOM_SECONDS = (0.3, 0.8)  # reverberation time, 60 dB
LATE_DB = (-3.0, 6.0)  # all reflections, relative to the direct sound
TALKERS = (3, 6)  # that babble at once
MOST_TALKERS = 500  # utterances to choose from, of each group
PEAK = 20_000  # of samples as integers
LATEST = 0.2  # share of a response's energy in its second half; of noise it is a half
PART = 50  # utterances of a far set, at once
TRIES = 20  # pieces of noise that may be silent
SUFFIXES = (".wav", ".flac", ".sph", ".ogg", ".opus", ".mp3", ".aiff", ".au")


@dataclass(frozen=True)
class Talker:
    """An utterance that others may be heard before."""

    speaker: str
    utterance: Utterance
    recording: RecordingEntry


@dataclass(frozen=True)
class Surroundings:
    """Rooms and noise.

    Attributes:
      seed, snr_db: of all draws; speech above noise, lowest and highest.
      rooms:   responses; none: they are drawn.
      noises:  recordings; none: pink noise, and babble of the talkers.
      talkers: of each group of speakers.  Only those of a speaker's own group babble behind him.
      group:   speaker -> group, for those that are not in group "".
    """

    seed: int
    snr_db: Tuple[float, float]
    rooms: Sequence[RecordingEntry] = ()
    noises: Sequence[RecordingEntry] = ()
    talkers: Mapping[str, Sequence[Talker]] = field(default_factory=dict)
    group: Mapping[str, str] = field(default_factory=dict)

    def heard(self, samples: np.ndarray, key: str, speaker: str) -> np.ndarray:
        """(n,) float32 at 16 kHz, not silent -> as many, from afar; in [-1, 1].

        Args:
          key: of all draws, beside the seed: the id of the copy.
        Raises: UserError: a room or noise that cannot be used; the file is named.
        """
        rng = random.Random(acoustics.hashed(f"{self.seed}/{key}"))
        close = _integers(samples)
        wet = acoustics.convolve(close, self._response(rng))
        power = acoustics.power(wet)
        noise = self._noise(rng, len(close), speaker)
        mixed = acoustics.add_noise(wet, power, noise, rng.uniform(*self.snr_db))
        level = float(np.abs(samples).max()) / np.abs(close).max() * (acoustics.power(close) / power) ** 0.5
        return (mixed * min(level, 1.0 / np.abs(mixed).max())).astype(np.float32)

    def sources(self) -> Dict[str, Path]:
        """name, which says nothing of where a folder is -> file, of all rooms and noises that are no pipes."""
        named = [(f"room {one.id}", one) for one in self.rooms] + [(f"noise {one.id}", one) for one in self.noises]
        return {name: one.file[0] for name, one in named if not one.is_pipe}

    def _response(self, rng: random.Random) -> np.ndarray:
        seed, seconds, late = rng.getrandbits(63), rng.uniform(*ROOM_SECONDS), rng.uniform(*LATE_DB)
        if not self.rooms:
            return acoustics.room_response(SAMPLING_RATE, seed, seconds, late)
        return _room(self.rooms[seed % len(self.rooms)])

    def _noise(self, rng: random.Random, count: int, speaker: str) -> np.ndarray:
        if self.noises:
            return self._of_files(rng, count)
        group = self.talkers.get(self.group.get(speaker, ""), ())
        others = [talker for talker in group if talker.speaker != speaker] or group
        babble = np.zeros(count, np.int64)
        for _ in range(rng.randint(*TALKERS) if others and rng.random() < 0.5 else 0):
            babble += _piece(rng, _talk(rng.choice(others)), count)
        return babble if babble.any() else acoustics.noise(count, rng.getrandbits(63), tilt=1.0)

    def _of_files(self, rng: random.Random, count: int) -> np.ndarray:
        for _ in range(TRIES):
            entry = rng.choice(self.noises)
            piece = _piece(rng, _sound(entry), count)
            if acoustics.power(piece) > 0:
                return piece
        raise UserError(entry.where, f"noise is silent, as are {TRIES - 1} more pieces drawn", "noise", "remove it")


def surroundings(
    *,
    seed: int,
    snr_db: Tuple[float, float],
    talkers: Optional[KaldiDataDir] = None,
    groups: Sequence[Iterable[str]] = (),
    noise_dir: Optional[Path] = None,
    rir_dir: Optional[Path] = None,
    apart: Iterable[Path] = (),
    allow_pipes: bool = False,
) -> Surroundings:
    """What stands above, from folders.

    Args:
      talkers: the training set, whose utterances babble where there is no ``noise_dir``.
      groups:  of its speakers, which never hear each other (folds of a cross-validation); default: one group.
      apart:   data directories whose speakers and recordings must not be in ``noise_dir``: what is tested on.
    Raises:
      UserError: a folder without audio, noise of a speaker or recording of ``apart``, a wrong range.
    """
    if not snr_db[0] <= snr_db[1]:
        raise UserError("snr_db", f"{snr_db[0]:g} > {snr_db[1]:g}", "the lowest, then the highest")
    noises = sounds(noise_dir, allow_pipes) if noise_dir else []
    if noise_dir:
        _refuse_tested(noise_dir, noises, apart)
    group = {speaker: str(number) for number, speakers in enumerate(groups) for speaker in speakers}
    of_group: Dict[str, List[Talker]] = {}
    if talkers is not None and not noises:
        for one in talkers.utterances:
            talker = Talker(one.speaker, one, talkers.recordings[one.recording_id])
            of_group.setdefault(group.get(one.speaker, ""), []).append(talker)
    chosen = {name: random.Random(seed).sample(all_, min(len(all_), MOST_TALKERS)) for name, all_ in of_group.items()}
    rooms = sounds(rir_dir, allow_pipes) if rir_dir else []
    return Surroundings(seed, snr_db, tuple(rooms), tuple(noises), chosen, group)


def sounds(folder: Path, allow_pipes: bool = False) -> List[RecordingEntry]:
    """The recordings of a Kaldi data directory, or the audio files below a folder.  UserError: there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(folder, "no such folder", "a Kaldi data directory, or a tree of audio files", "check the path")
    if (folder / "wav.scp").is_file():
        ids = list(read_table(folder / "wav.scp"))
        entries = find_recordings(folder, ids, allow_pipes)
        for key, entry in zip(ids, entries):
            if entry is None:
                raise UserError(folder / "wav.scp", f"{key} is gone, or a pipe", "audio files", "or --allow-pipes")
        return [entry for entry in entries if entry is not None]
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(folder, "holds no audio", f"files that end in {' '.join(SUFFIXES)}, or wav.scp")
    return [RecordingEntry(path.relative_to(folder).as_posix(), str(path), False, str(path)) for path in found]


def write_far_dir(
    data_dir: Path,
    out_dir: Path,
    place: Surroundings,
    num_jobs: int = 1,
    allow_pipes: bool = False,
    max_bad_fraction: float = MAX_BAD_FRACTION,
) -> Dict[str, str]:
    """A Kaldi data directory like another one, with the same ids, heard from afar: 16-bit WAV in ``<out_dir>_audio``.

    Returns: {utterance id: reason} of what was left out, as stage 1 leaves it out.
    Raises: UserError: a defect of ``data_dir``, too much bad audio, a room or noise that cannot be used.
    """
    data = read_data_dir(data_dir, allow_pipes, "none")
    audio = out_dir.with_name(f"{out_dir.name}_audio")
    names = {one.id: f"{number:06d}.wav" for number, one in enumerate(data.utterances, 1)}
    left_out: Dict[str, str] = {}
    with atomic.new_dir(audio) as made:
        work = [(data.recordings[one.recording_id], one, made / names[one.id]) for one in data.utterances]
        work.sort(key=lambda item: (item[0].id, item[1].start))  # each recording is read once
        jobs = [(work[start : start + PART], place) for start in range(0, len(work), PART)]
        with ProgressBar(out_dir.name, len(work), "utt") as progress:
            for reasons, seen in in_processes(_write_far, jobs, num_jobs):
                left_out.update(reasons)
                progress.update(seen)
        check_left_out(data.path, len(work), left_out, max_bad_fraction)
    kept = [one for one in data.utterances if one.id not in left_out]
    write_data_dir(
        out_dir,
        wav_scp={one.id: f"../{audio.name}/{names[one.id]}" for one in kept},
        text={one.id: one.text for one in kept},
        utt2spk={one.id: one.speaker for one in kept},
    )
    return left_out


def _write_far(
    job: Tuple[List[Tuple[RecordingEntry, Utterance, Path]], Surroundings],
) -> Tuple[Dict[str, str], int]:
    work, place = job
    reasons = {}
    for entry, utterance, path in work:
        try:
            audio = _read(entry)
            close = resample(span_of(utterance, audio), audio.rate)
        except BadAudio as error:
            reasons[utterance.id] = str(error)
            continue
        far = place.heard(close, f"{utterance.id}_far1", utterance.speaker)
        soundfile.write(path, np.rint(far * np.float32(acoustics.FULL_SCALE)).astype("<i2"), SAMPLING_RATE)
    return reasons, len(work)


def _refuse_tested(noise_dir: Path, noises: Sequence[RecordingEntry], apart: Iterable[Path]) -> None:
    table = noise_dir / "utt2spk"
    speakers = {value for value, _ in read_table(table).values()} if table.is_file() else set()
    files = {_file(entry) for entry in noises}
    for folder in apart:
        data = read_data_dir(folder, allow_pipes=True)
        same = [f"speaker {speaker}" for speaker in data.speakers if speaker in speakers]
        same += [entry.source for entry in data.recordings.values() if _file(entry) in files]
        if same:
            advice = "remove it: what is tested must not be heard behind other speech"
            raise UserError(noise_dir, f"holds {same[0]}, which is in {folder}, too", "noise of others", advice)


def _file(entry: RecordingEntry) -> str:
    return entry.source if entry.is_pipe else os.path.realpath(entry.file[0])


@functools.lru_cache(maxsize=1)
def _read(entry: RecordingEntry) -> Audio:
    return read_recording(entry)


@functools.lru_cache(maxsize=8)
def _sound(entry: RecordingEntry) -> np.ndarray:
    """All of a recording of noise, as integers."""
    try:
        audio = read_recording(entry)
    except BadAudio as error:
        raise UserError(entry.where, f"noise: {error}", "audio that libsndfile reads", "remove it") from None
    return _integers(resample(audio.samples, audio.rate))


@functools.lru_cache(maxsize=64)
def _room(entry: RecordingEntry) -> np.ndarray:
    """A response from its loudest sample on, which is 1."""
    try:
        audio = read_recording(entry)
        if is_silent(audio.samples):
            raise BadAudio("is silent")
    except BadAudio as error:
        raise UserError(entry.where, f"room response: {error}", "audio that libsndfile reads", "remove it") from None
    response = resample(audio.samples, audio.rate).astype(np.float64)
    peak = int(np.abs(response).argmax())
    response = response[peak:] / response[peak]
    late = float((response[len(response) // 2 :] ** 2).sum() / (response**2).sum())
    if late > LATEST:
        problem = f"is no room response: {100 * late:.0f} % of its energy lie in its second half"
        advice = "name a folder of responses alone (of RIRS_NOISES: simulated_rirs)"
        raise UserError(entry.where, problem, f"at most {100 * LATEST:g} %", advice)
    return response


@functools.lru_cache(maxsize=64)
def _talk(talker: Talker) -> np.ndarray:
    """What a talker says, as integers; nothing where the audio is bad, which stage 1 says."""
    try:
        audio = read_recording(talker.recording)
        return _integers(resample(span_of(talker.utterance, audio), audio.rate))
    except BadAudio:
        return np.zeros(1, np.int64)


def _integers(samples: np.ndarray) -> np.ndarray:
    """(n,) float32 -> int64, the largest of them ``PEAK``; silence stays silent."""
    peak = float(np.abs(samples).max())
    return np.rint(samples.astype(np.float64) * (PEAK / peak if peak > 0 else 0.0)).astype(np.int64)


def _piece(rng: random.Random, samples: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the samples from a place that is drawn; at their end they begin again."""
    if len(samples) > count:
        start = rng.randrange(len(samples) - count + 1)
        return samples[start : start + count]
    return np.resize(np.roll(samples, -rng.randrange(len(samples))), count)

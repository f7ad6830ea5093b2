"""The embedded default corpus: speech made on this machine by espeak-ng -> Kaldi data directories.

About an hour of train, 3 minutes of dev and 7 of test: 16 kHz, utterances of 1.5 to 6 seconds, sentences of
a small grammar, English accents, and

  * no voice of dev or test in train (``synthesis/voices.py``),
  * no sentence of dev or test in train (``synthesis/grammar.py``),
  * rate, pitch, pauses and level that vary, half of the utterances in a small room, background noise
    15 to 30 dB below the speech (``synthesis/acoustics.py``, which says why it is not Lhotse's).

The audio is a function of the seed and the part's size alone: not of the number of jobs, the process or the
library versions.  Audio goes to ``<out_dir>/wav`` in one step when all of it is made, the data
directories come last: what was interrupted never looks finished.
"""

import os
import random
import shutil
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np

from rnnt_kd import atomic
from rnnt_kd.children import in_processes
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.data.synthesis import acoustics, espeak, grammar
from rnnt_kd.data.synthesis.voices import Speaker, speakers
from rnnt_kd.errors import UserError
from rnnt_kd.progress_bar import ProgressBar

OPTIONS = {
    "minutes": "60",  # of train
    "dev_minutes": "3",  # never more than train
    "test_minutes": "7",  # never more than train
    "num_jobs": "0",  # processes; 0 = one a processor, at most 8
}
SHORTEST, LONGEST = 1.5, 6.0  # seconds
_MEAN_SECONDS = 2.65  # of an utterance, measured: turns minutes into a number of utterances
_UTTERANCES_A_TASK = 8


def prepare(corpus_dir: Optional[Path], out_dir: Path, *, seed: int, options: Dict[str, str]) -> List[Path]:
    """Make ``out_dir/{train,dev,test}`` and ``out_dir/wav``.

    Args:
      corpus_dir: must be None: nothing is read.
      out_dir:    e.g. ``data/synth``.
      seed:       of everything but the split of the voices, which is fixed.
      options:    see ``OPTIONS``; values are numbers.
    Returns: the three directories.
    Raises: UserError for a wrong value, a ``corpus_dir``, a missing espeak-ng.
    """
    if corpus_dir is not None:
        problem = f"found {corpus_dir}, but the corpus synth is made here"
        raise UserError("--corpus-dir", problem, "no --corpus-dir", "remove the option")
    sizes, num_jobs = _read_options(options)
    out_dir = Path(out_dir).absolute()
    parts = {part: _plan(part, minutes, seed) for part, minutes in sizes.items()}
    audio = out_dir / "wav"
    with atomic.new_dir(audio) as made:
        for part, tasks in parts.items():
            for task in tasks:
                (made / part / task.speaker.id).mkdir(parents=True, exist_ok=True)
        texts = dict(_make_all([task for tasks in parts.values() for task in tasks], made, num_jobs))
        for part in parts:  # older directories would not fit the new audio
            shutil.rmtree(out_dir / part, ignore_errors=True)
    return [
        write_data_dir(
            out_dir / part,
            wav_scp={task.id: audio / task.file_name for task in tasks},
            text={task.id: texts[task.id] for task in tasks},
            utt2spk={task.id: task.speaker.id for task in tasks},
        )
        for part, tasks in parts.items()
    ]


@dataclass(frozen=True)
class Task:
    """One utterance to make.  All that is random in it follows from ``key``."""

    part: str
    speaker: Speaker
    number: int
    key: str

    @property
    def id(self) -> str:
        return f"{self.speaker.id}-{self.number:05d}"

    @property
    def file_name(self) -> Path:
        return Path(self.part, self.speaker.id, f"{self.id}.wav")


def make_utterance(task: Task) -> Tuple[str, np.ndarray]:
    """The sentence, and the samples ``(n,)`` int16 at 16 kHz."""
    for attempt in range(1000):
        rng = random.Random(acoustics.hashed(f"{task.key}/{attempt}"))
        sentence = grammar.draw_sentence(rng)
        if grammar.part_of(sentence) != task.part:
            continue
        samples = _record(sentence, task.speaker, rng)
        if SHORTEST <= len(samples) / SAMPLING_RATE <= LONGEST:
            return sentence, samples
    raise AssertionError(f"{task.id}: no sentence of the right length in 1000 draws")


def _record(sentence: str, speaker: Speaker, rng: random.Random) -> np.ndarray:
    prosody = espeak.Prosody(
        rate=rng.randint(140, 200),
        pitch=rng.randint(35, 65),
        range=rng.randint(30, 70),
        word_gap=rng.choice([0, 0, 0, 1, 2, 3]),
    )
    spoken = espeak.speak(
        grammar.spoken_form(sentence, rng), speaker.accent, speaker.variant, prosody, seed=rng.getrandbits(31)
    )
    speech = acoustics.resample(spoken.astype(np.int64), espeak.SAMPLING_RATE, SAMPLING_RATE)
    speech = acoustics.set_peak(acoustics.trim(speech, margin=SAMPLING_RATE // 50), 20000)
    speech_power = acoustics.power(speech)
    before, after = (int(rng.uniform(0.10, 0.35) * SAMPLING_RATE) for _ in range(2))
    signal_ = np.concatenate([np.zeros(before, np.int64), speech, np.zeros(after, np.int64)])
    if rng.random() < 0.5:
        seed, decay, late = rng.getrandbits(63), rng.uniform(0.1, 0.35), rng.uniform(-15.0, -6.0)
        signal_ = acoustics.convolve(signal_, acoustics.room_response(SAMPLING_RATE, seed, decay, late))
    background = acoustics.noise(len(signal_), rng.getrandbits(63), tilt=rng.uniform(0.0, 1.5))
    signal_ = acoustics.add_noise(signal_, speech_power, background, snr_db=rng.uniform(15.0, 30.0))
    return acoustics.set_peak(signal_, int(acoustics.FULL_SCALE * rng.uniform(0.15, 0.9))).astype(np.int16)


def _plan(part: str, minutes: float, seed: int) -> List[Task]:
    """The utterances of a part, dealt to its speakers in turn; a smaller part is the beginning of a larger one."""
    everyone = speakers(part)
    random.Random(acoustics.hashed(f"{seed}/{part}/speakers")).shuffle(everyone)
    count = max(1, round(minutes * 60 / _MEAN_SECONDS))
    return [Task(part, everyone[number % len(everyone)], number, f"{seed}/{part}/{number}") for number in range(count)]


def _make_all(tasks: List[Task], folder: Path, num_jobs: int) -> Iterator[Tuple[str, str]]:
    """Write ``folder/<file name>`` for each task; yields (utterance id, sentence) as they are made."""
    chunks = [(folder, tasks[start : start + _UTTERANCES_A_TASK]) for start in range(0, len(tasks), _UTTERANCES_A_TASK)]
    with ProgressBar("synth", len(tasks), "utt") as bar:
        for sentences in in_processes(_make_chunk, chunks, num_jobs):
            bar.update(len(sentences))
            yield from sentences


def _make_chunk(chunk: Tuple[Path, List[Task]]) -> List[Tuple[str, str]]:
    folder, tasks = chunk
    sentences = []
    for task in tasks:
        sentence, samples = make_utterance(task)
        with wave.open(str(folder / task.file_name), "wb") as stream:
            stream.setnchannels(1)
            stream.setsampwidth(2)
            stream.setframerate(SAMPLING_RATE)
            stream.writeframes(samples.astype("<i2").tobytes())
        sentences.append((task.id, sentence))
    return sentences


def _read_options(options: Dict[str, str]) -> Tuple[Dict[str, float], int]:
    """``{part: minutes}`` and the number of processes."""
    values = {}
    for name, default in OPTIONS.items():
        text = options.get(name, default)
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = -1.0
        is_count = name == "num_jobs"
        value = values[name]
        if not (0 <= value < 100000 and (value == int(value) if is_count else value > 0)):
            expected = "a whole number, 0 for one a processor" if is_count else "a number of minutes above 0"
            raise UserError(f"--option {name}", f'found "{text}"', expected)
    train = values["minutes"]
    sizes = {"train": train, "dev": min(train, values["dev_minutes"]), "test": min(train, values["test_minutes"])}
    return sizes, int(values["num_jobs"]) or min(8, len(os.sched_getaffinity(0)))

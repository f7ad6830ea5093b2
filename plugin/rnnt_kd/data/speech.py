"""A Kaldi data directory -> the samples of each utterance, and their filter banks, in memory; or of a file.

Stage 1 writes features once for many trainings; what checks an exported model or measures its speed
starts from the audio, as a device does: no lilcom rounding, no manifest.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import numpy as np
import torch
from lhotse import Fbank
from lhotse.augmentation.torchaudio import get_or_create_resampler

from rnnt_kd.data.audio import SILENT, Audio, BadAudio, is_silent, read_recording
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.kaldi_dir import RecordingEntry, read_data_dir
from rnnt_kd.data.utterance_audio import cut_of, recording_manifest, span_of
from rnnt_kd.errors import UserError


@dataclass(frozen=True)
class Speech:
    """One utterance.

    Attributes:
      samples: (n,) float32 at 16 kHz, in [-1, 1]; None where the audio cannot be used.
      reason:  why it cannot, in words.
    """

    id: str
    text: str
    speaker: str
    samples: Optional[np.ndarray]
    reason: str = ""

    @property
    def heard(self) -> np.ndarray:
        """The samples of usable audio."""
        assert self.samples is not None, self.reason
        return self.samples

    @property
    def seconds(self) -> float:
        return 0.0 if self.samples is None else len(self.samples) / SAMPLING_RATE


def read_speech(data_dir: Path, allow_pipes: bool = False, unlabelled: bool = False) -> Iterator[Speech]:
    """The utterances in the order of their ids, each read when it is asked for; what stage 1 would leave out
    comes without samples.  ``unlabelled``: there may be no ``text``.

    Raises: UserError: a defect of the data directory (see ``kaldi_dir``).
    """
    data = read_data_dir(data_dir, allow_pipes, unlabelled=unlabelled)
    read_id, audio = "", Audio(np.zeros(0, dtype=np.float32), SAMPLING_RATE)
    for utterance in data.utterances:
        try:
            if read_id != utterance.recording_id:
                audio = read_recording(data.recordings[utterance.recording_id])
                read_id = utterance.recording_id
            manifest = recording_manifest(data.recordings[utterance.recording_id], len(audio.samples), audio.rate)
            _, signal_16k = cut_of(utterance, manifest, span_of(utterance, audio), audio.rate, 1.0)
        except BadAudio as error:
            yield Speech(utterance.id, utterance.text, utterance.speaker, None, str(error))
        else:
            yield Speech(utterance.id, utterance.text, utterance.speaker, signal_16k[0])


def load_samples(path: Path) -> np.ndarray:
    """(n,) float32 samples at 16 kHz of an audio file of any rate; of several channels the first.

    Raises: UserError: stage 1 would not take it, for whatever reason but silence in all of its channels.
    """
    try:
        audio = read_recording(RecordingEntry(str(path), str(path), False, str(path)))
        if audio.elsewhere and is_silent(audio.samples):
            raise BadAudio(SILENT + audio.elsewhere)
        return resample(audio.samples, audio.rate)
    except BadAudio as error:
        raise UserError(path, str(error), "an audio file that libsndfile reads") from None


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """(n,) float32 samples at ``rate`` Hz -> at 16 kHz, as stage 1 does it."""
    if rate == SAMPLING_RATE or not len(samples):
        return samples
    return get_or_create_resampler(rate, SAMPLING_RATE)(torch.from_numpy(samples)[None])[0].numpy()


@functools.cache
def _front_end() -> Fbank:
    """Its tables take longer than the features of two seconds."""
    return Fbank()


def filter_banks(samples: np.ndarray) -> torch.Tensor:
    """(n,) float32 samples at 16 kHz -> (T, 80) float32 log-mel energies every 10 ms, T = round(n / 160), at least 1.

    Lhotse's default ``Fbank()``, which equals sherpa-onnx's front end within 1e-3.
    """
    return torch.as_tensor(_front_end().extract(np.ascontiguousarray(samples)[None], SAMPLING_RATE))

"""Stage 1: a Kaldi data directory -> Lhotse cuts with filter banks on the disk.

``<out_dir>/<name>.jsonl.gz``       one cut an utterance and speed; id = utterance id (+ ``_sp0.9``); it holds the
                                    SHA-256 of its features, which are held against it whenever they are read
``<out_dir>/<name>_feats/*.lca``    80 log-mel filter banks, every 10 ms (lilcom: rounded to 1/32)
``<out_dir>/<name>.left_out.json``  {utterance id: reason} of what was left out

The features are Lhotse's default ``Fbank()`` at 16 kHz, which equals sherpa-onnx's front end; other
rates are resampled, of several channels the first is taken.  Bad audio (truncated, empty, NaN, silent,
a segment outside its recording) is counted, named and left out; more than ``max_bad_fraction`` of it
is an error, so that a broken corpus does not pass for a small one.

The result does not depend on ``num_jobs``.  The cuts are written last and atomically: where they are,
everything is.
"""

import gzip
import json
import multiprocessing
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from lhotse import Fbank, LilcomChunkyWriter, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.augmentation import Speed
from lhotse.augmentation.torchaudio import get_or_create_resampler
from lhotse.features.base import Features
from lhotse.utils import compute_num_samples

from rnnt_kd.atomic import replace_dir, write_bytes, write_text
from rnnt_kd.children import in_processes
from rnnt_kd.data.audio import SILENT, Audio, BadAudio, is_silent, read_recording
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.cuts import FEATURES_DIGEST, stored_digest
from rnnt_kd.data.kaldi_dir import KaldiDataDir, RecordingEntry, Utterance, read_data_dir
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.progress_bar import ProgressBar
from rnnt_kd.record import json_digest

SEGMENT_OVERSHOOT = 0.5  # seconds that a segment may end after its recording (clipped), as in Kaldi
SHORTEST = 0.025  # seconds: one window
MAX_BAD_FRACTION = 0.05  # of utterances, that may have bad audio
LARGE_SHARE = 0.05  # of the hours: a reason that takes more is told


@dataclass(frozen=True)
class FeaturesSummary:
    """Cuts that ``compute_features`` made."""

    cuts_path: Path
    num_utterances: int
    num_cuts: int  # utterances times speeds
    hours: float  # of all cuts
    left_out: Dict[str, str]  # utterance id -> reason
    large: List[str]  # for each reason that takes much of the hours, how much, in words
    short: List[str]  # recordings that end a little before their header says
    archives: Dict[str, str]  # file below out_dir -> digest of its cuts' digests: nothing is hashed twice


def compute_features(
    data_dir: Path,
    out_dir: Path,
    name: str,
    speed_perturb: Sequence[float] = (1.0,),
    num_jobs: int = 1,
    allow_pipes: bool = False,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    normalization: str = "nfc",
) -> FeaturesSummary:
    """Compute the features of one data directory.

    Args:
      data_dir:         a Kaldi data directory; see ``kaldi_dir``.
      out_dir, name:    the cuts go to ``<out_dir>/<name>.jsonl.gz``.
      speed_perturb:    speeds; each gives one cut an utterance.
      num_jobs:         processes.
      allow_pipes:      run the shell pipes of ``wav.scp``.
      max_bad_fraction: of the utterances, that may be left out for bad audio (silence not counted).
      normalization:    of the transcripts; see ``text.normalization``.
    Raises:
      UserError: a defect of the data directory, a wrong speed, too much bad audio, nothing left,
        another process that is writing the same result.
    """
    out_dir = Path(out_dir)
    speeds = _checked_speeds(speed_perturb)
    data = read_data_dir(data_dir, allow_pipes, normalization)
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(str(out_dir / f".{name}.lock"), timeout=0):
            return _compute(data, out_dir, name, speeds, num_jobs, max_bad_fraction)
    except Timeout:
        advice = "wait for it, or choose another folder"
        raise UserError(out_dir, f"another process is writing {name}", "one at a time", advice) from None


def _compute(
    data: KaldiDataDir, out_dir: Path, name: str, speeds: List[float], num_jobs: int, max_bad_fraction: float
) -> FeaturesSummary:
    _check_ids(data.utterances, speeds)
    by_recording: Dict[str, List[Utterance]] = {}
    for utterance in data.utterances:
        by_recording.setdefault(utterance.recording_id, []).append(utterance)
    work = [(data.recordings[key], utterances) for key, utterances in by_recording.items()]
    # The parts depend on the number of recordings only, so the files do not depend on num_jobs.
    size = min(max(len(work) // 64, 20), 1000)
    parts = [work[start : start + size] for start in range(0, len(work), size)]

    cuts_path, feats_dir = out_dir / f"{name}.jsonl.gz", out_dir / f"{name}_feats"
    made = out_dir / f".{name}_feats.tmp"
    shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
    made.mkdir()
    try:
        cuts: List[MonoCut] = []
        left_out: Dict[str, BadAudio] = {}
        short: List[str] = []
        jobs = [(index, part, made, feats_dir, speeds) for index, part in enumerate(parts)]
        with ProgressBar(f"features of {name}", len(data.utterances), "utt") as progress:
            for part_cuts, part_left_out, part_short, seen in in_processes(_features_of_part, jobs, num_jobs):
                cuts.extend(part_cuts)
                left_out.update(part_left_out)
                short += part_short
                progress.update(seen)
        reasons = {key: str(error) for key, error in left_out.items()}
        _check_left_out(data.path, len(data.utterances), reasons, max_bad_fraction)
        # From here on only renames: the old result goes, the new one comes, the cuts last.
        cuts_path.unlink(missing_ok=True)
        replace_dir(made, feats_dir)
        listed = json.dumps(reasons, indent=1, sort_keys=True, ensure_ascii=False)
        write_text(out_dir / f"{name}.left_out.json", listed + "\n")
        lines = "".join(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in cuts)
        write_bytes(cuts_path, gzip.compress(lines.encode("utf-8"), compresslevel=6, mtime=0))
    finally:
        shutil.rmtree(made, ignore_errors=True)
    seconds = sum(cut.duration for cut in cuts)
    large = _large_shares(data.utterances, left_out, seconds / len(speeds))
    taken = len(data.utterances) - len(left_out)
    archives: Dict[str, List[str]] = {f"{feats_dir.name}/feats-{index:05d}.lca": [] for index in range(len(parts))}
    for cut in cuts:
        archives[f"{feats_dir.name}/{Path(cut.features.storage_path).name}"].append(cut.custom[FEATURES_DIGEST])
    digests = {name: json_digest(of_cuts) for name, of_cuts in archives.items()}
    return FeaturesSummary(cuts_path, taken, len(cuts), seconds / 3600, reasons, large, short, digests)


def archive_digest(cuts_path: Path, archive: Path) -> str:
    """What ``FeaturesSummary.archives`` has for a file, from its bytes; "" where its cuts cannot be read."""
    try:
        cuts = [cut for cut in open_source(cuts_path) if Path(cut.features.storage_path).name == archive.name]
    except UserError:
        return ""
    with open(archive, "rb") as file:
        return json_digest([stored_digest(file, cut.features.storage_key) for cut in cuts])


def _checked_speeds(speed_perturb: Sequence[float]) -> List[float]:
    speeds = [float(speed) for speed in speed_perturb]
    for speed in speeds:
        if not 0.5 <= speed <= 2.0:
            raise UserError("speed_perturb", f"found {speed}", "speeds from 0.5 to 2.0")
    if not speeds or len(set(speeds)) != len(speeds):
        raise UserError("speed_perturb", f"found {speeds}", "different speeds, at least one")
    return speeds


def _check_ids(utterances: List[Utterance], speeds: List[float]) -> None:
    seen: Dict[str, Utterance] = {}
    for utterance in utterances:
        for speed in speeds:
            cut_id = utterance.id if speed == 1.0 else f"{utterance.id}_sp{speed}"
            other = seen.setdefault(cut_id, utterance)
            if other is not utterance:
                problem = f'"{cut_id}" would name two cuts: of "{other.id}" and of "{utterance.id}", at other speeds'
                raise UserError(utterance.where, problem, "ids without _sp and a speed at the end", "rename one")


def _check_left_out(data_dir: Path, total: int, left_out: Dict[str, str], max_bad_fraction: float) -> None:
    bad = {key: reason for key, reason in left_out.items() if not reason.startswith(SILENT)}
    first = next((f"{key} {reason}" for key, reason in (bad or left_out).items()), "")
    if len(left_out) == total:
        raise UserError(data_dir, f"no utterance can be used ({total} left out; {first})", "usable audio")
    if len(bad) > max_bad_fraction * total:
        problem = f"{len(bad)} of {total} utterances have bad audio (the first: {first})"
        advice = "repair or remove them, or raise --max-bad-fraction"
        raise UserError(data_dir, problem, f"at most {100 * max_bad_fraction:g} %", advice)


def _large_shares(utterances: Sequence[Utterance], left_out: Dict[str, BadAudio], seconds: float) -> List[str]:
    """Reasons that take much of the hours, those that differ in numbers as one; ``seconds``: of what is not left out.

    Where nobody knows how long an utterance is, it counts as one of the usual length.
    """
    usual = seconds / max(len(utterances) - len(left_out), 1)
    alike: Dict[str, List[Tuple[str, float]]] = {}
    for item in utterances:
        if item.id in left_out:
            lasts = left_out[item.id].seconds if item.end is None else item.end - item.start
            kind = re.sub(r"[0-9][0-9.e+-]*", "", str(left_out[item.id]))
            alike.setdefault(kind, []).append((item.id, lasts or usual))
    shares = [(sum(lasts for _, lasts in items), items[0][0], len(items)) for items in alike.values()]
    total = seconds + sum(share for share, _, _ in shares)
    return [
        f"{100 * share / total:.0f} % of the hours: {count} utterances, {first} {left_out[first]}"
        for share, first, count in shares
        if share > LARGE_SHARE * total
    ]


_Part = Tuple[int, List[Tuple[RecordingEntry, List[Utterance]]], Path, Path, List[float]]


def _features_of_part(part: _Part) -> Tuple[List[MonoCut], Dict[str, BadAudio], List[str], int]:
    """Features of some recordings, in one file of their own: cuts, what was left out, recordings that are a little
    short, utterances seen."""
    if multiprocessing.parent_process() is not None:  # one of several
        torch.set_num_threads(1)
    index, work, made, final, speeds = part
    extractor = Fbank()
    cuts: List[MonoCut] = []
    left_out: Dict[str, BadAudio] = {}
    short: List[str] = []
    seen = 0
    with LilcomChunkyWriter(str(made / f"feats-{index:05d}.lca")) as writer, torch.no_grad():
        stored_in = os.path.abspath(final / Path(writer.storage_path).name)
        for recording, utterances in work:
            seen += len(utterances)
            try:
                audio = read_recording(recording)
            except BadAudio as error:
                left_out.update({utterance.id: error for utterance in utterances})
                continue
            rate = audio.rate
            short += [recording.id] if audio.missing else []
            manifest = _recording_manifest(recording, len(audio.samples), rate)
            for utterance in utterances:
                try:
                    span = _span(utterance, audio)
                except BadAudio as error:
                    left_out[utterance.id] = error
                    continue
                for speed in speeds:
                    cut, signal_16k = _cut(utterance, manifest, span, rate, speed)
                    matrix = extractor.extract(signal_16k, SAMPLING_RATE)
                    key = writer.write(cut.id, matrix)
                    cut.features = _features_manifest(cut, matrix, extractor, stored_in, key)
                    cuts.append(cut)
    with open(made / Path(stored_in).name, "rb") as file:
        for cut in cuts:
            cut.custom = {FEATURES_DIGEST: stored_digest(file, cut.features.storage_key)}
    return cuts, left_out, short, seen


def _recording_manifest(recording: RecordingEntry, num_samples: int, rate: int) -> Recording:
    source = AudioSource("command" if recording.is_pipe else "file", channels=[0], source=recording.source)
    manifest = Recording(recording.id, [source], rate, num_samples, num_samples / rate)
    return manifest if rate == SAMPLING_RATE else manifest.resample(SAMPLING_RATE)


def _span(utterance: Utterance, audio: Audio) -> np.ndarray:
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


def _cut(
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


def _features_manifest(cut: MonoCut, matrix: np.ndarray, extractor: Fbank, path: str, key: str) -> Features:
    return Features(
        type=extractor.name,
        num_frames=matrix.shape[0],
        num_features=matrix.shape[1],
        frame_shift=extractor.frame_shift,
        sampling_rate=SAMPLING_RATE,
        start=cut.start,
        duration=cut.duration,
        storage_type=LilcomChunkyWriter.name,
        storage_path=path,
        storage_key=key,
        recording_id=cut.recording.id,
        channels=0,
    )

"""Stage 1: a Kaldi data directory -> Lhotse cuts with filter banks on the disk.

``<out_dir>/<name>.jsonl.gz``       one cut an utterance and speed; id = utterance id (+ ``_sp0.9``); it holds the
                                    SHA-256 of its features, which are held against it whenever they are read;
                                    ``data.far`` adds copies of each (+ ``_far1``), as long as it
``<out_dir>/<name>_feats/*.lca``    80 log-mel filter banks, every 10 ms (lilcom: rounded to 1/32)
``<out_dir>/<name>.left_out.json``  {utterance id: reason} of what was left out

The features are Lhotse's default ``Fbank()`` at 16 kHz, which equals sherpa-onnx's front end; other
rates are resampled, of several channels the first is taken.  Bad audio (truncated, empty, NaN, silent,
a segment outside its recording) is counted, named and left out; more than ``max_bad_fraction`` of it
is an error, so that a broken corpus does not pass for a small one.

The result does not depend on the number of jobs.  The cuts are written last and atomically: where they are,
everything is.
"""

import gzip
import json
import multiprocessing
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from filelock import Timeout
from lhotse import Fbank, LilcomChunkyWriter, MonoCut, Recording
from lhotse.features.base import Features

from rnnt_kd.atomic import replace_dir, temporary_prefix, write_bytes, write_json
from rnnt_kd.children import in_processes
from rnnt_kd.data.audio import BadAudio, read_recording
from rnnt_kd.data.audio_format import SAMPLING_RATE
from rnnt_kd.data.cuts import FEATURES_DIGEST
from rnnt_kd.data.far import Surroundings
from rnnt_kd.data.kaldi_dir import KaldiDataDir, RecordingEntry, Utterance, read_data_dir
from rnnt_kd.data.source import open_source
from rnnt_kd.data.stored_features import stored_digest
from rnnt_kd.data.utterance_audio import MAX_BAD_FRACTION, check_left_out, cut_of, recording_manifest, span_of
from rnnt_kd.errors import UserError
from rnnt_kd.parts import Parts
from rnnt_kd.progress_bar import ProgressBar
from rnnt_kd.record import Record, json_digest

LARGE_SHARE = 0.05  # of the hours: a reason that takes more is told


@dataclass(frozen=True)
class FeaturesSummary:
    """Cuts that ``compute_features`` made."""

    cuts_path: Path
    num_utterances: int
    num_cuts: int  # utterances times speeds, and far copies
    hours: float  # of all cuts
    left_out: Dict[str, str]  # utterance id -> reason
    large: List[str]  # for each reason that takes much of the hours, how much, in words
    short: List[str]  # recordings that end a little before their header says


def compute_features(
    data_dir: Path,
    out_dir: Path,
    name: str,
    speed_perturb: Sequence[float] = (1.0,),
    num_jobs: int = 1,
    allow_pipes: bool = False,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    normalization: str = "nfc",
    *,
    surroundings: Optional[Surroundings] = None,
    far_copies: int = 0,
    unlabelled: bool = False,
    job: Optional[int] = None,
    record: Optional[Record] = None,
) -> Optional[FeaturesSummary]:
    """Compute the features of one data directory.

    Args:
      data_dir:         a Kaldi data directory; see ``kaldi_dir``.
      out_dir, name:    the cuts go to ``<out_dir>/<name>.jsonl.gz``.
      speed_perturb:    speeds; each gives one cut an utterance.
      num_jobs:         processes; with ``job``, of how many jobs this is one.
      allow_pipes:      run the shell pipes of ``wav.scp``.
      max_bad_fraction: of the utterances, that may be left out for bad audio (silence not counted).
      normalization:    of the transcripts; see ``text.normalization``.
      unlabelled:       the data directory may have no ``text``; cuts without any have none.
      surroundings:     where the far copies of each cut are heard; one or more ``far_copies`` need them.
      job:              make its part of the work (1 ... num_jobs) in this process; who ends last writes the cuts.
      record:           of this work: what a killed run made is taken over, and it is finished with the cuts.
    Returns:
      None of a job that is not the last.
    Raises:
      UserError: a defect of the data directory, a wrong speed, too much bad audio, nothing left, bad noise,
        another process that is writing the same result.
    """
    out_dir = Path(out_dir)
    copies = _Copies(_checked_speeds(speed_perturb), surroundings, far_copies)
    data = read_data_dir(data_dir, allow_pipes, normalization, unlabelled)
    _check_ids(data.utterances, copies, unlabelled)
    work = _work(data)
    key = json_digest([record.identity(), record.sources]) if record is not None else "new"
    parts = Parts(out_dir, name, key, len(work), beside="feats/feats-{:05d}.lca")
    if job is not None:
        _make(parts, work, out_dir, name, copies, job, num_jobs)
        with parts.lock():
            return None if parts.missing() else _together(parts, data, out_dir, name, copies, max_bad_fraction, record)
    try:
        with parts.lock(timeout=0):
            try:
                _make(parts, work, out_dir, name, copies, None, num_jobs)
                return _together(parts, data, out_dir, name, copies, max_bad_fraction, record)
            finally:
                if record is None:  # who comes next cannot know what they are made of
                    parts.remove()
    except Timeout:
        advice = "wait for it, or choose another folder"
        raise UserError(out_dir, f"another process is writing {name}", "one at a time", advice) from None


_Work = List[Tuple[RecordingEntry, List[Utterance]]]  # a part of it


@dataclass(frozen=True)
class _Copies:
    """What becomes of an utterance: a cut for each speed, and ``far`` copies of each."""

    speeds: List[float]
    surroundings: Optional[Surroundings]
    far: int

    def ids(self, utterance_id: str) -> List[str]:
        at_speeds = [utterance_id if speed == 1.0 else f"{utterance_id}_sp{speed}" for speed in self.speeds]
        return [cut_id + ending for cut_id in at_speeds for ending in ("", *self.endings())]

    def endings(self) -> List[str]:
        return [f"_far{number}" for number in range(1, self.far + 1)]


def num_parts(num_recordings: int) -> int:
    """That the work is divided into: more jobs have nothing to do."""
    return -(-num_recordings // _part_size(num_recordings))


def _part_size(num_recordings: int) -> int:
    return min(max(num_recordings // 64, 20), 1000)


def _work(data: KaldiDataDir) -> List[_Work]:
    by_recording: Dict[str, List[Utterance]] = {}
    for utterance in data.utterances:
        by_recording.setdefault(utterance.recording_id, []).append(utterance)
    work = [(data.recordings[key], utterances) for key, utterances in by_recording.items()]
    size = _part_size(len(work))
    return [work[start : start + size] for start in range(0, len(work), size)]


def _make(
    parts: Parts, work: List[_Work], out_dir: Path, name: str, copies: _Copies, job: Optional[int], num_jobs: int
) -> None:
    """The parts that are missing, or those of one job."""
    todo = parts.missing(job, num_jobs)
    items = [(index, work[index], parts, out_dir / f"{name}_feats", copies) for index in todo]
    total = sum(len(utterances) for index in todo for _, utterances in work[index])
    whose = f"features of {name}" if job is None or num_jobs == 1 else f"features of {name}, job {job} of {num_jobs}"
    with ProgressBar(whose, total, "utt") as progress:
        for seen in in_processes(_features_of_part, items, num_jobs if job is None else 1):
            progress.update(seen)


def _together(
    parts: Parts,
    data: KaldiDataDir,
    out_dir: Path,
    name: str,
    copies: _Copies,
    max_bad_fraction: float,
    record: Optional[Record],
) -> FeaturesSummary:
    cuts_path, feats_dir = out_dir / f"{name}.jsonl.gz", out_dir / f"{name}_feats"
    try:
        lines: List[str] = []
        left_out: Dict[str, BadAudio] = {}
        short: List[str] = []
        durations: List[float] = []
        archives: Dict[str, str] = {}  # nothing is hashed twice
        for index, part in enumerate(parts.read()):
            lines += part["cuts"]
            left_out.update({key: BadAudio(*reason) for key, reason in part["left_out"].items()})
            short += part["short"]
            durations += part["seconds"]
            archives[f"{feats_dir.name}/{parts.beside(index).name}"] = json_digest(part["digests"])
        reasons = {key: str(error) for key, error in left_out.items()}
        check_left_out(data.path, len(data.utterances), reasons, max_bad_fraction)
        compressed = gzip.compress("".join(lines).encode("utf-8"), compresslevel=6, mtime=0)
        if record is not None:
            record.start()
        # From here on only renames: the old result goes, the new one comes, the cuts last.
        cuts_path.unlink(missing_ok=True)
        replace_dir(parts.dir / "feats", feats_dir)
        write_json(out_dir / f"{name}.left_out.json", reasons, sort_keys=True)
        write_bytes(cuts_path, compressed)
        if record is not None:
            record.finish(archives)
    finally:
        parts.remove()
    seconds = sum(durations)
    large = _large_shares(data.utterances, left_out, seconds / (len(copies.speeds) * (1 + copies.far)))
    taken = len(data.utterances) - len(left_out)
    return FeaturesSummary(cuts_path, taken, len(lines), seconds / 3600, reasons, large, short)


def original_id(cut_id: str) -> str:
    """Of the cut that a far copy is a copy of; of any other, its own."""
    return re.sub(r"_far[0-9]+$", "", cut_id)


def originals(cut_ids: Sequence[str]) -> Dict[str, str]:
    """Of each of these cuts, the id of the one that it is a copy of, at another speed or far; of others, its own."""
    known = set(cut_ids)
    at_own_speed = {name: re.sub(r"_sp[0-9.]+$", "", original_id(name)) for name in cut_ids}
    return {name: found if found in known else name for name, found in at_own_speed.items()}


def archive_digest(cuts_path: Path, archive: Path) -> str:
    """SHA-256 of those of its cuts' features, from its bytes, for a record; "" where its cuts cannot be read."""
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


def _check_ids(utterances: List[Utterance], copies: _Copies, unlabelled: bool) -> None:
    seen: Dict[str, Utterance] = {}
    for utterance in utterances:
        for cut_id in copies.ids(utterance.id):
            other = seen.setdefault(cut_id, utterance)
            if other is not utterance:
                problem = f'"{cut_id}" would name two cuts: of "{other.id}" and of "{utterance.id}", as copies'
                raise UserError(utterance.where, problem, "ids without _sp0.9 or _far1 at the end", "rename one")
    endings = r"_far[0-9]+" if copies.far else ""
    endings = r"_far[0-9]+|_sp[0-9.]+" if unlabelled else endings
    for utterance in utterances if endings else []:
        if re.search(rf"({endings})$", utterance.id):
            problem = f'"{utterance.id}" ends as the name of a copy'
            raise UserError(utterance.where, problem, "ids without _sp0.9 or _far1 at the end", "rename it")


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


def _features_of_part(item: Tuple[int, _Work, Parts, Path, _Copies]) -> int:
    """Features of some recordings, in one file of their own; returns how many utterances were seen."""
    if multiprocessing.parent_process() is not None:  # one of several
        torch.set_num_threads(1)
    index, work, parts, final, copies = item
    extractor = Fbank()
    cuts: List[MonoCut] = []
    left_out: Dict[str, BadAudio] = {}
    short: List[str] = []
    seen = 0
    made = parts.beside(index)
    made.parent.mkdir(parents=True, exist_ok=True)
    stored_in = os.path.abspath(final / made.name)
    temporary = parts.dir / f"{temporary_prefix(parts.dir / made.name)}lca"
    try:
        with LilcomChunkyWriter(str(temporary)) as writer, torch.no_grad():
            for recording, utterances in work:
                seen += len(utterances)
                try:
                    audio = read_recording(recording)
                except BadAudio as error:
                    left_out.update({utterance.id: error for utterance in utterances})
                    continue
                rate = audio.rate
                short += [recording.id] if audio.missing else []
                manifest = recording_manifest(recording, len(audio.samples), rate)
                for utterance in utterances:
                    try:
                        span = span_of(utterance, audio)
                    except BadAudio as error:
                        left_out[utterance.id] = error
                        continue
                    for cut, signal_16k in _heard(utterance, manifest, span, rate, copies):
                        matrix = extractor.extract(signal_16k, SAMPLING_RATE)
                        key = writer.write(cut.id, matrix)
                        cut.features = _features_manifest(cut, matrix, extractor, stored_in, key)
                        cuts.append(cut)
        with open(temporary, "rb") as file:
            for cut in cuts:
                cut.custom = {FEATURES_DIGEST: stored_digest(file, cut.features.storage_key)}
            os.fsync(file.fileno())
        os.replace(temporary, made)
    finally:
        temporary.unlink(missing_ok=True)
    values: Dict[str, Any] = {
        "cuts": [json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in cuts],
        "digests": [cut.custom[FEATURES_DIGEST] for cut in cuts],
        "seconds": [cut.duration for cut in cuts],
        "left_out": {key: [str(error), error.seconds] for key, error in left_out.items()},
        "short": short,
    }
    parts.write(index, values)
    return seen


def _heard(
    utterance: Utterance, recording: Recording, span: np.ndarray, rate: int, copies: _Copies
) -> Iterator[Tuple[MonoCut, np.ndarray]]:
    """Every copy of an utterance, as ``cut_of``."""
    for speed in copies.speeds:
        cut, signal_16k = cut_of(utterance, recording, span, rate, speed)
        yield cut, signal_16k
        for ending in copies.endings():
            supervisions = [replace(one, id=one.id + ending) for one in cut.supervisions]
            far_cut = replace(cut, id=cut.id + ending, supervisions=supervisions, features=None, custom=None)
            assert copies.surroundings is not None
            yield far_cut, copies.surroundings.heard(signal_16k[0], far_cut.id, utterance.speaker)[None]


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

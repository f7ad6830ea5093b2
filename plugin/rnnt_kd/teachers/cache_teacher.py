"""Stage 4: keep what distillation needs of the teacher, for every training utterance.

Shard i holds the cuts i * n to (i + 1) * n - 1 of the file, without those that no lattice can be
made of, and is computed by itself: so its bytes do not depend on which job makes it, on what was
there before, or on how often the work was interrupted.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Iterator, List, Sequence

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from rnnt_kd.data.audio_format import FRAMES_PER_SECOND
from rnnt_kd.data.dataset import read_batches
from rnnt_kd.data.selection import select
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.progress_bar import ProgressBar
from rnnt_kd.systems import store
from rnnt_kd.systems.store import refuse_decoding_only, weights_digest
from rnnt_kd.teachers.ensemble import Ensemble
from rnnt_kd.teachers.interface import Teacher, as_teacher
from rnnt_kd.teachers.shards import CacheFacts, Shard, digest_of_all, shard_indices, shard_path
from rnnt_kd.teachers.write_cache import Batch, why_not_finished, write_cache
from rnnt_kd.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CacheSettings:
    """Settings of a cache that its students must share; the same in ``teachers.shards.CacheFacts``."""

    prune_range: int
    rnnt_type: str
    temperature: float
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class CachedModel:
    """A teacher that fills a cache.

    where:            how it is called in messages.
    teacher:          in eval mode, on the device that it shall run on.
    digest:           of its weights.
    encoder_frames:   feature frames (N,) -> encoder frames (N,), int64.
    subsampling:      feature frames an encoder frame.
    lm_only_scale, am_only_scale:  of the smoothed loss that it was trained with.
    """

    where: object
    teacher: Teacher
    digest: str
    encoder_frames: Callable[[Tensor], Tensor]
    subsampling: int
    lm_only_scale: float
    am_only_scale: float


def our_teachers(teacher_dirs: Sequence[Path], tokenizer: Tokenizer, device: str) -> CachedModel:
    """One finished system, or the mean of several, on the lattice that the first would prune.

    UserError: as of ``_our_teacher``; or they have other frames."""
    models = [_our_teacher(folder, tokenizer, device) for folder in teacher_dirs]
    first = models[0]
    for other in models[1:]:
        if other.subsampling != first.subsampling:
            problem = f"{other.subsampling} feature frames an encoder frame"
            raise UserError(other.where, problem, f"{first.subsampling}, as {first.where} has")
    teacher = first.teacher if len(models) == 1 else Ensemble([model.teacher for model in models])
    return replace(first, teacher=teacher, digest=digest_of_all([model.digest for model in models]))


def _our_teacher(teacher_dir: Path, tokenizer: Tokenizer, device: str) -> CachedModel:
    """A finished system of ours.  UserError: none, or trained with another BPE model than ``tokenizer``."""
    refuse_decoding_only(teacher_dir)
    model, config = store.load_system(teacher_dir, device)
    for what, theirs, ours in (
        ("BPE model", config.bpe_checksum[:12], tokenizer.checksum[:12]),
        ("blank id", config.blank_id, tokenizer.blank_id),
    ):
        if theirs != ours:
            raise UserError(teacher_dir, f"trained with {what} {theirs}", f"{ours}, that of --bpe-dir")
    return CachedModel(
        teacher_dir, as_teacher(model), weights_digest(teacher_dir), model.encoder.output_lengths,
        model.encoder.subsampling_factor, config.training.lm_only_scale, config.training.am_only_scale,
    )  # fmt: skip


def cache_teacher(
    model: CachedModel,
    cuts: Path,
    tokenizer: Tokenizer,
    cache_dir: Path,
    settings: CacheSettings,
    *,
    shard_utterances: int = 2000,
    batch_seconds: float = 120.0,
    job: int = 1,
    num_jobs: int = 1,
    device: str = "cpu",
    backend_name: str = "auto",
    say: Callable[[str], None],
) -> None:
    """Make the shards of ``cache_dir`` that are missing, damaged, or made with something else.

    Args:
      batch_seconds:  audio a batch at most, padding included.
      job, num_jobs:  this process makes the shards job - 1, job - 1 + num_jobs, ...
      say:            takes a line for the user.
    Raises:
      UserError: teacher, BPE model and cuts do not fit together, or a posterior is not a number.
    """
    cache_dir = Path(cache_dir)
    get_backend(backend_name, torch.device(device))  # an unknown one is an error before anything is written
    work = _TeacherOnCuts(model, cuts, tokenizer, settings, shard_utterances, batch_seconds, device)
    cache_dir.mkdir(parents=True, exist_ok=True)
    own = range(job - 1, work.num_shards, num_jobs)
    reasons = {index: why_not_finished(cache_dir, work.facts, index, work.num_shards) for index in own}
    todo = [index for index in own if reasons[index]]
    _remove_surplus(cache_dir, work.num_shards, job, num_jobs)
    whose = f"teacher cache, job {job} of {num_jobs}" if num_jobs > 1 else "teacher cache"
    if not own:
        say(f"{whose}: nothing to do, the cache has {work.num_shards} shards ({cache_dir})")
        return
    if not todo:
        say(f"{whose}: finished already, skipped ({cache_dir})")
        return
    for reason in sorted(set(reasons.values()) - {"", "missing"}):
        named = [shard_path(cache_dir, index).name for index in todo if reasons[index] == reason]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        say(f"{whose}: makes {', '.join(named[:3])}{more} again: {reason}")
    total = sum(len(work.places(index)) for index in todo)
    say(f"{whose}: {len(todo)} of {len(own)} shards to make, {total} utterances; {work.selection.summary('cuts')}")
    with ProgressBar("teacher cache", total, "utterances") as progress:
        for index in _locked_in_turn(cache_dir, todo):
            is_made = write_cache(
                model.teacher,
                work.batches(index, progress.update),
                cache_dir,
                work.facts,
                shard=index,
                num_shards=work.num_shards,
                order=work.source.ids(work.places(index)),
                backend=backend_name,
                where=model.where,
            )
            if not is_made:  # another process was faster
                progress.update(len(work.places(index)))
    paths = [shard_path(cache_dir, index) for index in own]
    frames, size = sum(Shard(path).num_frames for path in paths), sum(path.stat().st_size for path in paths)
    each = f", {size / frames:.2f} bytes a frame" if frames else ""
    say(f"{whose}: finished, {frames} frames in {size / 1e6:.1f} MB{each} ({cache_dir})")


class _TeacherOnCuts:
    """The teacher, and the utterances in batches."""

    def __init__(
        self,
        model: CachedModel,
        cuts: Path,
        tokenizer: Tokenizer,
        settings: CacheSettings,
        shard_utterances: int,
        batch_seconds: float,
        device: str,
    ):
        self.cuts, self.batch_seconds, self.device = cuts, batch_seconds, torch.device(device)
        self.source, self.encode = open_source(cuts), tokenizer.encode
        self.num_shards = -(-len(self.source) // shard_utterances)
        self.selection = select(
            self.source,
            encode=tokenizer.encode,
            unk_id=tokenizer.unk_id,
            checksum=tokenizer.checksum,
            encoder_frames=model.encoder_frames,
            min_seconds=settings.min_seconds,
            max_seconds=settings.max_seconds,
            separate_repeats=False,
        )
        if self.selection.kept == 0:
            raise UserError(cuts, f"nothing is left ({self.selection.summary('cuts')})", "usable utterances")
        self.facts = CacheFacts(
            teacher=model.digest,
            bpe=tokenizer.checksum,
            cuts=self.source.digest,
            blank_id=tokenizer.blank_id,
            subsampling=model.subsampling,
            lm_only_scale=model.lm_only_scale,
            am_only_scale=model.am_only_scale,
            shard_utterances=shard_utterances,
            **asdict(settings),
        )

    def places(self, index: int) -> List[int]:
        """Places in the source of the utterances of a shard."""
        size = self.facts.shard_utterances
        kept = self.selection.why[index * size : (index + 1) * size] == 0
        return (index * size + kept.nonzero()[0]).tolist()

    def batches(self, index: int, done: Callable[[int], None]) -> Iterator[Batch]:
        """Those of a shard, of like length, longest first; ``done`` hears the size of each afterwards."""
        num_frames = self.source.num_frames
        places = sorted(self.places(index), key=lambda place: (-num_frames[place], place))
        plan: List[List[int]] = []
        most = self.batch_seconds * FRAMES_PER_SECOND
        for place in places:
            longest = num_frames[plan[-1][0]] if plan else 0
            if plan and longest * (len(plan[-1]) + 1) <= most:
                plan[-1].append(place)
            else:
                plan.append([place])
        for batch in read_batches(self.cuts, plan):
            features, feature_lens = batch.features.to(self.device), batch.feature_lens.to(self.device)
            yield batch.utterance_ids, features, feature_lens, [self.encode(text) for text in batch.texts]
            done(len(batch.utterance_ids))


def _locked_in_turn(cache_dir: Path, indices: List[int]) -> Iterator[int]:
    """Each shard, locked until the next one is asked for; those that another process is making come last."""
    later: List[int] = []
    for wait, these in ((False, indices), (True, later)):
        for index in these:
            lock = FileLock(str(cache_dir / f".{shard_path(cache_dir, index).stem}.lock"))
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                later.append(index)
                continue
            try:
                yield index
            finally:
                lock.release()


def _remove_surplus(cache_dir: Path, num_shards: int, job: int, num_jobs: int) -> None:
    """Shards beyond the last, of an older and larger cache."""
    for index in shard_indices(cache_dir):
        if index >= num_shards and index % num_jobs == job - 1:
            shard_path(cache_dir, index).unlink(missing_ok=True)

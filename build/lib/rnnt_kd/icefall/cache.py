"""``rnnt_kd.icefall cache``: our cache, filled from an icefall teacher and a manifest of icefall's."""

import functools
import sys
from pathlib import Path
from typing import Any, Mapping

import torch

from rnnt_kd import files
from rnnt_kd.errors import UserError
from rnnt_kd.icefall.launch import TeacherSettings
from rnnt_kd.icefall.model import IcefallModel, kind
from rnnt_kd.models.encoders.external import PROBED, counted_by
from rnnt_kd.systems.store import tensors_digest
from rnnt_kd.teachers.cache_teacher import CachedModel, CacheSettings, cache_teacher
from rnnt_kd.teachers.same import check_same
from rnnt_kd.text.pieces import read_pieces
from rnnt_kd.text.tokenizer import Tokenizer


def fill_cache(settings: TeacherSettings, own: Any, device: str) -> None:
    """Carry out the command; ``own`` are its options.

    A relative path in the manifest starts at the manifest's folder, or at the current one.
    Raises UserError: a teacher without simple heads, or with other tokens than ``own.bpe_model``.
    """
    torch.set_num_threads(own.num_threads)
    files.allow([Path.cwd()])
    teacher = settings.load()
    pieces = read_pieces(own.bpe_model)
    ours = {"classes": len(pieces), "pieces": pieces, "blank": pieces.index("<blk>") if "<blk>" in pieces else 0}
    check_same(teacher.where, {**kind(teacher.model), "pieces": settings.pieces(teacher.options)}, ours)
    teacher.model.to(device)
    cache_teacher(
        cached_model(teacher, teacher.options), own.cuts, Tokenizer.load(own.bpe_model), own.cache_dir,
        CacheSettings(own.prune_range, "regular", own.temperature, own.min_seconds, own.max_seconds),
        shard_utterances=own.shard_utterances, batch_seconds=own.batch_seconds, job=own.job or 1, num_jobs=own.nj,
        device=device, say=functools.partial(print, file=sys.stderr, flush=True),
    )  # fmt: skip


@torch.no_grad()
def cached_model(teacher: IcefallModel, options: Mapping[str, object]) -> CachedModel:
    """Of a loaded teacher; its numbers of frames are learned from a batch of noise.

    ``options``: of its training, for the scales of its smoothed loss; icefall's usual ones where they are not there.
    Raises UserError: no simple heads, or frames that no (T + a) // b counts.
    """
    device = next(teacher.model.parameters()).device
    noise = torch.randn(len(PROBED), int(PROBED.max()), 80, generator=torch.Generator().manual_seed(0)).to(device)
    encoder_out, lens = teacher.encode(3.5 * noise - 7.5, PROBED.to(device))
    if teacher.simple(encoder_out[:1], teacher.predict(torch.zeros(1, 1, dtype=torch.int64, device=device))) is None:
        problem = "has no simple heads, so it cannot say which nodes of the lattice to keep"
        raise UserError(teacher.where, problem, "simple_am_proj and simple_lm_proj", "let it run: --kd-teacher")
    factor, offset = counted_by(lens.tolist())
    if factor is None:
        raise UserError(teacher.where, f"makes {lens[0]} frames of {PROBED[0]}", "one that subsamples evenly")
    scales = [float(str(options.get(name, usual))) for name, usual in (("lm_scale", 0.25), ("am_scale", 0.0))]
    return CachedModel(
        teacher.where, teacher, tensors_digest(teacher.state_dict()),
        lambda frames: torch.div(frames + offset, factor, rounding_mode="floor").clamp(min=0), factor, *scales,
    )  # fmt: skip

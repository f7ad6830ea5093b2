"""Fills a cache from any teacher and any batches: its pruned lattice and its posteriors there, for every utterance.

    facts = cache_facts(teacher, bpe="lang_bpe_500", prune_range=5)
    write_cache(teacher, batches, "kd_cache", facts)        # or each of N jobs: shard=k, num_shards=N

``teacher`` is a ``teachers.interface.Teacher`` in eval mode; a batch is (ids, features, feature lengths, labels).  The
ranges come from the teacher's own simple heads, the posteriors from its joiner on these nodes.

B batch, T encoder frames, S symbols.
"""

from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Dict, Iterable, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses import JoinerParts
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes
from rnnt_kd.losses.packed_posteriors import pack
from rnnt_kd.systems.store import tensors_digest
from rnnt_kd.teachers.ensemble import Ensemble
from rnnt_kd.teachers.interface import Teacher
from rnnt_kd.teachers.prune import prune
from rnnt_kd.teachers.shards import CacheFacts, Damaged, Entry, Shard, shard_path, write_shard
from rnnt_kd.text.labels import padded_labels

Batch = Tuple[Sequence[str], Tensor, Tensor, Sequence[Sequence[int]]]


def write_cache(
    teacher: Teacher,
    batches: Iterable[Batch],
    out: Path,
    facts: CacheFacts,
    *,
    shard: int = 0,
    num_shards: int = 1,
    order: Optional[Sequence[str]] = None,
    backend: Union[str, ModuleType] = "auto",
    where: object = "teacher",
) -> bool:
    """Write one shard of the cache in the folder ``out``, and read it back.

    False, and no batch is asked for, if it is there already.

    Args:
      teacher:    in eval mode, on the device of the batches.
      batches:    (ids, features (B, frames, F), feature lengths (B,), a list of B lists of labels) each.  An id is a
                  cut's; equal features and labels give equal bytes.
      facts:      of ``cache_facts``; a shard with others is made anew.
      shard, num_shards:  which part of the utterances ``batches`` are, from 0; a student needs all parts.
      order:      ids in the order in which they shall stand; None: as they come.
      backend:    "auto", or a lattice backend; see ``rnnt_kd.lattice``.
      where:      what to call the teacher in messages.
    Raises:
      UserError: a teacher without simple heads or in train mode, an id that comes twice or is missing, an utterance
        without any path, or one whose posteriors are not numbers; a shard that comes back damaged.
    """
    if not why_not_finished(out, facts, shard, num_shards):
        return False
    if getattr(teacher, "training", False):
        raise UserError(where, "is in train mode", "eval mode: no dropout", "call its eval() first")
    entries: Dict[str, Entry] = {}
    for batch in batches:
        for entry in _entries(teacher, batch, facts, backend, where):
            if entry.id in entries:
                raise UserError(entry.id, "comes twice", "each utterance once")
            entries[entry.id] = entry
    ordered = list(entries) if order is None else list(order)
    for name in set(ordered) ^ set(entries):
        raise UserError(name, "is in the order or in the batches, not in both", "the same utterances in both")
    Path(out).mkdir(parents=True, exist_ok=True)
    write_shard(Path(out), facts, shard, num_shards, [entries[name] for name in ordered])
    if why := why_not_finished(out, facts, shard, num_shards):
        problem = f"just written, and read back it is not what was written: {why}"
        raise UserError(shard_path(Path(out), shard), problem, "a disk that keeps it", "run the same command again")
    return True


def cache_facts(
    teacher: Teacher,
    *,
    prune_range: int = 5,
    rnnt_type: str = "regular",
    temperature: float = 1.0,
    lm_only_scale: float = 0.25,
    am_only_scale: float = 0.0,
    subsampling: int = 4,
    bpe: str = "",
    cuts: str = "",
    digest: Optional[str] = None,
) -> CacheFacts:
    """What a cache depends on, for ``write_cache``; its students are held to it.

    Args:
      prune_range:    kept symbol positions a frame.
      temperature:    of the students' distillation.
      lm_only_scale, am_only_scale:  of the smoothed loss that the ranges come from: those the teacher was trained with.
      subsampling:    feature frames an encoder frame.
      bpe, cuts:      any text that tells one BPE model, one set of utterances from another.
      digest:         of the teacher's weights; None: ``systems.store.tensors_digest`` of its ``state_dict()``.
    Raises:
      UserError: no ``digest``, and a teacher that is no module.
    """
    if digest is None:
        if not isinstance(teacher, (nn.Module, Ensemble)):
            raise UserError("teacher", f"{type(teacher).__name__} has no state_dict()", "digest= of its weights")
        digest = tensors_digest(teacher.state_dict())
    return CacheFacts(
        teacher=digest, bpe=bpe, cuts=cuts, blank_id=teacher.blank_id, subsampling=subsampling, prune_range=prune_range,
        rnnt_type=rnnt_type, temperature=temperature, lm_only_scale=lm_only_scale, am_only_scale=am_only_scale,
        min_seconds=0.0, max_seconds=0.0, shard_utterances=0,
    )  # fmt: skip


def why_not_finished(out: Path, facts: CacheFacts, shard: int, num_shards: int) -> str:
    """Why a shard has to be made; "" if it is there, whole, and of the same facts."""
    try:
        found = Shard(shard_path(Path(out), shard))
        changes = found.facts.differences(asdict(facts))
        if changes:
            return "; ".join(f"{what} was {there} and is {here}" for what, there, here in changes)
        if (found.index, found.count) != (shard, num_shards):
            return f"it is shard {found.index} of {found.count}"
        found.verify()
    except FileNotFoundError:
        return "missing"
    except Damaged as error:
        return f"damaged: {error}"
    return ""


@torch.no_grad()
def _entries(teacher: Teacher, batch: Batch, facts: CacheFacts, backend: Union[str, ModuleType], where: object):
    """An ``Entry`` an utterance."""
    ids, features, feature_lens, texts = batch
    if not len(ids) == len(features) == len(feature_lens) == len(texts):
        problem = f"{len(ids)} ids, {len(features)} features, {len(feature_lens)} lengths, {len(texts)} lists of labels"
        raise UserError("batch", problem, "as many of each")
    if not len(ids):
        return []
    at_least = max(facts.prune_range - 1, 1)  # so that no batch of short texts narrows the ranges
    labels, label_lens = (x.to(features.device) for x in padded_labels(texts, teacher.blank_id, at_least))
    found = prune(
        teacher,
        features,
        feature_lens,
        labels,
        label_lens,
        rnnt_type=facts.rnnt_type,
        lm_only_scale=facts.lm_only_scale,
        am_only_scale=facts.am_only_scale,
        backend=get_backend(backend, features.device),
    )
    ranges = found.ranges(facts.prune_range)
    try:
        nodes = kept_nodes(labels, ranges, teacher.blank_id, found.boundary, facts.rnnt_type)
    except UserError as error:
        what, *number = error.where.split()  # "utterance 3 of the batch"
        if what == "utterance":
            raise UserError(ids[int(number[0])], error.problem, error.expected, error.next_step) from None
        raise
    packed = _packed(found.joiner, nodes, 1.0, ids, where)
    tempered = _packed(found.joiner, nodes, facts.temperature, ids, where) if facts.temperature != 1.0 else None
    starts = nodes.ranges[:, :, 0].cpu()
    return [
        Entry(name, starts[b, :T], packed[b, :T], None if tempered is None else tempered[b, :T], texts[b])
        for b, (name, T) in enumerate(zip(ids, found.num_frames.tolist(), strict=True))
    ]


def _packed(joiner: JoinerParts, nodes: KeptNodes, temperature: float, ids: Sequence[str], where: object) -> Tensor:
    """(B, T, s_range, 2) float16, 0 on padded nodes.  UserError: a posterior is not a number."""
    scores = joiner.scores(nodes, temperature)
    is_bad = (torch.isnan(torch.stack(scores)).any(dim=0) & nodes.node_mask).flatten(1).any(dim=1)
    if bool(is_bad.any()):
        name = ids[int(is_bad.nonzero()[0])]
        raise UserError(where, f"its posteriors of {name} are not numbers", "", "train the teacher again")
    return pack(scores).masked_fill(~nodes.node_mask.unsqueeze(3), 0.0).cpu()

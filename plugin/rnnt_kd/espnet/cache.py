"""Fills a teacher's cache from the data of an ESPnet training, by utterance id."""

from collections import Counter
from pathlib import Path
from typing import Any, Iterator, List, Sequence

import torch
from espnet2.train.dataset import ESPnetDataset

from rnnt_kd.errors import UserError
from rnnt_kd.espnet.tasks import labels_digest, load_teacher, read_conf, task_of
from rnnt_kd.systems.store import tensors_digest
from rnnt_kd.teachers.write_cache import Batch, cache_facts, write_cache
from rnnt_kd.text_files import read_text


def fill_cache(
    weights: str, config: str, data: Sequence[str], out: Path, *, prune_range: int, temperature: float, batch_size: int,
    job: int, num_jobs: int, device: str, num_threads: int = 1,
) -> bool:  # fmt: skip
    """Shard ``job`` of ``num_jobs``: every ``num_jobs``-th utterance, whatever the others do.  False: it is there.

    Args:
      weights, config:  of the teacher; config "" is the config.yaml beside it.
      data:             as ESPnet's ``--train_data_path_and_name_and_type``: the speech, then the text.
    Raises:
      UserError: files that are not there, or a teacher without the heads that say which nodes to keep.
    """
    torch.set_num_threads(num_threads)
    teacher, args = load_teacher(weights, config)
    parts = [entry.split(",") for entry in data]
    if [part[1:2] for part in parts] != [["speech"], ["text"]] or any(len(part) != 3 for part in parts):
        expected = "wav.scp,speech,sound and text,text,text, in this order"
        raise UserError("--data-path-and-name-and-type", " ".join(data), expected)
    speech, text = (_read_ids(Path(path)) for path, _, _ in parts)
    if lacking := sorted({*text} - {*speech}):
        raise UserError(parts[1][0], f"{lacking[0]} is not in {parts[0][0]}", "utterances that are in both")
    keys = text[job - 1 :: num_jobs]
    task: Any = task_of(teacher.model)
    dataset = ESPnetDataset(parts, preprocess=task.build_preprocess_fn(args, False), float_dtype="float32")
    collate = task.build_collate_fn(args, False)

    def batches() -> Iterator[Batch]:
        for begin in range(0, len(keys), batch_size):
            ids, batch = collate([dataset[key] for key in keys[begin : begin + batch_size]])
            texts: List[List[int]] = [row[:n].tolist() for row, n in zip(batch["text"], batch["text_lengths"])]
            yield ids, batch["speech"].to(device), batch["speech_lengths"].to(device), texts

    teacher.model.to(torch.device(device))
    own = read_conf(getattr(args, "kd_conf", None))["pruned"]  # of the hybrid task
    pruning = own or getattr(args, "model_conf", {}).get("k2_pruned_loss_args") or {}
    facts = cache_facts(
        teacher, prune_range=prune_range, rnnt_type=pruning.get("loss_type", "regular"), temperature=temperature,
        lm_only_scale=pruning.get("lm_scale", 0.0), am_only_scale=pruning.get("am_scale", 0.0),
        bpe=labels_digest(args, teacher.model.token_list), digest=tensors_digest(teacher.model.state_dict()),
    )  # fmt: skip
    return write_cache(teacher, batches(), out, facts, shard=job - 1, num_shards=num_jobs, where=weights)


def _read_ids(path: Path) -> List[str]:
    """Of the utterances of a file of Kaldi's.  UserError: one of them comes twice, or has nothing behind its id."""
    entries = [line.split(maxsplit=1) for line in read_text(path).split("\n") if line.strip()]
    counts = Counter(entry[0] for entry in entries)
    for entry in entries:
        if len(entry) < 2 or counts[entry[0]] > 1:
            problem = "has no value" if len(entry) < 2 else "comes twice"
            raise UserError(path, f"{entry[0]} {problem}", "every id once, and its value", "mend the file")
    return list(counts)

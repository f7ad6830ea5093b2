"""Whole training steps: forward, backward, clipping, optimizer; of a real model, on random features.

    none     no distillation
    online   a teacher of the student's size runs in every step
    cache    the teacher's ranges and posteriors lie in memory, as a cache's reader returns them

Features, labels and the contents of the cache are random, lengths are real, dropout is on.  What
the data loader does (reading, augmenting, looking a batch up in the cache) happens in other
processes in training, and not here.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from rnnt_kd.benchmark.loss_inputs import BLANK, aligned_ranges
from rnnt_kd.benchmark.results import Row, row_of
from rnnt_kd.benchmark.rounds import Job
from rnnt_kd.benchmark.shapes import Batch
from rnnt_kd.benchmark.worker import SMALL_BATCH, Subject, warm_up
from rnnt_kd.config import KdConfig, TrainingConfig
from rnnt_kd.lattice import get_backend
from rnnt_kd.models import build_transducer
from rnnt_kd.training.objective import CachedTeacher, Objective, combine, loss_scales
from rnnt_kd.training.optimizer import make_optimizer

VARIANTS = ("none", "online", "cache")
JSON_KEYS = ("variant", "size", "vocab", "batch", "seconds", "peak_mb", "time_vs_none", "memory_vs_none")
LIMITS = {"cache": 1.03, "online": 1.4}  # time ÷ that without distillation
NUM_BINS = 80
WARM_STEP = 10**6  # all terms at their final scale


def step_subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """A training step on each batch, warmed up on a small one.  The model goes on changing, as in training."""
    variant, device = specification["variant"], torch.device(specification["device"])
    torch.manual_seed(specification["seed"])
    training = TrainingConfig(prune_range=specification["prune_range"])
    model = _model(specification).to(device).train()
    kd = None if variant == "none" else KdConfig(ranges="student" if variant == "online" else "teacher")
    teacher = _model(specification).to(device).eval().requires_grad_(False) if variant == "online" else None
    backend = get_backend("auto", device)
    backend_name = backend.__name__.rpartition(".")[2][: -len("_backend")]
    objective = Objective(model, training, backend, backend_name, kd, teacher)
    optimizer = make_optimizer(model, training)
    scales = loss_scales(WARM_STEP, training, kd)
    parameters = list(model.parameters())

    def prepared(batch: Batch) -> Subject:
        inputs = _inputs(batch, model, specification, variant == "cache", device)

        def step() -> None:
            combine(objective(**inputs), scales).backward()
            nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, parameters

    small, _ = prepared(SMALL_BATCH)
    for _ in range(2):
        small()
    subjects = [prepared([tuple(shape) for shape in batch]) for batch in specification["batches"]]
    warm_up(subjects, device)
    return subjects, {}


def rows(jobs: Sequence[Job]) -> List[Dict[str, Any]]:
    """Of the jobs that ran: ``JSON_KEYS``, lowest and highest time, and the goal (``limit``) of the time's ratio.

    Ratios are to the step without distillation.
    """
    measured: List[Tuple[Job, Row]] = [(job, row_of(job)) for job in jobs if job.cannot is None]
    none: Optional[Row] = next((row for _, row in measured if row.variant == "none"), None)
    return [
        {
            "variant": row.variant,
            "size": job.specification["size"],
            "vocab": row.vocab,
            "batch": row.batch,
            "seconds": row.seconds,
            "low": row.low,
            "high": row.high,
            "peak_mb": row.peak_mb,
            "time_vs_none": row.seconds / none.seconds if none else None,
            "limit": LIMITS.get(row.variant),
            "memory_vs_none": row.peak_mb / none.peak_mb if none and none.peak_mb else None,
        }
        for job, row in measured
    ]


def _model(specification: Dict[str, Any]) -> nn.Module:
    return build_transducer(
        encoder=specification["encoder"],
        size=specification["size"],
        encoder_options={},
        predictor_dim=specification["joiner_dim"],
        joiner_dim=specification["joiner_dim"],
        dropout=0.1,
        ctc_head=True,
        vocab_size=specification["vocab"],
        blank_id=BLANK,
    )


def _inputs(
    batch: Batch, model: nn.Module, specification: Dict[str, Any], with_cache: bool, device: torch.device
) -> Dict[str, Any]:
    """Arguments of the objective."""
    generator = torch.Generator().manual_seed(specification["seed"])
    B, S = len(batch), max(1, max(S for _, S in batch))
    label_lens = torch.tensor([S for _, S in batch])
    feature_lens = torch.tensor([T for T, _ in batch]) * model.encoder.subsampling_factor
    labels = torch.randint(1, specification["vocab"], (B, S), generator=generator)
    labels[torch.arange(S) >= label_lens.unsqueeze(1)] = BLANK
    features = torch.randn(B, int(feature_lens.max()), NUM_BINS, generator=generator) * 4.0 - 5.0  # like log-mel
    inputs = dict(features=features, feature_lens=feature_lens, labels=labels, label_lens=label_lens)
    if with_cache:
        boundary = torch.zeros(B, 4, dtype=torch.int64)
        boundary[:, 2], boundary[:, 3] = label_lens, model.encoder.output_lengths(feature_lens)
        ranges = aligned_ranges(boundary, specification["prune_range"], generator)
        packed = torch.randn(*ranges.shape, 2, generator=generator).to(torch.float16)
        inputs["cached"] = CachedTeacher(ranges[:, :, 0].to(device), packed.to(device))
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}

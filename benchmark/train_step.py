"""Time and memory of whole training steps: forward, backward, clipping and optimizer of a real model.

    none     no distillation
    online   a teacher of the student's size runs its encoder, predictor and joiner in every step
    cache    the teacher's ranges and posteriors lie in memory, as a cache's reader returns them

Features, labels and the contents of the cache are random, lengths are real, dropout is on.  What the data loader does
(reading, augmenting, looking a batch up in the cache) is not in these times; in training it is part of every step.
"""

import argparse
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from benchmark import options
from benchmark.loss_inputs import BLANK, aligned_ranges
from benchmark.loss_rows import times
from benchmark.measure import Subject, warm_up
from benchmark.rows import middle, quotient
from benchmark.shapes import SMALL_BATCH, Batch
from benchmark.turns import Measurement, run_groups
from rnnt_kd import choices
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import chosen_device, parser
from rnnt_kd.config import KdConfig, TrainingConfig
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.models import build_transducer
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.tables import markdown, shown
from rnnt_kd.teachers.views import CachedTeacher
from rnnt_kd.training.objective import Objective, loss_scales, weighted_sum
from rnnt_kd.training.optimizer import make_optimizer

VARIANTS = ("none", "online", "cache")
NUM_BINS = 80
WARM_STEP = 10**6  # all terms at their final scale


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """A training step on each batch, warmed up on a small one.  The model goes on changing, as in training."""
    variant, device = specification["variant"], torch.device(specification["device"])
    torch.manual_seed(specification["seed"])
    training = TrainingConfig(prune_range=specification["prune_range"])
    model = model_of(specification).to(device).train()
    kd = None if variant == "none" else KdConfig(ranges="student" if variant == "online" else "teacher")
    teacher = model_of(specification).to(device).eval().requires_grad_(False) if variant == "online" else None
    backend = get_backend("auto", device)
    objective = Objective(model, training, backend, kd, teacher)
    optimizer = make_optimizer(model, training)
    scales = loss_scales(WARM_STEP, training, kd)
    parameters = list(model.parameters())

    def prepared(batch: Batch) -> Subject:
        inputs = inputs_of(batch, model, specification, variant == "cache", device)

        def step() -> None:
            terms = objective(**inputs)
            (weighted_sum(terms, scales) / terms["frames"]).backward()
            nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, parameters

    small, _ = prepared(SMALL_BATCH)
    for _ in range(2):
        small()
    made = [prepared([tuple(shape) for shape in batch]) for batch in specification["batches"]]
    warm_up(made, device)
    return made, {}


@command
def main(argv: Optional[List[str]] = None) -> None:
    target = parser(__doc__)
    add_steps(target, "rows of the encoder's SIZES")
    target.add_argument("--variants", default=",".join(VARIANTS))
    arguments = target.parse_args(argv)
    options.check(arguments)
    device = chosen_device(arguments.device)
    variants = options.names("--variants", arguments.variants, VARIANTS)
    sizes = [size.strip() for size in arguments.size.split(",") if size.strip()]
    if not sizes:
        raise UserError("--size", "none are given", "rows of the encoder's SIZES, such as tiny,S")
    keys = ("encoder", "joiner_dim", "prune_range", "seed", "num_threads")
    common = {"module": "benchmark.train_step", "device": device, **{key: getattr(arguments, key) for key in keys}}
    groups = [
        [
            Measurement(name, {**common, "size": size, "batches": batches, "vocab": vocab, "variant": name})
            for name in variants
        ]
        for size in sizes
        for batches in options.batches_of(arguments)
        for vocab in options.vocabs_of(arguments)
    ]
    measure_steps(groups, arguments, device, rows_of_group, _table)


def add_steps(target: argparse.ArgumentParser, sizes: str) -> None:
    """Options of a model and of what is measured; ``sizes``: help of ``--size``."""
    target.add_argument("--size", default="tiny", help=sizes)
    target.add_argument("--encoder", choices=choices.names("rnnt_kd.models.encoders"), default="conformer")
    target.add_argument("--vocab", default="500", help="classes with blank, some numbers")
    options.add_measuring(target)
    target.set_defaults(rounds=7)  # differences of some per cent are what it is about


def measure_steps(
    groups: Sequence[Sequence[Measurement]],
    arguments: argparse.Namespace,
    device: str,
    rows_of_group: Callable[[Sequence[Measurement]], List[Dict[str, Any]]],
    table: Callable[[Sequence[Dict[str, Any]]], str],
) -> None:
    """Run them, and report the rows of each group in a table."""
    rows: List[Dict[str, Any]] = []
    try:
        limits = {"rounds": arguments.rounds, "seconds_per_row": arguments.seconds_per_row}
        run_groups(groups, title=_title, finished=lambda jobs: rows.extend(rows_of_group(jobs)), **limits)
    finally:  # after Ctrl-C, too: the groups that are finished are not lost
        if rows:
            where = f"training steps, J = {arguments.joiner_dim}; {options.machine(device, arguments.num_threads)}"
            options.report(where, [table(rows)], rows, arguments)


def rows_of_group(jobs: Sequence[Measurement]) -> List[Dict[str, Any]]:
    """Rows of the jobs that ran; ratios are to the step without distillation, None where that is not there."""
    rows = [
        {
            **{key: job.specification[key] for key in ("variant", "size", "vocab")},
            "batch": len(job.specification["batches"][0]),
            **middle(job),
        }
        for job in jobs
        if job.cannot is None
    ]
    none: Dict[str, Any] = next((row for row in rows if row["variant"] == "none"), {})
    for row in rows:
        row["time_vs_none"] = quotient(row["seconds"], none.get("seconds"))
        row["memory_vs_none"] = quotient(row["peak_mb"], none.get("peak_mb"))
    return rows


def _table(rows: Sequence[Dict[str, Any]]) -> str:
    head = ["size", "teacher", "C", "batch", "seconds", "low..high", "peak MB", "time ÷ none", "memory ÷ none"]
    cells = [
        [row["size"], row["variant"], row["vocab"], row["batch"], *times(row), f"{row['peak_mb']:.1f}"]
        + [shown(row[key], ".3f") for key in ("time_vs_none", "memory_vs_none")]
        for row in rows
    ]
    return markdown(head, cells, left=2)


def _title(job: Measurement) -> str:
    specification = job.specification
    return f"{specification['size']}, C {specification['vocab']}, batch {len(specification['batches'][0])}"


def model_of(specification: Dict[str, Any]) -> Transducer:
    """What is trained."""
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


def inputs_of(
    batch: Batch, model: Transducer, specification: Dict[str, Any], with_cache: bool, device: torch.device
) -> Dict[str, Any]:
    """Arguments of the objective."""
    generator = torch.Generator().manual_seed(specification["seed"])
    B, S = len(batch), max(1, max(S for _, S in batch))
    label_lens = torch.tensor([S for _, S in batch])
    feature_lens = torch.tensor([T for T, _ in batch]) * model.encoder.subsampling_factor
    labels = torch.randint(1, specification["vocab"], (B, S), generator=generator)
    labels[torch.arange(S) >= label_lens.unsqueeze(1)] = BLANK
    features = torch.randn(B, int(feature_lens.max()), NUM_BINS, generator=generator) * 4.0 - 5.0  # like log-mel
    inputs: Dict[str, Any] = dict(features=features, feature_lens=feature_lens, labels=labels, label_lens=label_lens)
    if with_cache:
        boundary = torch.zeros(B, 4, dtype=torch.int64)
        boundary[:, 2], boundary[:, 3] = label_lens, model.encoder.output_lengths(feature_lens)
        ranges = aligned_ranges(boundary, specification["prune_range"], generator)
        packed = torch.randn(*ranges.shape, 2, generator=generator).to(torch.float16)
        inputs["cached"] = CachedTeacher(ranges[:, :, 0].to(device), packed.to(device))
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}


if __name__ == "__main__":
    main()

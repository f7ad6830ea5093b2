"""Time and memory of whole training steps: forward, backward, clipping and optimizer of a real model.

    none     no distillation
    online   a teacher of the student's size runs its encoder, predictor and joiner in every step
    cache    the teacher's ranges and posteriors come from a cache on the disk

Features, labels and the teacher are random, lengths are real, dropout and SpecAugment are on.  Loading is a part of the
step (``training.num_workers: 0``): cuts are read, augmented, and looked up in the cache.
"""

import argparse
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import nn

from benchmark import options
from benchmark.loading import Loading
from benchmark.loss_inputs import BLANK
from benchmark.loss_rows import times
from benchmark.measure import Subject, warm_up
from benchmark.rows import middle, quotient
from benchmark.shapes import SMALL_BATCH
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
from rnnt_kd.training.objective import Objective, loss_scales, weighted_sum
from rnnt_kd.training.optimizer import make_optimizer

VARIANTS = ("none", "online", "cache")
WARM_STEP = 10**6  # all terms at their final scale


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """A training step on each batch, warmed up on a small one.  The model goes on changing, as in training."""
    variant, device = specification["variant"], torch.device(specification["device"])
    torch.manual_seed(specification["seed"])
    training = TrainingConfig(prune_range=specification["prune_range"])
    model = model_of(specification).to(device).train()
    kd = None if variant == "none" else KdConfig(ranges="student" if variant == "online" else "teacher")
    teacher = None if kd is None else model_of(specification).eval().requires_grad_(False)
    loading = loading_of(specification, model, training, kd, teacher if variant == "cache" else None)
    teacher = teacher.to(device) if teacher is not None and variant == "online" else None
    backend = get_backend("auto", device)
    objective = Objective(model, training, backend, kd, teacher)
    optimizer = make_optimizer(model, training)
    scales = loss_scales(WARM_STEP, training, kd)
    parameters = list(model.parameters())

    def prepared(index: int) -> Subject:
        def step() -> None:
            inputs = move_data_to_device(loading.load(index), device)
            terms = objective(**inputs)
            (weighted_sum(terms, scales) / terms["frames"]).backward()
            nn.utils.clip_grad_norm_(parameters, training.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step, parameters

    for _ in range(2):
        prepared(len(specification["batches"]))[0]()
    made = [prepared(index) for index in range(len(specification["batches"]))]
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


def loading_of(
    specification: Dict[str, Any],
    model: Transducer,
    training: TrainingConfig,
    kd: Optional[KdConfig] = None,
    teacher: Optional[Transducer] = None,
) -> Loading:
    """The batches, and a small one at the end."""
    batches = [[(T, S) for T, S in batch] for batch in (*specification["batches"], SMALL_BATCH)]
    keys = {key: specification[key] for key in ("vocab", "seed")}
    return Loading(batches, training, kd, subsampling=model.encoder.subsampling_factor, teacher=teacher, **keys)


if __name__ == "__main__":
    main()

"""Encoder frames a second of training steps that several processes take together (data parallel), beside one process.

Each process has a batch of its own, of the same lengths: with N processes a step takes N times the frames.  Steps are
those of benchmark.train_step, loading included, with what the processes tell one another.
"""

import json
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import nn

from benchmark import options
from benchmark.loss_rows import times
from benchmark.measure import Subject, warm_up
from benchmark.rows import middle
from benchmark.train_step import WARM_STEP, add_steps, loading_of, measure_steps, model_of
from benchmark.turns import Measurement
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import chosen_device, parser
from rnnt_kd.config import TrainingConfig
from rnnt_kd.jobs import as_ranks, start
from rnnt_kd.lattice import get_backend
from rnnt_kd.tables import markdown, shown
from rnnt_kd.training.loop import Weighted
from rnnt_kd.training.objective import Objective, loss_scales
from rnnt_kd.training.optimizer import make_optimizer
from rnnt_kd.training.ranks import Ranks

FOLLOW = "import sys; from benchmark.ddp import follow; follow(sys.argv[1])"


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """The steps of the first process, which the others take with it; they end with this process."""
    jobs = as_ranks(["-c", FOLLOW, json.dumps(specification)], specification["processes"], 1)
    others = [start(job) for job in jobs[1:]]
    os.environ.update(jobs[0].environment if others else {})
    ranks, steps, parameters = _steps(specification)

    def led(index: int) -> Subject:
        def step() -> None:
            ranks.first(lambda: index)
            steps[index]()

        return step, parameters

    for _ in range(2):
        led(len(steps) - 1)[0]()
    made = [led(index) for index in range(len(steps) - 1)]
    warm_up(made, torch.device(specification["device"]))
    return made, {}


def follow(specification: str) -> None:
    """What the other processes do: the step that the first one takes, again and again."""
    given = json.loads(specification)
    torch.set_num_threads(given["num_threads"])
    torch.set_flush_denormal(True)
    ranks, steps, _ = _steps(given)
    while True:
        steps[ranks.first(lambda: 0)]()


def _steps(specification: Dict[str, Any]) -> Tuple[Ranks, List[Callable[[], None]], List[nn.Parameter]]:
    """A step on each batch, and one on a small batch at the end."""
    ranks = Ranks(specification["device"], "32-true", timeout=3600.0)
    device, training = ranks.fabric.device, TrainingConfig(prune_range=specification["prune_range"])
    torch.manual_seed(specification["seed"])
    model = model_of(specification).to(device).train()
    optimizer = make_optimizer(model, training)
    objective = Objective(model, training, get_backend("auto", device))
    wrapped, wrapped_optimizer = ranks.fabric.setup(Weighted(objective, ranks), optimizer)
    scales = loss_scales(WARM_STEP, training, None)

    loading = loading_of({**specification, "seed": specification["seed"] + ranks.rank}, model, training)

    def prepared(index: int) -> Callable[[], None]:
        def step() -> None:
            inputs = move_data_to_device(loading.load(index), device)
            weighted, terms = wrapped(scales, **inputs)
            loss, _, _ = ranks.shared_loss(weighted, terms["frames"])
            ranks.fabric.backward(loss)
            ranks.fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=training.gradient_clip)
            wrapped_optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return ranks, [prepared(index) for index in range(len(specification["batches"]) + 1)], list(model.parameters())


@command
def main(argv: Optional[List[str]] = None) -> None:
    target = parser(__doc__)
    add_steps(target, "a row of the encoder's SIZES")
    target.add_argument("--processes", default="1,2", help="some numbers")
    arguments = target.parse_args(argv)
    options.check(arguments)
    device = chosen_device(arguments.device)
    keys = ("size", "encoder", "joiner_dim", "prune_range", "seed", "num_threads")
    common = {"module": "benchmark.ddp", "device": device, **{key: getattr(arguments, key) for key in keys}}
    groups = [
        [
            Measurement(f"{size} process(es)", {**common, "batches": batches, "vocab": vocab, "processes": size})
            for size in options.numbers("--processes", arguments.processes)
        ]
        for batches in options.batches_of(arguments)
        for vocab in options.vocabs_of(arguments)
    ]
    measure_steps(groups, arguments, device, rows_of_group, _table)


def rows_of_group(jobs: Sequence[Measurement]) -> List[Dict[str, Any]]:
    """Rows of the jobs that ran; ``times_one`` is to one process, None where that is not there."""
    rows = []
    for job in (job for job in jobs if job.cannot is None):
        given, figures = job.specification, middle(job)
        batches, size = given["batches"], given["processes"]
        frames = size * sum(T for batch in batches for T, _ in batch) / len(batches)
        row = {"processes": size, "vocab": given["vocab"], "batch": len(batches[0]), **figures}
        rows.append({**row, "frames_a_second": frames / figures["seconds"]})
    one = next((row["frames_a_second"] for row in rows if row["processes"] == 1), None)
    return [{**row, "times_one": row["frames_a_second"] / one if one else None} for row in rows]


def _table(rows: Sequence[Dict[str, Any]]) -> str:
    head = ["processes", "C", "batch of each", "seconds", "low..high", "frames a second", "÷ one process"]
    cells = [
        [row["processes"], row["vocab"], row["batch"], *times(row), f"{row['frames_a_second']:.0f}"]
        + [shown(row["times_one"], ".2f")]
        for row in rows
    ]
    return markdown(head, cells, left=1)


if __name__ == "__main__":
    main()

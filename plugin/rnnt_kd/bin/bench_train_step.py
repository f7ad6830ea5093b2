"""Time and memory of whole training steps: without distillation, with a teacher online, with its cache.

A step is forward, backward, clipping and optimizer of a conformer transducer, on random features of
real lengths.  The online teacher has the student's size; it runs its encoder, predictor and joiner in
every step.  Each variant has a process of its own and takes turns with the others.
"""

import json
import sys
from typing import Any, Dict, List, Optional

from rnnt_kd import atomic
from rnnt_kd.benchmark import table, train_step
from rnnt_kd.benchmark.rounds import Job
from rnnt_kd.benchmark.shapes import num_nodes
from rnnt_kd.benchmark.worker import serve
from rnnt_kd.bin.bench_options import (
    add_measuring,
    batches_of,
    check_measuring,
    check_outputs,
    machine,
    names,
    run_groups,
    vocabs_of,
)
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import chosen_device, join, parser
from rnnt_kd.errors import UserError
from rnnt_kd.models import available_encoders


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", default="tiny", help="rows of the encoder's SIZES")
    options.add_argument("--encoder", choices=available_encoders(), default="conformer")
    options.add_argument("--vocab", default="500", help="classes with blank, some numbers")
    options.add_argument("--variants", default=",".join(train_step.VARIANTS))
    add_measuring(options)
    options.set_defaults(rounds=7)  # differences of 3 % are what it is about
    arguments = options.parse_args(argv)
    if arguments.worker:
        serve(train_step.step_subjects, sys.stdin, sys.stdout)
        return

    check_measuring(arguments)
    check_outputs(arguments.json)
    device = chosen_device(arguments.device)
    variants = names("--variants", arguments.variants, train_step.VARIANTS)
    sizes = [size.strip() for size in arguments.size.split(",") if size.strip()]
    if not variants:
        raise UserError("--variants", "none are given", "some of: " + join(train_step.VARIANTS))
    if not sizes:
        raise UserError("--size", "none are given", "rows of the encoder's SIZES, such as tiny,S")
    vocabs = vocabs_of(arguments)
    groups = []
    for size in sizes:
        for batches in batches_of(arguments):
            for vocab in vocabs:
                common = {name: getattr(arguments, name) for name in ("encoder", "joiner_dim", "prune_range", "seed")}
                common.update(batches=batches, vocab=vocab, size=size, device=device, num_threads=arguments.num_threads)
                work = float(sum(num_nodes(batch, arguments.prune_range) for batch in batches))
                groups.append([Job(variant, {**common, "variant": variant}, work) for variant in variants])
    rows: List[Dict[str, Any]] = []
    try:
        run_groups(
            groups, "rnnt_kd.bin.bench_train_step", arguments, _title, lambda jobs: rows.extend(train_step.rows(jobs))
        )
    finally:
        if rows:
            print(f"training step, J = {arguments.joiner_dim}; {machine(device, arguments.num_threads)}\n")
            print(table.steps_table(rows), flush=True)
            if arguments.json:
                chosen = [{key: row[key] for key in train_step.JSON_KEYS} for row in rows]
                atomic.write_text(arguments.json, json.dumps(chosen, indent=2) + "\n")


def _title(job: Job) -> str:
    specification = job.specification
    return f"{specification['size']}, C {specification['vocab']}, batch {len(specification['batches'][0])}"


if __name__ == "__main__":
    main()

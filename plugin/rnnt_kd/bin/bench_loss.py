"""Time and memory of the loss, forward and backward, beside other people's.

Ours, without a teacher (none), with the teacher's joiner on the same nodes (online) and with its
scores as they come from a cache (cache); the peers, without a teacher, or naive: our loss with whole
logits; and the bare matrix products of the output layer (matmul; matmul_onednn: by the kernels that
ours uses).  From the projected encoder and predictor outputs to the gradients of these and of the
output layer.

Each has a process of its own and takes turns with the others.  Lengths are those of FILE, or drawn
from a distribution fitted on LibriSpeech; ranges follow an alignment drawn at random.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from rnnt_kd import atomic
from rnnt_kd.benchmark import matmul, ours, plot, results, table
from rnnt_kd.benchmark.peers import available_peers, get_peer
from rnnt_kd.benchmark.rounds import Job, free_memory
from rnnt_kd.benchmark.shapes import Batch, num_nodes
from rnnt_kd.benchmark.worker import loss_subjects, serve
from rnnt_kd.bin.bench_options import (
    add_measuring,
    batches_of,
    check_measuring,
    check_outputs,
    machine,
    names,
    run_groups,
    say,
    vocabs_of,
)
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import chosen_device, join, parser
from rnnt_kd.errors import UserError
from rnnt_kd.losses.node_scores import available_impls

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}  # of the losses; a benchmark of wrong results is none


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--vocab", default="500,5000", help="classes with blank, some numbers")
    options.add_argument("--impl", default="auto", help=f"of ours, some of: {join(['auto', *available_impls()])}")
    options.add_argument("--variants", default=",".join(ours.VARIANTS), help="of ours, and of naive")
    options.add_argument(
        "--peers", default="k2,k2_indexed,naive,matmul_onednn", help=f"some of: {join(available_peers())}; '' for none"
    )
    options.add_argument("--dtype", choices=list(BYTES), default="float32", help="of all inputs")
    options.add_argument("--plot", type=Path, help="write a picture: .png, .svg or .pdf")
    add_measuring(options)
    arguments = options.parse_args(argv)
    if arguments.worker:
        serve(loss_subjects, sys.stdin, sys.stdout)
        return

    check_measuring(arguments)
    check_outputs(arguments.json, arguments.plot)
    if arguments.plot:
        plot.check(arguments.plot)
    vocabs, batches = vocabs_of(arguments), batches_of(arguments)
    device = chosen_device(arguments.device)
    subjects = _subjects(arguments, device)
    groups = [_jobs(subjects, of_size, vocab, device, arguments) for of_size in batches for vocab in vocabs]
    rows: List[results.Row] = []

    def finished(jobs: List[Job]) -> None:
        for sentence in results.disagreements(jobs, TOLERANCE[arguments.dtype]):
            say(f"WARNING: results differ, {_title(jobs[0])}: {sentence}")
        rows.extend(results.rows_of_group(jobs))

    try:
        run_groups(groups, "rnnt_kd.bin.bench_loss", arguments, _title, finished)
    finally:  # after Ctrl-C, too: the groups that are finished are not lost
        if rows:
            _show(rows, device, arguments)


def _subjects(arguments: argparse.Namespace, device: str) -> List[Dict[str, Any]]:
    """Who takes part: "subject", "variant" and "impl" of the workers' specifications."""
    import torch

    impls = names("--impl", arguments.impl, ["auto", *available_impls()]) or ["auto"]
    variants = names("--variants", arguments.variants, ours.VARIANTS)
    if not variants:
        raise UserError("--variants", "none are given", "some of: " + join(ours.VARIANTS))
    subjects = [dict(subject="ours", variant=variant, impl=impl) for impl in impls for variant in variants]
    for name in names("--peers", arguments.peers, available_peers()):
        peer = get_peer(name)
        reason = peer.why_not(torch.device(device))
        if reason is not None:
            say(f"{name}: left out, {reason}")
            continue
        chosen = [variant for variant in peer.VARIANTS if variant in variants]
        if len(peer.VARIANTS) == 1:  # who knows no teacher is what the others are compared with
            chosen = list(peer.VARIANTS)
        subjects += [dict(subject=name, variant=variant, impl=None) for variant in chosen]
    return subjects + [dict(subject="matmul", variant="none", impl=None)]


def _jobs(
    subjects: Sequence[Dict[str, Any]], batches: Sequence[Batch], vocab: int, device: str, arguments: argparse.Namespace
) -> List[Job]:
    """One group; whoever would need more memory than there is, is left out."""
    jobs = []
    common = dict(
        batches=batches,
        vocab=vocab,
        device=device,
        joiner_dim=arguments.joiner_dim,
        prune_range=arguments.prune_range,
        dtype=arguments.dtype,
        seed=arguments.seed,
        num_threads=arguments.num_threads,
    )
    free = free_memory() if device == "cpu" else None
    for subject in subjects:
        name = subject["subject"]
        module = ours if name == "ours" else matmul if name == "matmul" else get_peer(name)
        needs = max(_estimate(module, batch, vocab, arguments) for batch in batches)
        title = f"{name} {subject['impl']}" if name == "ours" else name
        title += "" if name in results.FLOORS else f" {subject['variant']}"
        if free is not None and needs > 0.8 * free:
            say(
                f"{title}: left out at C {vocab}, batch {len(batches[0])}:"
                f" needs about {needs / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"
            )
            continue
        work = sum(num_nodes(batch, arguments.prune_range) for batch in batches) * (vocab + 500.0)
        if module.LATTICE == "full":
            work *= 20.0
        jobs.append(Job(title, {**common, **subject}, work=work))
    return jobs


def _estimate(module: Any, batch: Batch, vocab: int, arguments: argparse.Namespace) -> int:
    T, S = max(T for T, _ in batch), max(S for _, S in batch)
    return module.estimated_bytes(len(batch), T, S, arguments.prune_range, vocab, arguments.joiner_dim)


def _title(job: Job) -> str:
    return f"C {job.specification['vocab']}, batch {len(job.specification['batches'][0])}"


def _show(rows: Sequence[results.Row], device: str, arguments: argparse.Namespace) -> None:
    head = (
        f"forward + backward of the loss, J = {arguments.joiner_dim}, s_range = {arguments.prune_range},"
        f" {arguments.dtype}; {machine(device, arguments.num_threads)}"
    )
    print(f"{head}\n\n{table.results_table(rows)}")
    goals = results.goals(rows, device)
    if goals:
        print("\n" + table.goals_table(goals))
    slopes = table.slopes_table(results.slopes(rows), arguments.joiner_dim, BYTES[arguments.dtype])
    print("\n" + slopes, flush=True)
    if arguments.json:
        atomic.write_text(arguments.json, json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    if arguments.plot:
        plot.plot_results(rows, arguments.plot, head)


if __name__ == "__main__":
    main()

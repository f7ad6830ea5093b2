"""Time and memory of the loss, forward and backward, beside other people's.

Ours, without a teacher (none), with the teacher's joiner on the same nodes (online) and with its
scores as they come from a cache (cache); the peers, without a teacher, or naive: our loss with whole
logits; and the bare matrix products of the output layer (matmul).  From the projected encoder and
predictor outputs to the gradients of these and of the output layer.

Each has a process of its own and takes turns with the others.  Lengths are those of FILE, or drawn
from a distribution fitted on LibriSpeech; ranges follow an alignment drawn at random.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from tqdm import tqdm

from rnnt_kd import atomic
from rnnt_kd.benchmark import matmul, ours, plot, results, table
from rnnt_kd.benchmark.peers import available_peers, get_peer
from rnnt_kd.benchmark.rounds import Job, check_positive, free_memory, run_group
from rnnt_kd.benchmark.shapes import Batch, draw_batches, fitted_shapes, num_nodes, read_shapes
from rnnt_kd.benchmark.worker import loss_subjects, serve
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_device, chosen_device, join, parser
from rnnt_kd.errors import UserError
from rnnt_kd.losses.node_scores import available_impls

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}  # of the losses; a benchmark of wrong results is none


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    options.add_argument("--vocab", default="500,5000", help="classes with blank, some numbers")
    options.add_argument("--batch", default="8", help="utterances a batch, some numbers")
    options.add_argument("--shapes", type=Path, help="lines T,S of real utterances")
    options.add_argument("--impl", default="auto", help=f"of ours, some of: {join(['auto', *available_impls()])}")
    options.add_argument("--variants", default=",".join(ours.VARIANTS), help="of ours, and of naive")
    options.add_argument("--peers", default="k2,naive", help=f"some of: {join(available_peers())}; empty for none")
    options.add_argument("--json", type=Path, help="write the rows as a list of objects")
    options.add_argument("--plot", type=Path, help="write a picture, .png, .svg or .pdf")
    options.add_argument("--joiner-dim", type=int, default=512, help="J")
    options.add_argument("--prune-range", type=int, default=5, help="s_range")
    options.add_argument("--dtype", choices=list(BYTES), default="float32", help="of all inputs")
    options.add_argument("--batches", type=int, default=3, help="different batches, from short to long")
    options.add_argument("--rounds", type=int, default=3, help="timed passes over each batch")
    options.add_argument("--seconds-per-row", type=float, default=300.0, help="whoever took longer sits out the rest")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_device(options)
    arguments = options.parse_args(argv)
    if arguments.worker:
        serve(loss_subjects, sys.stdin, sys.stdout)
        return

    vocabs, sizes = _numbers("--vocab", arguments.vocab), _numbers("--batch", arguments.batch)
    counts = ("joiner_dim", "batches", "rounds", "num_threads")
    check_positive(**{name: getattr(arguments, name) for name in counts})
    if arguments.prune_range < 2:
        raise UserError("--prune-range", str(arguments.prune_range), "a number from 2 on")
    device = chosen_device(arguments.device)
    shapes = read_shapes(arguments.shapes) if arguments.shapes else fitted_shapes()
    subjects = _subjects(arguments, device)
    groups = []
    for size in sizes:
        batches = draw_batches(shapes, size, arguments.batches, arguments.seed)
        groups += [_jobs(subjects, batches, vocab, device, arguments) for vocab in vocabs]
    rows: List[results.Row] = []
    try:
        _run(groups, arguments, rows)
    finally:  # after Ctrl-C, too: what is finished is not lost
        if rows:
            _show(rows, device, arguments)


def _numbers(option: str, text: str) -> List[int]:
    fields = [field.strip() for field in text.split(",")]
    if not all(field.isdigit() and int(field) > 0 for field in fields):
        raise UserError(option, repr(text), "numbers from 1 on, such as 500,5000")
    return sorted({int(field) for field in fields})


def _names(option: str, text: str, known: Sequence[str]) -> List[str]:
    names = list(dict.fromkeys(field.strip() for field in text.split(",") if field.strip()))
    for name in names:
        if name not in known:
            raise UserError(option, f"there is no {name!r}", "some of: " + join(known))
    return names


def _subjects(arguments: argparse.Namespace, device: str) -> List[Dict[str, Any]]:
    """Who takes part: "subject", "variant" and "impl" of the workers' specifications."""
    import torch

    impls = _names("--impl", arguments.impl, ["auto", *available_impls()]) or ["auto"]
    variants = _names("--variants", arguments.variants, ours.VARIANTS)
    if not variants:
        raise UserError("--variants", "none are given", "some of: " + join(ours.VARIANTS))
    subjects = [dict(subject="ours", variant=variant, impl=impl) for impl in impls for variant in variants]
    for name in _names("--peers", arguments.peers, available_peers()):
        peer = get_peer(name)
        reason = peer.why_not(torch.device(device))
        if reason is not None:
            _say(f"{name}: left out, {reason}")
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
        title += "" if name == "matmul" else f" {subject['variant']}"
        if free is not None and needs > 0.8 * free:
            _say(
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


def _run(groups: Sequence[List[Job]], arguments: argparse.Namespace, rows: List[results.Row]) -> None:
    """Measure group by group; the finished ones are in ``rows``."""
    total = sum(job.work * arguments.batches * (arguments.rounds + 1) for jobs in groups for job in jobs)
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=total, bar_format=layout, mininterval=1.0) as bar:
        for jobs in groups:
            vocab, size = jobs[0].specification["vocab"], len(jobs[0].specification["batches"][0])

            def tell(work: float, name: str) -> None:
                bar.set_description_str(f"C {vocab}, batch {size}: {name}", refresh=False)  # noqa: B023
                bar.update(work)

            run_group(
                jobs, __spec__.name, rounds=arguments.rounds, seconds_per_row=arguments.seconds_per_row, tell=tell
            )
            for job in jobs:
                if job.cannot is not None:
                    bar.write(f"{job.name} at C {vocab}, batch {size}: {job.cannot}", file=sys.stderr)
            for sentence in results.disagreements(jobs, TOLERANCE[arguments.dtype]):
                bar.write(f"WARNING, results differ at C {vocab}, batch {size}: {sentence}", file=sys.stderr)
            rows.extend(results.rows_of_group(jobs))


def _show(rows: Sequence[results.Row], device: str, arguments: argparse.Namespace) -> None:
    title = _title(device, arguments)
    print(f"{title}\n\n{table.results_table(rows)}")
    goals = results.goals(rows, device)
    if goals:
        print("\n" + table.goals_table(goals))
    print("\n" + table.slopes_table(results.slopes(rows), arguments.joiner_dim, BYTES[arguments.dtype]))
    if arguments.json:
        atomic.write_text(arguments.json, json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    if arguments.plot:
        plot.plot_results(rows, arguments.plot, title)


def _title(device: str, arguments: argparse.Namespace) -> str:
    """What was measured, where, with what."""
    import torch

    where = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {arguments.num_threads} thread(s)"
    return (
        f"forward + backward of the loss, J = {arguments.joiner_dim}, s_range = {arguments.prune_range},"
        f" {arguments.dtype}; {where}; torch {torch.__version__}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Time and memory of the loss, forward and backward, beside other people's.

Ours, without a teacher (none), with the teacher's joiner on the same nodes (online) and with its
scores as they come from a cache (cache); ours_lean: the same without memory for logits; the peers,
without a teacher, or naive: our loss with whole logits; and the bare matrix products of the output
layer (matmul).  From the projected encoder and predictor outputs to the gradients of these and of
the output layer.

Each has a process of its own and takes turns with the others.  Lengths are those of FILE, or drawn
from a distribution fitted on LibriSpeech; ranges follow an alignment drawn at random.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from benchmark import options, plot
from benchmark.loss_inputs import make_inputs
from benchmark.loss_rows import FLOOR, Row, disagreements, growth_table, results_table, rows_of_group
from benchmark.measure import Subject, measure, warm_up
from benchmark.peers import available_peers, get_peer, ours_peer
from benchmark.shapes import SMALL_BATCH, Batch
from benchmark.turns import Measurement, run_groups
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import chosen_device, parser
from rnnt_kd.losses.node_scores import available_impls

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 1e-2}  # of the losses; a benchmark of wrong results is none


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """The loss of a peer on each batch, warmed up on a small one; facts: "impl" (of ours) and "lattice"."""
    peer = get_peer(specification["subject"])
    sizes = {key: specification[key] for key in ("vocab", "joiner_dim", "prune_range", "seed")}
    device, dtype = torch.device(specification["device"]), getattr(torch, specification["dtype"])
    facts = {"impl": None, "lattice": peer.LATTICE}

    def prepared(batch: Batch) -> Subject:
        inputs, impl = make_inputs(batch, dtype=dtype, device=device, **sizes), {}
        if specification["impl"] is not None:
            impl["impl"] = facts["impl"] = peer.chosen_impl(inputs, specification["impl"])
        return peer.prepare(inputs, specification["variant"], **impl), list(inputs.leaves)

    small = prepared(SMALL_BATCH)
    for _ in range(2):
        measure(*small, with_memory=False)
    made = [prepared([tuple(shape) for shape in batch]) for batch in specification["batches"]]
    warm_up(made, device)
    return made, facts


@command
def main(argv: Optional[List[str]] = None) -> None:
    arguments = _parser().parse_args(argv)
    options.check(arguments)
    if arguments.plot:
        plot.check(arguments.plot)
    vocabs, batches = options.vocabs_of(arguments), options.batches_of(arguments)
    device = chosen_device(arguments.device)
    taking_part = _taking_part(arguments, device)
    groups = [_jobs(taking_part, same_size, vocab, device, arguments) for same_size in batches for vocab in vocabs]
    rows: List[Row] = []

    def finished(jobs: Sequence[Measurement]) -> None:
        for sentence in disagreements(jobs, TOLERANCE[arguments.dtype]):
            options.say(f"WARNING: results differ, {_title(jobs[0])}: {sentence}")
        rows.extend(rows_of_group(jobs))

    try:
        limits = {"rounds": arguments.rounds, "seconds_per_row": arguments.seconds_per_row}
        run_groups(groups, title=_title, finished=finished, **limits)
    finally:  # after Ctrl-C, too: the groups that are finished are not lost
        if rows:
            where = f"forward + backward of the loss, J = {arguments.joiner_dim}, s_range = {arguments.prune_range}"
            where += f", {arguments.dtype}; {options.machine(device, arguments.num_threads)}"
            tables = [results_table(rows), growth_table(rows, arguments.joiner_dim, BYTES[arguments.dtype])]
            options.report(where, tables, rows, arguments)
            if arguments.plot:
                plot.plot_results(rows, arguments.plot, where)


def _parser() -> argparse.ArgumentParser:
    target = parser(__doc__)
    target.add_argument("--vocab", default="500,5000", help="classes with blank, some numbers")
    target.add_argument("--impl", default="auto", help=f"of ours, some of: {', '.join(['auto', *available_impls()])}")
    target.add_argument("--variants", default=",".join(ours_peer.VARIANTS), help="of ours, and of naive")
    known = f"some of: {', '.join(available_peers())}; '' for none"
    target.add_argument("--peers", default="ours_lean,k2,k2_indexed,naive", help=known)
    target.add_argument("--dtype", choices=list(BYTES), default="float32", help="of all inputs")
    target.add_argument("--plot", type=Path, help="write a picture: .png, .svg or .pdf")
    options.add_measuring(target)
    return target


def _taking_part(arguments: argparse.Namespace, device: str) -> List[Dict[str, Any]]:
    """ "subject", "variant" and "impl" of the specifications."""
    impls = options.names("--impl", arguments.impl, ["auto", *available_impls()])
    variants = options.names("--variants", arguments.variants, ours_peer.VARIANTS)
    found: List[Dict[str, Any]] = []
    found += [dict(subject="ours", variant=variant, impl=impl) for impl in impls for variant in variants]
    for name in [*options.names("--peers", arguments.peers, available_peers(), can_be_empty=True), "matmul"]:
        peer = get_peer(name)
        reason = peer.why_not(torch.device(device))
        if reason is not None:
            options.say(f"{name}: left out, {reason}")
            continue
        chosen = [variant for variant in peer.VARIANTS if variant in variants]
        if len(peer.VARIANTS) == 1:  # who knows no teacher is what the others are compared with
            chosen = list(peer.VARIANTS)
        found += [dict(subject=name, variant=variant, impl=None) for variant in chosen]
    return found


def _jobs(
    taking_part: Sequence[Dict[str, Any]], batches: List[Batch], vocab: int, device: str, arguments: argparse.Namespace
) -> List[Measurement]:
    """One group; whoever would need more memory than there is, is left out."""
    jobs = []
    common = {key: getattr(arguments, key) for key in ("joiner_dim", "prune_range", "dtype", "seed", "num_threads")}
    common.update(module="benchmark.loss", batches=batches, vocab=vocab, device=device)
    free = free_memory() if device == "cpu" else None
    for who in taking_part:
        name, peer = who["subject"], get_peer(who["subject"])
        title = f"{name} {who['impl']}" if name == "ours" else name
        title += "" if name == FLOOR else f" {who['variant']}"
        sizes = [(len(batch), max(T for T, _ in batch), max(S for _, S in batch)) for batch in batches]
        needs = max(peer.estimated_bytes(*size, arguments.prune_range, vocab, arguments.joiner_dim) for size in sizes)
        if free is not None and needs > 0.8 * free:
            options.say(
                f"{title}: left out at C {vocab}, batch {len(batches[0])}:"
                f" needs about {needs / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"
            )
            continue
        jobs.append(Measurement(title, {**common, **who}))
    return jobs


def free_memory() -> Optional[int]:
    """Bytes that this machine can give; None where nobody knows."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _title(job: Measurement) -> str:
    return f"C {job.specification['vocab']}, batch {len(job.specification['batches'][0])}"


if __name__ == "__main__":
    main()

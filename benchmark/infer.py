"""How fast encoders are on one utterance at a time, and what zeros in their weights are worth.

Systems are compared within an engine, the first of them (give a dense one) being the measure; they take turns.
With --data-dir it is real speech, and with --bpe-dir the words are counted too; with --size the weights are random,
for speed alone:

    python -m benchmark.infer --systems exp/an4/teacher exp/an4/students/sparse90_16x1 \\
        --data-dir data/an4/test --bpe-dir exp/an4/bpe
    python -m benchmark.infer --size S --structure 16x1,unstructured --sparsity 0.9 --engines numba
    python -m benchmark.infer --device cuda --size L          # 2:4 by torch's kernels, batch 32, bfloat16
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from benchmark import options
from benchmark.encoders import DENSE, RANDOM_SECONDS, make_model, random_model, read_features
from benchmark.engines import available_engines, compile_encoder
from benchmark.loss_rows import times
from benchmark.rows import middle, real_time_factor, times_as_fast
from benchmark.speech import WORD_HEAD, WORD_KEYS, named_systems, own_tokenizer
from benchmark.turns import Measurement, run_groups
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_device, chosen_device, parser
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.structures import only_sparsity
from rnnt_kd.tables import markdown, shown

Systems = List[Tuple[str, Dict[str, Any]]]


@command
def main(argv: Optional[List[str]] = None) -> None:
    arguments = infer_parser().parse_args(argv)
    _check(arguments)
    (_on_gpu if arguments.device == "cuda" else _on_cpu)(arguments)


def infer_parser() -> argparse.ArgumentParser:
    target = parser(__doc__)
    target.add_argument("--systems", type=Path, nargs="+", default=[], help="folders of trained systems")
    target.add_argument("--size", help="a row of the conformer's SIZES: random weights instead of systems")
    target.add_argument("--structure", default="16x1", help="of the zeros of random weights; some, with commas")
    target.add_argument("--sparsity", type=float, default=0.9, help="of random weights")
    target.add_argument("--engines", default="torch,onnxruntime,onnxruntime_int8,numba,torch_bsr")
    target.add_argument("--data-dir", type=Path, help="a Kaldi data directory: real speech")
    target.add_argument("--bpe-dir", type=Path, help="count the words, too")
    target.add_argument("--search", default="modified_beam_search")
    target.add_argument("--beam", type=int, default=4)
    target.add_argument("--rounds", type=int, default=7, help="timed passes over everything")
    target.add_argument("--batches", type=int, default=10, help="parts of the utterances that take turns")
    target.add_argument("--batch", type=int, default=32, help="utterances a batch on a GPU; else it is 1")
    target.add_argument("--frames", type=int, default=1500, help="of features an utterance on a GPU")
    target.add_argument("--seed", type=int, default=1)
    add_device(target)
    target.set_defaults(device="cpu")
    options.add_report(target)
    return target


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError: a number out of range, options that do not go together."""
    options.check(arguments)
    if arguments.batch < 1:
        raise UserError("--batch", str(arguments.batch), "a number from 1 on")
    if not 0.0 <= arguments.sparsity < 1.0:
        raise UserError("--sparsity", str(arguments.sparsity), "a fraction in [0, 1)", "write 0.9 for 90 %")
    arguments.device = chosen_device(arguments.device) if arguments.device == "cuda" else "cpu"
    if bool(arguments.systems) == bool(arguments.size):
        raise UserError("--systems, --size", "none or both", "one of them: trained systems, or a size")
    if arguments.bpe_dir and not (arguments.systems and arguments.data_dir):
        raise UserError("--bpe-dir", "words of random weights or random features", "--systems and --data-dir with it")
    if arguments.device == "cuda" and not arguments.size:
        raise UserError("--device cuda", "trained systems", "--size, such as L: random weights")
    get_search(arguments.search)


def chosen_systems(arguments: argparse.Namespace) -> Systems:
    """Names and specifications; a dense one first where they are random."""
    if arguments.systems:
        return [(name, {"system_dir": str(folder)}) for name, folder in named_systems(arguments.systems)]
    systems = [(f"{arguments.size} dense", {"size": arguments.size, **DENSE})]
    for structure in filter(None, (part.strip() for part in arguments.structure.split(","))):
        only = only_sparsity(structure)
        zeros = {"structure": structure, "sparsity": arguments.sparsity if only is None else only}
        systems.append((f"{arguments.size} {structure}", {"size": arguments.size, **zeros}))
    for _, system in systems:
        make_model({**system, "seed": arguments.seed})  # a size or structure that does not exist is told now
    return systems


def _on_cpu(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.num_threads)
    engines = options.names("--engines", arguments.engines, available_engines())
    systems = chosen_systems(arguments)
    if arguments.bpe_dir:
        own_tokenizer(arguments.bpe_dir, [Path(system["system_dir"]) for _, system in systems])
    speech, features = read_features(arguments.data_dir, arguments.seed)
    seconds = sum(item.seconds for item in speech) or sum(RANDOM_SECONDS)
    first_call = _first_call(engines)
    parts = min(arguments.batches, len(features))  # each has long and short utterances
    common = {
        "module": "benchmark.encoders",
        "device": "cpu",
        "batches": [list(range(start, len(features), parts)) for start in range(parts)],
        "data_dir": arguments.data_dir and str(arguments.data_dir),
        "bpe_dir": arguments.bpe_dir and str(arguments.bpe_dir),
        **{key: getattr(arguments, key) for key in ("seed", "search", "beam", "num_threads")},
    }
    groups = [
        [Measurement(name, {**common, **system, "engine": engine, "subject": engine}) for name, system in systems]
        for engine in engines
    ]
    rows: List[Dict[str, Any]] = []
    products: List[Dict[str, Any]] = []
    frames = int(median(map(len, features))) // 4
    try:
        finished = lambda jobs: rows.extend(rows_of_engine(jobs, seconds, first_call))  # noqa: E731
        run_groups(groups, rounds=arguments.rounds, title=lambda job: job.specification["engine"], finished=finished)
        if "numba" in engines:
            from benchmark.products import product_jobs, product_rows, product_table  # need numba

            encoder = make_model({**common, **systems[0][1]}).get_submodule("encoder")
            jobs = product_jobs(encoder, frames, arguments.num_threads)
            finished = lambda jobs: products.extend(product_rows(jobs))  # noqa: E731
            run_groups([jobs], rounds=arguments.rounds, title=lambda job: "products", finished=finished)
    finally:  # after Ctrl-C, too: the groups that are finished are not lost
        if rows:
            tables = [encoder_table(rows), *([product_table(products, frames)] if products else [])]
            where = f"encoders, batch 1, float32 unless the engine says int8; {len(features)} utterances"
            where += f", {seconds:.0f} s of {'speech' if speech else 'random features'}"
            where += f"; {options.machine('cpu', arguments.num_threads)}"
            for engine, value in first_call.items():
                where += f"; {engine}: {value:.1f} s until the first result (compiled once, then kept on the disk)"
            options.report(where, tables, [*rows, *products], arguments)


def _first_call(engines: Sequence[str]) -> Dict[str, float]:
    """Seconds until the first result, for those engines that compile and keep the result: once here, not in every
    process."""
    if "numba" not in engines:
        return {}
    start = time.perf_counter()
    compile_encoder(random_model("tiny", 0).get_submodule("encoder"), "numba")(torch.zeros(8, 80))
    return {"numba": time.perf_counter() - start}


def rows_of_engine(
    jobs: Sequence[Measurement], audio_seconds: float, first_call: Optional[Dict[str, float]] = None
) -> List[Dict[str, Any]]:
    """Rows of the jobs that ran in one engine: real-time factors, sizes, words.

    "faster": how many times as fast it is as the first job, None if that did not run; bytes as they are.
    """
    return [
        {
            "engine": job.specification["engine"],
            "system": job.name,
            "rtf": real_time_factor(job, audio_seconds),
            "low": real_time_factor(job, audio_seconds, choose=min),
            "high": real_time_factor(job, audio_seconds, choose=max),
            "rounds": len(job.seconds[0]),
            "faster": times_as_fast(job, jobs[0]),
            "faster_than": jobs[0].name if jobs[0].cannot is None else None,
            "first_call_seconds": (first_call or {}).get(job.specification["engine"]),
            **{"wer": None, **job.facts},
        }
        for job in jobs
        if job.cannot is None
    ]


def encoder_table(rows: Sequence[Dict[str, Any]]) -> str:
    """A line a row; the columns of words only where some row has a word error rate.  1 MB is 10**6 bytes."""
    head = ["engine", "system", "structure", "zeros", "real-time factor", "low..high", "faster than"]
    head += ["MB of weights", "peak MB"]
    has_words = any(row["wer"] is not None for row in rows)
    cells = []
    for row in rows:
        cells.append([row["engine"], row["system"], row["structure"], f"{100 * row['sparsity']:.0f} %"])
        cells[-1] += [f"{row['rtf']:.6f}", f"{row['low']:.6f}..{row['high']:.6f}"]
        cells[-1] += [shown(row["faster"], ".2f", f" x {row['faster_than']}")]
        cells[-1] += [f"{row['bytes'] / 1e6:.2f}", f"{row['peak_bytes'] / 1e6:.1f}"]
        if has_words:
            cells[-1] += [shown(row.get(key), ".2f" if key == "wer" else "d") for key in WORD_KEYS]
    return markdown([*head, *(WORD_HEAD if has_words else ())], cells, left=3)


def _on_gpu(arguments: argparse.Namespace) -> None:
    """2:4 by torch's semi-structured kernels, against dense bfloat16."""
    common = {"module": "benchmark.encoders", "device": "cuda", "size": arguments.size, "seed": arguments.seed}
    common.update(batches=[[arguments.frames] * arguments.batch], num_threads=arguments.num_threads)
    zeros = {"structure": "2:4", "sparsity": 0.5}
    jobs = [
        Measurement(engine, {**common, **zeros, "engine": engine, "subject": engine}) for engine in ("dense", "2:4")
    ]
    rows: List[Dict[str, Any]] = []

    def finished(jobs: Sequence[Measurement]) -> None:
        able = [job for job in jobs if job.cannot is None]
        rows.extend({"kind": job.name, **middle(job), "faster": times_as_fast(job, jobs[0])} for job in able)

    run_groups([jobs], rounds=arguments.rounds, title=lambda job: arguments.size, finished=finished)
    where = f"encoder {arguments.size}, batch {arguments.batch}, {arguments.frames} frames, bfloat16"
    cells = [[row["kind"], *times(row), f"{row['peak_mb']:.1f}", shown(row["faster"], ".2f", " x")] for row in rows]
    table = markdown(["kind", "seconds", "low..high", "peak MB", "faster"], cells)
    options.report(f"{where}; {options.machine('cuda', 1)}", [table], rows, arguments)


if __name__ == "__main__":
    main()

"""How fast encoders are on one utterance at a time, and what zeros in their weights are worth.

Systems are compared within an engine, the first of them (give a dense one) being the measure; they take turns.
With --data-dir it is real speech, and with --bpe-dir the words are counted too; with --size the weights are random,
for speed alone:

    python -m rnnt_kd.bin.bench_infer --systems exp/an4/teacher exp/an4/students/sparse90_16x1 \\
        --data-dir data/an4/test --bpe-dir exp/an4/bpe
    python -m rnnt_kd.bin.bench_infer --size S --structure 16x1,unstructured --sparsity 0.9 --engines numba
    python -m rnnt_kd.bin.bench_infer --device cuda --size L          # 2:4 by torch's kernels, batch 32, bfloat16
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rnnt_kd import atomic
from rnnt_kd.benchmark.encoder_pass import encoder_subjects, make_model, time_in_turns
from rnnt_kd.benchmark.encoder_rows import encoder_table, rows_of_engine
from rnnt_kd.benchmark.encoder_words import recognise, word_figures
from rnnt_kd.benchmark.engines import available_engines, compile_encoder
from rnnt_kd.benchmark.rounds import Job, run_group
from rnnt_kd.benchmark.semi_structured import GOAL, semi_structured_rows
from rnnt_kd.benchmark.worker import serve
from rnnt_kd.bin.bench_infer_options import check, chosen_systems, infer_parser, own_tokenizer
from rnnt_kd.bin.bench_options import check_outputs, machine, names, say
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import join
from rnnt_kd.data.speech import Speech, filter_banks, read_speech
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.errors import UserError

MODULE = "rnnt_kd.bin.bench_infer"
RANDOM_SECONDS = (1.5, 2.5, 3.5, 5.0, 7.5)  # of speech, where there is none


@command
def main(argv: Optional[List[str]] = None) -> None:
    arguments = infer_parser(__doc__).parse_args(argv)
    if arguments.worker:
        serve(encoder_subjects, sys.stdin, sys.stdout)
        return
    check(arguments)
    check_outputs(arguments.json, arguments.md)
    if arguments.device == "cuda":
        _semi_structured(arguments)
        return
    torch.set_num_threads(arguments.num_threads)
    engines = names("--engines", arguments.engines, available_engines())
    if not engines:
        raise UserError("--engines", "none are given", f"some of: {join(available_engines())}")
    systems = chosen_systems(arguments)
    folders = [Path(system["system_dir"]) for _, system in systems] if arguments.bpe_dir else []
    tokenizer = own_tokenizer(arguments.bpe_dir, folders) if arguments.bpe_dir else None
    speech = _speech(arguments.data_dir)
    features = [filter_banks(item.samples) for item in speech] or _random_features(arguments.seed)
    audio_seconds = sum(item.seconds for item in speech) or sum(RANDOM_SECONDS)
    first_calls = _first_calls(engines)
    rows = _measure(systems, engines, features, audio_seconds, arguments)
    if tokenizer is not None:
        _count_words(rows, dict(systems), speech, features, tokenizer, arguments)
    products = None
    if "numba" in engines:
        from rnnt_kd.benchmark.dense_products import compare_products  # needs numba

        frames = int(np.median([len(part) for part in features])) // 4
        products = {"frames": frames, **compare_products(make_model(systems[0][1]).encoder, frames)}
    where = f"{machine('cpu', arguments.num_threads)}; {len(features)} utterances, {audio_seconds:.0f} s of " + (
        "speech" if speech else "random features"
    )
    _report(rows, products, first_calls, where, arguments)


def _speech(data_dir: Optional[Path]) -> List[Speech]:
    """What can be used of it."""
    speech = [item for item in read_speech(data_dir) if item.samples is not None] if data_dir else []
    if data_dir and not speech:
        raise UserError(data_dir, "holds no usable audio", "some speech")
    return speech


def _random_features(seed: int) -> List[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(int(100 * seconds), 80, generator=generator) * 3.5 - 7.5 for seconds in RANDOM_SECONDS]


def _measure(systems, engines, features, audio_seconds: float, arguments) -> List[Dict[str, Any]]:
    """Rows of every engine and system that go together; memory in processes of their own, then time in this one."""
    rows: List[Dict[str, Any]] = []
    reasons: List[str] = []
    total = len(engines) * (len(systems) + arguments.rounds * min(arguments.batches, len(features)))
    layout = "{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {desc}"
    with tempfile.TemporaryDirectory() as folder, tqdm(total=total, bar_format=layout, mininterval=1.0) as bar:
        np.savez(Path(folder) / "features.npz", *(part.numpy() for part in features))
        common = {"features": str(Path(folder) / "features.npz"), "num_threads": arguments.num_threads, "batches": []}
        for engine in engines:
            bar.set_description_str(engine, refresh=False)
            jobs = [Job(name, {**common, **system, "engine": engine, "subject": engine}) for name, system in systems]
            for job in jobs:
                run_group([job], MODULE, rounds=0, seconds_per_row=1.0, tell=lambda *_: None)
                bar.update()
                if job.cannot is not None:
                    reasons.append(job.cannot)
                    bar.write(f"{engine}: {job.name}: left out, {job.cannot}", file=sys.stderr)
            able = [job for job in jobs if job.cannot is None]
            encoders = [compile_encoder(make_model(job.specification).encoder, engine) for job in able]
            if able:
                seconds = time_in_turns(encoders, features, arguments.batches, arguments.rounds, bar.update)
                for job, times in zip(able, seconds):
                    job.seconds = times
            rows += rows_of_engine(jobs, audio_seconds)
    if not rows:
        raise UserError("benchmark", f"nothing could be measured: {reasons[0]}", "")
    return rows


def _first_calls(engines: Sequence[str]) -> Dict[str, float]:
    """Seconds until the first result, for those engines that compile and keep the result: once here, not in every
    worker."""
    if "numba" not in engines:
        return {}
    start = time.perf_counter()
    encoder = make_model({"size": "tiny", "seed": 0, "structure": "unstructured", "sparsity": 0.0}).encoder
    compile_encoder(encoder, "numba")(torch.zeros(8, 80))
    return {"numba": time.perf_counter() - start}


def _count_words(rows, systems, speech: Sequence[Speech], features: Sequence[Tensor], tokenizer, arguments) -> None:
    """Add the words of each row's system by each row's engine."""
    search = get_search(arguments.search)
    for name, system in systems.items():
        model = make_model(system)

        def words(engine: str):
            encode = compile_encoder(model.encoder, engine)  # noqa: B023
            return recognise(encode, model, speech, features, tokenizer, search, arguments.beam)  # noqa: B023

        by_torch = words("torch")
        for row in rows:
            if row["system"] == name:
                say(f"words of {name} by {row['engine']}")
                row.update(word_figures(words(row["engine"]), by_torch))


def _report(rows, products, first_calls, where: str, arguments) -> None:
    print(f"encoders, batch 1, float32 unless the engine says int8; {where}\n")
    print(encoder_table(rows))
    for engine, seconds in first_calls.items():
        print(f"\n{engine}: {seconds:.1f} s until the first result (the very first time it compiles, then it is kept)")
    if products:
        milliseconds = {name: f"{1e3 * products[name]:.3f} ms" for name in ("own", "numpy", "torch", "best")}
        print(
            f"\nmatrix products of the first system, dense, {products['frames']} frames: numba's own "
            f"{milliseconds['own']}, numpy's BLAS {milliseconds['numpy']}, torch's {milliseconds['torch']}; "
            f"the best of the three matrix by matrix {milliseconds['best']}"
        )
    sys.stdout.flush()
    if arguments.json:
        values = {"where": where, "rows": rows, "dense_products": products, "first_call_seconds": first_calls}
        atomic.write_text(arguments.json, json.dumps(values, indent=1) + "\n")
    if arguments.md:
        atomic.write_text(arguments.md, f"{encoder_table(rows, markdown=True)}\n\n{where}.\n")


def _semi_structured(arguments) -> None:
    if not arguments.size:
        raise UserError("--device cuda", "trained systems", "--size, such as L: random weights")
    rows = semi_structured_rows(arguments.size, arguments.batch, arguments.frames, arguments.rounds, arguments.seed)
    what = f"encoder {arguments.size}, batch {arguments.batch}, {arguments.frames} frames, bfloat16"
    where = f"{what}; {machine('cuda', 1)}"
    print(where)
    for row in rows:
        print(f"{row['kind']:>6}  {row['seconds']:.4f} s  ({row['low']:.4f}..{row['high']:.4f})  {row['faster']:.2f} x")
    faster = rows[-1]["faster"]
    print(f"goal: 2:4 at least {GOAL:g} x as fast as dense: {'reached' if faster >= GOAL else 'NOT reached'}")
    if arguments.json:
        atomic.write_text(arguments.json, json.dumps({"where": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

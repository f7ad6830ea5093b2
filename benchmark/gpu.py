"""What only a GPU can tell, in at most eight minutes, on a machine without network; tests/gpu.sh calls it.

    tests      what is marked ``gpu``: results equal to the CPU's, words too, and a training in bfloat16
    loss       ours without a teacher, from the cache, online; whole logits, torchaudio's, the bare products
    steps      whole training steps without distillation, from the cache and with the teacher online
    processes  the same by one process and by one a GPU
    infer      a sparse encoder of size L, 2:4 by torch's kernels

Each part is a process of its own with its own time limit; one that fails stops no other.  Their tables are printed as
they come; at the end one table says how each part went, and --json has every figure.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import torch

from benchmark import options
from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_device, chosen_device, parser
from rnnt_kd.tables import markdown

ROOT = Path(__file__).resolve().parents[1]


class Part(NamedTuple):
    """``limit`` in seconds; ``words``: of Python, a benchmark's without --json."""

    name: str
    limit: int
    words: List[str]


def parts(device: str, gpus: int, shapes: Optional[Path]) -> List[Part]:
    """On a CPU the same commands with small numbers and ten times the time, to see that they run."""
    large = device == "cuda"
    common = ["--device", device, "--rounds", "3" if large else "1"]
    lengths = ["--shapes", str(shapes)] if shapes is not None else []
    loss = ["-m", "benchmark.loss", *common, *lengths, "--vocab", "500,5000" if large else "30"]
    loss += ["--batch", "64" if large else "2", "--batches", "2" if large else "1", "--seconds-per-row", "20"]
    loss += ["--peers", "naive,torchaudio,k2"]
    step = [*common, *lengths, "--size", "S" if large else "tiny", "--batch", "16" if large else "2"]
    step += ["--seconds-per-row", "15"] + ([] if large else ["--batches", "1", "--vocab", "30"])
    infer = (
        ["--size", "L"] if large else ["--size", "tiny", "--engines", "torch", "--structure", "2:4", "--batches", "1"]
    )
    found = [
        Part("tests", 120, ["-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]),
        Part("loss bfloat16", 75, [*loss, "--dtype", "bfloat16"]),
        Part("loss float32", 75, [*loss, "--dtype", "float32"]),
        Part("steps", 70, ["-m", "benchmark.train_step", *step]),
        Part("processes", 70, ["-m", "benchmark.ddp", *step, "--processes", ",".join(map(str, sorted({1, gpus})))]),
        Part("infer", 60, ["-m", "benchmark.infer", *common, *infer]),
    ]
    return found if large else [part._replace(limit=10 * part.limit) for part in found]


def run(part: Part, folder: Path) -> Dict[str, Any]:
    """Returns status ("ok", "failed", "too long"), seconds, and what it reported: "where" and "rows", or empty ones."""
    report = folder / f"{part.name}.json"
    words = [] if part.name == "tests" else ["--json", str(report)]
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, *part.words, *words], cwd=ROOT, start_new_session=True)
    try:
        status = "ok" if child.wait(part.limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "too long"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the children of one that took too long, too
        child.wait()
    found = json.loads(report.read_text()) if report.exists() else {"where": "", "rows": []}
    return {"status": status, "seconds": round(time.monotonic() - started, 1), **found}


@command
def main(argv: Optional[List[str]] = None) -> None:
    target = parser(__doc__)
    add_device(target)
    target.add_argument("--json", type=Path, default=Path("gpu.json"), help="every figure")
    target.add_argument("--shapes", type=Path, help="lines T,S of real utterances: encoder frames and symbols")
    target.add_argument("--parts", help="some, with commas (default: all)")
    arguments = target.parse_args(argv)
    device = chosen_device(arguments.device)
    known = {part.name: part for part in parts(device, max(1, torch.cuda.device_count()), arguments.shapes)}
    chosen = options.names("--parts", arguments.parts or ",".join(known), list(known))
    results: Dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            print(f"\n--- {name}: at most {known[name].limit} s", flush=True)
            results[name] = run(known[name], Path(folder))
            machine = options.machine(device, arguments.num_threads)
            atomic.write_json(arguments.json, {"where": machine, "parts": results})
    cells = [[name, one["status"], f"{one['seconds']:.0f}", len(one["rows"]) or "-"] for name, one in results.items()]
    print("\n" + markdown(["part", "ended", "seconds", "figures"], cells, left=2))
    print(f"\n{options.machine(device, arguments.num_threads)}; {arguments.json}")
    if any(one["status"] != "ok" for one in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

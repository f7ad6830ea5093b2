"""``kill -9`` at any moment, then the same command: ``python tests/kill.py SEED COUNT [--jobs 2]``.

A small experiment (a teacher, its cache, a sparse distilled student) is made once, step by step, without being killed.  Each
trial takes the folder as it was before a random step, starts the step, kills it with all its children at a random moment,
once or twice, and gives the same command again.  The folder must then be what it is without a kill, bit for bit but for
clock times.  Prints a line a trial and a table; exits with 1 if any folder differs, or a command fails.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugin"), str(ROOT / "tests" / "cases")]

from tone_corpus import make_tone_corpus  # noqa: E402

from rnnt_kd.tables import markdown  # noqa: E402

STEPS = ("features", "bpe", "teacher", "cache", "train", "decode", "score", "export")
EXPERIMENT = """
systems:
  teacher: {role: teacher}
  sparse_kd: {role: sparse_student, teacher: teacher, sparsity: 0.6, kd: {}}
"""
# Clock times, and what is derived from them: the digest of a state.json that holds one, the size of metrics.jsonl.
TIMES = (
    "seconds",
    "rtf",
    "real_time",
    "notes",
    "per_second",
    "throughput",
    "created",
    "host",
    "state.json",
    "metrics_bytes",
)
UNCOMPARED = (".lock", ".log", "README.md", "sizes.md")  # tables with times in them
TIMEOUT = 600  # of one command; nothing takes a tenth of that


def command(folder, step):
    """The command line of a step in ``folder``."""
    data = folder.parent / "corpus"
    options = {
        "config": data / "preset.yaml",
        "experiment": data / "trial.yaml",
        "exp-dir": folder,
        "train-dir": data / "train",
        "dev-dir": data / "dev",
    }
    options.update({"test-dirs": data / "dev", "steps": step, "device": "cpu", "lattice-backend": "torch", "nj": 1})
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "rnnt_kd.bin.experiment", *words]


def start(folder, step):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugin"), "OMP_NUM_THREADS": "1"}
    log = open(folder.with_suffix(".log"), "a")
    with log:
        return subprocess.Popen(
            command(folder, step), env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )  # fmt: skip


def finish(folder, step):
    """Run to the end.  Returns what was said, where the command failed."""
    status = start(folder, step).wait(TIMEOUT)
    said = folder.with_suffix(".log").read_text()
    return said[-2000:] if status or "Traceback" in said else ""


def contents(folder):
    """Path -> what is compared, of every file."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(UNCOMPARED))
    return {str(path.relative_to(folder)): _comparable(path) for path in files if "tensorboard" not in path.parts}


def _comparable(path):
    content = path.read_bytes()
    if path.suffix == ".json":
        values = _timeless(json.loads(content))
        if path.name.endswith(".record.json"):  # its digests are of files with times in them; the files are compared
            values = {"outputs": sorted(values["outputs"]), "of": [values["settings"], values["inputs"]]}
        return json.dumps(values, sort_keys=True).encode()
    if path.suffix == ".jsonl":
        lines = (json.loads(line) for line in content.splitlines())
        return "\n".join(json.dumps(_timeless(line), sort_keys=True) for line in lines).encode()
    return content


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if not any(word in key for word in TIMES)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def trial(number, seed, work, seconds):
    """(step, moments of the kills, what is wrong or "").  Always in the same folder: records name their inputs by path."""
    rng = random.Random(f"{seed}/{number}")
    step, folder, moments = rng.choice(STEPS), work / "exp", []
    shutil.rmtree(folder)
    shutil.copytree(work / "before" / step, folder, symlinks=True)
    folder.with_suffix(".log").unlink(missing_ok=True)
    for _ in range(rng.choice([1, 1, 2])):
        moments.append(rng.uniform(0.0, 1.1 * seconds[step]))
        process = start(folder, step)
        try:
            process.wait(moments[-1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.3)  # its children, in sessions of their own, see that it is gone
    wrong = finish(folder, step)
    if not wrong:
        ours, right = contents(folder), contents(work / "after" / step)
        differ = sorted(name for name in {*ours, *right} if ours.get(name) != right.get(name))
        wrong = f"{len(differ)} files differ: {', '.join(differ[:5])}" if differ else ""
    if wrong:
        shutil.copytree(folder, work / f"trial{number}", symlinks=True)
    return step, moments, wrong


def reference(work):
    """before/STEP and after/STEP of every step, and the seconds that each took."""
    work.mkdir()
    (work / "corpus").mkdir()
    corpus = make_tone_corpus(work / "corpus")
    (corpus.folder / "trial.yaml").write_text(EXPERIMENT)
    shutil.rmtree(corpus.folder / "cuts")
    folder, seconds = work / "exp", {}
    folder.mkdir()
    for step in STEPS:
        shutil.copytree(folder, work / "before" / step, symlinks=True)
        started = time.monotonic()
        wrong = finish(folder, step)
        if wrong:
            raise SystemExit(f"{step} fails without a kill: {wrong}")
        seconds[step] = time.monotonic() - started
        shutil.copytree(folder, work / "after" / step, symlinks=True)
    return seconds


def campaign(place, numbers, seed):
    """[(step, what is wrong)] of these trials, one after the other in ``place``."""
    seconds = reference(place)
    print("seconds a step: " + ", ".join(f"{step} {value:.1f}" for step, value in seconds.items()), flush=True)
    results = []
    for number in numbers:
        step, moments, wrong = trial(number, seed, place, seconds)
        told = f"WRONG: {wrong} ({place}/trial{number})" if wrong else "as without a kill"
        print(f"{number} {step}: killed after {', '.join(f'{x:.1f} s' for x in moments)}: {told}", flush=True)
        results.append((step, wrong))
    return results


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("seed", type=int)
    options.add_argument("count", type=int, help="trials")
    options.add_argument("--jobs", type=int, default=1, help="trials side by side")
    args = options.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="kill."))
    with ThreadPoolExecutor(args.jobs) as pool:
        shares = [range(job, args.count, args.jobs) for job in range(args.jobs)]
        places = [work / f"job{job}" for job in range(args.jobs)]
        results = [each for part in pool.map(campaign, places, shares, [args.seed] * args.jobs) for each in part]
    trials, right = Counter(step for step, _ in results), Counter(step for step, wrong in results if not wrong)
    print(markdown(["step", "trials", "bit-identical"], [[step, trials[step], right[step]] for step in STEPS]))
    if right.total() < args.count:
        return 1
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

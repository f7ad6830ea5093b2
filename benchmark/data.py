"""What a source of many cuts costs: the first reading, a later start, memory, an epoch's order, and a step's wait.

A made-up corpus lies in a temporary folder: as many cuts as 960 hours at three speeds, of the lengths of read speech,
in a cuts file as stage 1 writes it, all of whose features are those of a few.  With ``--shar`` it lies in Lhotse's Shar
format, of which each shard has its own archives; those cuts are short, for the sake of the disk, and carry a teacher.
Each figure comes from a process of its own; memory is what it has at its peak above one that has only imported the same
modules.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import lilcom
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmark import options
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import parser
from rnnt_kd.data import batch_order
from rnnt_kd.data.dataset import CutDataLoader, make_dataloader
from rnnt_kd.data.selection import Selection, select
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.tables import markdown
from rnnt_kd.teachers.carried import CarriedTeacher

CUTS_960H = 843_723  # 281,241 utterances at three speeds
MATRICES = 200  # that are really there
SHARD = 2000  # cuts
WORDS = "the of and a to in he was that his it had with as for you is at her on not be".split()


@command
def main(argv: Optional[List[str]] = None) -> None:
    target = parser(__doc__)
    target.add_argument("--cuts", type=int, default=CUTS_960H, help="how many (default: 960 h at three speeds)")
    target.add_argument("--shar", action="store_true", help="in a Shar folder, of 5 kB a cut: 10,000,000 take 50 GB")
    target.add_argument("--batch-seconds", type=float, default=600.0, help="audio a batch")
    target.add_argument("--step-seconds", type=float, default=0.5, help="that a step takes, beside the loading")
    target.add_argument("--steps", type=int, default=20, help="whose wait is measured")
    target.add_argument("--workers", default="0,1,4", help="processes that load")
    target.add_argument("--folder", type=Path, help="keep the corpus here, or take the one that is here")
    target.add_argument("--job", help="of this command itself")
    options.add_report(target)
    arguments = target.parse_args(argv)
    if arguments.job:
        print(json.dumps(JOBS[arguments.job](arguments)))
        return
    if arguments.cuts < 1:
        raise UserError("--cuts", str(arguments.cuts), "1 or more")
    with tempfile.TemporaryDirectory() as made:
        arguments.folder = arguments.folder or Path(made)
        if not corpus_path(arguments).exists():
            options.say("making the corpus")
            (make_shar if arguments.shar else make_cuts_file)(arguments.folder, arguments.cuts)
        row = measured(arguments)
    where = f"{arguments.cuts:,} cuts {'in Shar' if arguments.shar else 'in a cuts file'}; {options.machine('cpu', 1)}"
    options.report(where, [table(row)], [row], arguments)


def measured(arguments: Any) -> Dict[str, Any]:
    """All figures: seconds and MB by name."""
    empty = _job(arguments, "empty")["peak_mb"]
    row: Dict[str, Any] = {}
    for name in ("first", "later", "plan"):
        options.say(name)
        found = _job(arguments, name)
        row.update({f"{name}_{key}": value for key, value in found.items() if key != "peak_mb"})
        row[f"{name}_mb"] = found["peak_mb"] - empty
    for workers in arguments.workers.split(","):
        options.say(f"{workers} workers")
        row[f"wait_{workers}"] = _job(arguments, "wait", "--workers", workers)["wait"]
    return row


def table(row: Dict[str, Any]) -> str:
    """One line a figure."""
    shown: List[Tuple[str, str]] = [
        ("first reading, with its index (s)", f"{row['first_seconds']:.1f}"),
        ("a later start: to the first batch (s)", f"{row['later_seconds']:.1f}"),
        ("memory at the first reading, above an empty process (MB)", f"{row['first_mb']:.0f}"),
        ("memory of a later start (MB)", f"{row['later_mb']:.0f}"),
        ("planning an epoch (s)", f"{row['plan_seconds']:.1f}"),
    ]
    waits = [(f"wait of a step, {key[5:]} workers (ms)", f"{1000 * row[key]:.0f}") for key in row if key[:5] == "wait_"]
    return markdown(["", ""], [*shown, *waits], left=1)


def empty(arguments: Any) -> Dict[str, float]:
    return {"peak_mb": _peak_mb()}


def start(arguments: Any) -> Dict[str, float]:
    """Open the corpus, leave out what cannot be trained on, plan an epoch, read its first batch."""
    begin = time.perf_counter()
    loader = _loader(arguments)
    CarriedTeacher.of(loader.source, {})
    loader[0]
    return {"seconds": time.perf_counter() - begin, "peak_mb": _peak_mb()}


def plan(arguments: Any) -> Dict[str, float]:
    """The second epoch's order."""
    source = open_source(corpus_path(arguments))
    begin = time.perf_counter()
    batch_order.plan_batches(source.durations, arguments.batch_seconds, 30, True, 1, 1)
    return {"seconds": time.perf_counter() - begin, "peak_mb": _peak_mb()}


def wait(arguments: Any) -> Dict[str, float]:
    """Mean seconds that a step waits for its batch, those of the first second left out."""
    torch.set_num_threads(1)
    workers = int(arguments.workers)
    loader = _loader(arguments)
    batches = iter(DataLoader(loader, batch_size=None, sampler=range(arguments.steps + 1), num_workers=workers))  # type: ignore[arg-type]
    next(batches)
    waits: List[float] = []
    for _ in range(arguments.steps):
        time.sleep(arguments.step_seconds)
        begin = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - begin)
    return {"wait": sum(waits) / len(waits)}


JOBS = {"empty": empty, "first": start, "later": start, "plan": plan, "wait": wait}


def corpus_path(arguments: Any) -> Path:
    return arguments.folder / ("shar" if arguments.shar else "train.jsonl.gz")


def make_cuts_file(folder: Path, count: int) -> None:
    """As of stage 1; the features of each cut are those of one of ``MATRICES`` lengths."""
    generator = np.random.default_rng(0)
    (folder / "train_feats").mkdir(parents=True, exist_ok=True)
    stored = []
    with open(folder / "train_feats/feats-00000.lca", "wb") as file:
        for seconds in np.round(np.clip(generator.normal(12.3, 3.8, MATRICES), 1.3, 35.0), 2).tolist():
            matrix = generator.normal(-8, 3, (round(100 * seconds), 80)).astype(np.float32)
            chunks = [lilcom.compress(matrix[at : at + 500], tick_power=-5) for at in range(0, len(matrix), 500)]
            key = ",".join(map(str, [file.tell(), *map(len, chunks)]))
            stored.append((seconds, len(matrix), key, hashlib.sha256(b"".join(chunks)).hexdigest()))
            file.write(b"".join(chunks))
    path = str(folder.resolve() / "train_feats/feats-00000.lca")
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with open(folder / "train.tmp", "wb") as file:
        for start in range(0, count, 1000):
            lines = [_line(place, *stored[place % MATRICES], path) for place in range(start, min(start + 1000, count))]
            file.write(packer.compress("".join(lines).encode()))
        file.write(packer.flush())
    (folder / "train.tmp").rename(folder / "train.jsonl.gz")


def make_shar(folder: Path, count: int) -> None:
    """Cuts of 0.1 s, with archives as ``lhotse.shar.SharWriter`` writes them."""
    final, made = folder / "shar", folder / "shar.tmp"
    made.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(0).normal(-8, 3, (10, 80)).astype(np.float32)
    facts = {"teacher": "", "bpe": "", "blank_id": 0, "subsampling": 4, "prune_range": 5, "rnnt_type": "regular"}
    facts.update(temperature=1.0, lm_only_scale=0.25, am_only_scale=0.0, min_seconds=0.0, max_seconds=30.0)
    array = {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": [3, 11]}
    npy = io.BytesIO()
    np.save(npy, np.zeros((3, 11), dtype=np.int16))
    data = {"features": lilcom.compress(matrix, tick_power=-5), "kd": npy.getvalue()}
    for shard, start in enumerate(range(0, count, SHARD)):
        lines = []
        for place in range(start, min(start + SHARD, count)):
            cut = json.loads(_line(place, 0.1, 10, "", "", ""))
            cut["features"].update(storage_type="shar")
            lines.append({**cut, "custom": {"kd": array, "kd_facts": facts}})
        for field, kind in (("features", "llc"), ("kd", "npy")):
            with tarfile.open(made / f"{field}.{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for cut in lines:
                    described = cut["features"] if field == "features" else array
                    for name, content in ((kind, data[field]), ("json", json.dumps(described).encode())):
                        member = tarfile.TarInfo(f"{cut['id']}.{name}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        text = packer.compress("".join(json.dumps(cut) + "\n" for cut in lines).encode()) + packer.flush()
        (made / f"cuts.{shard:06d}.jsonl.gz").write_bytes(text)
    made.rename(final)


def _line(place: int, seconds: float, num_frames: int, key: str, digest: str, path: str) -> str:
    name, utterance = f"{place % 5831}-{place // 3:08d}{('', '_sp0.9', '_sp1.1')[place % 3]}", place // 3
    text = " ".join(WORDS[(utterance * (at + 7) + at) % len(WORDS)] for at in range(max(1, int(2 * seconds))))
    said = {"id": name, "recording_id": name, "start": 0.0, "duration": seconds, "channel": 0, "text": text}
    features = {"type": "kaldi-fbank", "num_frames": num_frames, "num_features": 80, "frame_shift": 0.01}
    features.update(sampling_rate=16000, start=0.0, duration=seconds, storage_type="lilcom_chunky", storage_path=path)
    features.update(storage_key=key, recording_id=name, channels=0)
    source = {"type": "file", "channels": [0], "source": f"/corpus/{name}.flac"}
    recording = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": round(16000 * seconds)}
    recording.update(duration=seconds, channel_ids=[0])
    custom = {"custom": {"features_sha256": digest}} if digest else {}
    cut = {"id": name, "start": 0.0, "duration": seconds, "channel": 0, "supervisions": [{**said, "speaker": name[:4]}]}
    return json.dumps({**cut, "features": features, "recording": recording, "type": "MonoCut", **custom}) + "\n"


def _loader(arguments: Any) -> CutDataLoader:
    path = corpus_path(arguments)
    order = dict(batch_seconds=arguments.batch_seconds, num_buckets=30, shuffle=True, seed=1)
    return make_dataloader(path, places=_selection(path).places, **order)


def _selection(path: Path) -> Selection:
    """With letters for a BPE model: the time of that is its own."""
    return select(
        open_source(path),
        encode=lambda text: [ord(letter) for letter in text[::4]],
        unk_id=1,
        checksum="every fourth letter",
        encoder_frames=lambda frames: torch.div(frames + 3, 4, rounding_mode="floor"),
        min_seconds=0.1,
        max_seconds=30.0,
        separate_repeats=True,
    )


def _job(arguments: Any, name: str, *more: str) -> Dict[str, float]:
    words = ["--job", name, "--folder", str(arguments.folder), "--cuts", str(arguments.cuts), *more]
    words += ["--shar"] if arguments.shar else []
    for key in ("batch_seconds", "step_seconds", "steps"):
        words += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
    done = subprocess.run([sys.executable, "-m", "benchmark.data", *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _peak_mb() -> float:
    """The largest resident set so far, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()

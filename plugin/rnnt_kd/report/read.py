"""What the page shows of an experiment, read from its files; no torch.

    teacher/, students/<name>/      system.json, config.yaml, metrics.jsonl, model.safetensors, decode_*/
    kd_cache/*.safetensors          the teacher's cache: its size
    sizes.json                      bytes and %WER of every file format
    experiments/<name>/             summary.json, results.json: several seeds

Nothing has to be there.  What is missing, half written or damaged is left out, and the systems' ``state`` or
``problems`` say so; a page is made of the rest.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import safetensors
from omegaconf import OmegaConf

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.summary import Row, collect

TERMS = ("loss", "pruned_loss", "simple_loss", "ctc_loss", "kd_loss")  # of metrics.jsonl
PACKED_BITS = ":bits"  # of training/packed_system.py


@dataclass(frozen=True)
class System:
    """One folder.

    Attributes:
      twin:     the system without distillation that it is compared with; "" where there is none.
      kind:     "teacher", "plain" (no distillation), "kd" (from the teacher's cache) or "online".
      rows:     of scoring.summary, one a test set and search.
      metrics:  the lines of metrics.jsonl.
      matrices: name of a weight matrix -> (entries that are not zero, entries); empty before training ends.
      config:   of config.yaml.
    """

    name: str
    twin: str
    kind: str
    folder: Path
    rows: Tuple[Row, ...]
    metrics: Tuple[Dict[str, Any], ...]
    matrices: Dict[str, Tuple[int, int]]
    config: Dict[str, Any]

    @property
    def target_sparsity(self) -> float:
        return float(self.config.get("target_sparsity") or 0.0)

    @property
    def train_seconds(self) -> Optional[float]:
        return self.rows[0].values["train_seconds"] if self.rows else None


@dataclass(frozen=True)
class Study:
    """A file of conf/experiments: its rows (experiments/table.py) and its seeds (experiments/results.py)."""

    name: str
    rows: Tuple[Dict[str, Any], ...]
    seeds: Tuple[Dict[str, Any], ...]


@dataclass(frozen=True)
class Experiment:
    """All of it.  ``problems``: a line on each file that could not be used."""

    corpus: str
    test_sets: Tuple[str, ...]
    systems: Tuple[System, ...]
    sizes: Tuple[Dict[str, Any], ...]
    cache_bytes: int
    cache_shards: int
    studies: Tuple[Study, ...]
    problems: Tuple[str, ...]

    def pairs(self) -> List[Tuple[System, System]]:
        """(distilled system, its twin)."""
        by_name = {system.name: system for system in self.systems}
        return [(system, by_name[system.twin]) for system in self.systems if system.twin in by_name]


def read_experiment(exp_dir: Path, corpus: str, test_sets: Sequence[str], expected: Iterable[str] = ()) -> Experiment:
    """``expected``: names of systems that should be there; see scoring.summary.collect."""
    exp_dir = Path(exp_dir)
    problems: List[str] = []
    rows: Dict[str, List[Row]] = {}
    for row in collect(exp_dir, test_sets, expected):
        rows.setdefault(row.values["system"], []).append(row)
    shards = sorted((exp_dir / "kd_cache").glob("*.safetensors"))
    return Experiment(
        corpus,
        tuple(test_sets),
        tuple(_system(exp_dir, name, of_system, problems) for name, of_system in rows.items()),
        tuple(_objects(exp_dir / "sizes.json", ("system", "format", "bytes"), problems)),
        sum(path.stat().st_size for path in shards),
        len(shards),
        tuple(_studies(exp_dir, problems)),
        tuple(problems),
    )


def inputs(exp_dir: Path) -> Tuple[List[Path], List[Path]]:
    """Files that the page depends on: small ones, and those that are large or many."""
    exp_dir = Path(exp_dir)
    folders = [exp_dir / "teacher", *sorted((exp_dir / "students").glob("[!.]*"))]
    small = [exp_dir / "sizes.json", *sorted(exp_dir.glob("experiments/*/*.json"))]
    large = sorted(exp_dir.glob("report/lattices/*/*/[!.]*")) + sorted(exp_dir.glob("kd_cache/*.safetensors"))
    for folder in folders:
        small += [path for name in ("system.json", "config.yaml") if (path := folder / name).exists()]
        small += sorted(folder.glob("decode_*/*.json")) + sorted(folder.glob("decode_*/recogs-*.txt"))
        large += [path for name in ("metrics.jsonl", "model.safetensors") if (path := folder / name).exists()]
    return [path for path in small if path.is_file()], large


def read_metrics(path: Path) -> List[Dict[str, Any]]:
    """Lines of a metrics.jsonl; a last one that is being written, and any other that is none, is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


def count_nonzero(path: Path) -> Dict[str, Tuple[int, int]]:
    """Weight matrix -> (not zero, all), of a safetensors file, plain or packed.  UserError: it is damaged."""
    counts = {}
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            shapes = json.loads((file.metadata() or {}).get("shapes", "{}"))
            for name in file.keys():
                if name.endswith(PACKED_BITS):
                    plain = name[: -len(PACKED_BITS)]
                    if len(shapes[plain]) == 2:
                        kept = int(np.unpackbits(file.get_tensor(name)).sum())
                        counts[plain] = kept, math.prod(shapes[plain])
                elif len(file.get_slice(name).get_shape()) == 2 and name.endswith("weight"):
                    tensor = file.get_tensor(name)
                    counts[name] = int(np.count_nonzero(tensor)), tensor.size
    except FileNotFoundError:
        return {}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(path, f"damaged ({error})", "the weights of a system") from None
    return dict(sorted(counts.items()))


def _system(exp_dir: Path, name: str, rows: Sequence[Row], problems: List[str]) -> System:
    folder = exp_dir / "teacher" if name == "teacher" else exp_dir / "students" / name
    is_kd = "_kd" in name
    kind = "teacher" if name == "teacher" else "online" if "_kd_online" in name else "kd" if is_kd else "plain"
    weights = next((path for path in sorted(folder.glob("model*.safetensors"))), folder / "model.safetensors")
    matrices: Dict[str, Tuple[int, int]] = {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except FileNotFoundError:
        config = {}
    except Exception as error:  # YAML has many
        problems.append(f"{folder / 'config.yaml'}: cannot be read ({type(error).__name__})")
        config = {}
    try:
        matrices = count_nonzero(weights)
    except UserError as error:
        problems.append(str(error))
    return System(
        name,
        name.partition("_kd")[0] if is_kd else "",
        kind,
        folder,
        tuple(rows),
        tuple(read_metrics(folder / "metrics.jsonl")),
        matrices,
        config if isinstance(config, dict) else {},
    )


def _studies(exp_dir: Path, problems: List[str]) -> Iterable[Study]:
    for folder in sorted(exp_dir.glob("experiments/*")):
        if folder.is_dir() and not folder.name.startswith("."):
            rows = _objects(folder / "summary.json", ("system", "test_set", "wer"), problems)
            seeds = _objects(folder / "results.json", ("system", "seed", "test_set", "wer"), problems)
            yield Study(folder.name, tuple(rows), tuple(seeds))


def _objects(path: Path, keys: Sequence[str], problems: List[str]) -> List[Dict[str, Any]]:
    """A list of JSON objects that have ``keys``; [] where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, dict) and set(keys) <= set(value) for value in values):
        problems.append(f"{path}: not what rnnt_kd writes; run the stage that makes it")
        return []
    return values

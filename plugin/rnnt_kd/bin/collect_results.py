"""Put the figures of experiments, finished or partly, into files that can be committed.

Reads results.json and pooled.json of each EXP_DIR/<experiment> (stage 7 writes them, of whatever is decoded by then).
There, each row says its experiment. Those of the same experiment, fold, system, seed and test set (in POOLED:
experiment, corpus, test set and system) are replaced, the others stay, new ones are added behind.  Where RESULTS
knows folds or seeds that EXP_DIR lacks, made on another machine or in an EXP_DIR that is gone, POOLED has all of them;
a row that RESULTS cannot pool again, of another search, stays where EXP_DIR has fewer folds.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from rnnt_kd import atomic
from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError
from rnnt_kd.experiments import fold_table
from rnnt_kd.files import parse_json
from rnnt_kd.text_files import read_text

KEYS = {
    "results": ("experiment", "fold", "system", "seed", "test_set", "token_bonus"),
    "pooled": ("experiment", "corpus", "test_set", "system"),
}


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--experiment-dir", type=Path, nargs="+", required=True, help="EXP_DIR/EXPERIMENT")
    parser.add_argument("--results", type=Path, required=True, help="for example egs/an4/results.json")
    parser.add_argument("--pooled", type=Path, help="for example egs/an4/pooled.json")
    args = parser.parse_args(argv)
    listed: List[Dict[str, Any]] = []
    made: List[Tuple[Path, List[Dict[str, Any]], int]] = []  # all of it, before any of it is written
    for name, path in (("results", args.results), ("pooled", args.pooled)):
        if path is None:
            continue
        known = {_key(row, KEYS[name]): row for row in (_rows(path) if path.exists() else [])}
        before = set(known)
        seen: Dict[str, Tuple[Path, Dict[str, Any]]] = {}
        for folder in args.experiment_dir:
            experiment = folder.resolve().name
            rows = [{"experiment": experiment, **row} for row in _rows(folder / f"{name}.json")]
            if name == "pooled":
                every = [row for row in listed if row.get("experiment") == experiment]
                is_all_here = len(every) == len(_rows(folder / "results.json"))
                rows = rows if is_all_here else _of_all(every, rows, args.results)
            for row in rows if name == "results" else []:
                place, first = seen.setdefault(_key(row, KEYS[name]), (folder, row))
                if row != first:
                    problem = f"figures of {row.get('system')}, seed {row.get('seed')}, other than in {place}"
                    next_step = "collect another corpus into other files"
                    raise UserError(folder, problem, "one experiment of a corpus", next_step)
            known = _with(known, rows, KEYS[name])
        listed = listed or list(known.values())
        made.append((path, list(known.values()), len(known.keys() - before)))
    for path, rows, number in made:
        atomic.write_json(path, rows)
        print(f"{path}: {len(rows)} rows, {number} of them new")


def _of_all(listed: List[Dict[str, Any]], pooled: List[Dict[str, Any]], path: Path) -> List[Dict[str, Any]]:
    """The rows ``pooled`` over all trainings that are ``listed``."""
    try:
        return [dict(fold_table.pooled_again(row, listed)) for row in pooled]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            path, f"cannot be pooled: {error}", "figures of one experiment", "remove what it is not of"
        ) from None


def _with(known: Dict[str, Dict[str, Any]], rows: List[Dict[str, Any]], names: Sequence[str]):
    """``known`` with ``rows``; a training's older rows go, whatever bonus of its own it had, and no fold is lost."""

    def folds(row):
        return row["folds"] if isinstance(row.get("folds"), int) else 0

    def training(row):
        return _key({**row, "token_bonus": 0}, names)

    new, again = {_key(row, names): row for row in rows}, {training(row) for row in rows}
    kept = {key: row for key, row in known.items() if key in new or training(row) not in again}
    return {**kept, **{key: row for key, row in new.items() if folds(row) >= folds(known.get(key, row))}}


def _key(row: Dict[str, Any], names: Sequence[str]) -> str:
    return json.dumps([row.get(name) for name in names])


def _rows(path: Path) -> List[Dict[str, Any]]:
    text = read_text(path, "figures of an experiment", "run its stage 7 (score) first")
    try:
        rows = parse_json(text)
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(path, "not a list of JSON objects", "figures of an experiment", "run its stage 7 (score) again")
    return rows


if __name__ == "__main__":
    main()

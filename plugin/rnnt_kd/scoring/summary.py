"""The table of an experiment, from the files its systems left behind.

    EXP_DIR/teacher/                          system.json, metrics ...
    EXP_DIR/students/<name>/                  the same; <name>_kd is the distilled twin of <name>
    <system>/decode_<test set>_<search>/      decode.json, wer-<test set>.json, perhaps delay-<test set>.json

A system that is not trained, decoded or scored to the end has a row that says so.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

from rnnt_kd.scoring.results import read_json

KEYS = (
    *("system", "role", "params", "nonzero_params", "sparsity", "kd", "test_set", "search"),
    *("wer", "words", "ins", "del", "sub", "ci95", "p_value", "train_seconds", "rtf"),
)
DELAY_KEYS = {"delay_ms": "mean_ms", "delay_ci95_ms": "ci95_ms", "delay_words": "words"}  # of delay-<test set>.json
_SET_ASIDE = re.compile(r"^\.|\.old-\d+$")  # hidden, or an earlier run that training moved away


@dataclass(frozen=True)
class Row:
    """One system on one test set with one search.

    Attributes:
      values:    exactly ``KEYS``, and ``DELAY_KEYS`` where the delay was measured; None where a figure does not
                 exist (yet).
      state:     "" when finished, else what is missing, for people.
      commands:  that made the figures, oldest first.
    """

    values: Dict[str, Any]
    state: str
    commands: Sequence[str]


def collect(exp_dir: Path, test_sets: Sequence[str], expected: Iterable[str] = ()) -> List[Row]:
    """Rows of all systems: the teacher, then the students by name, each beside its twin.

    Args:
      test_sets: rows are made for these.
      expected:  names of systems that should be there; also a student ``x_kd`` expects its twin ``x``.
    Raises:
      UserError: a file that is not what it should be.
    """
    exp_dir = Path(exp_dir)
    folders = [path.name for path in (exp_dir / "students").glob("*") if path.is_dir()]
    names = {name for name in folders if not _SET_ASIDE.search(name)} | (set(expected) - {"teacher"})
    names |= {_twin_of(name) for name in names}
    return [row for name in ["teacher", *sorted(names, key=_order)] for row in _rows(exp_dir, name, test_sets)]


def markdown(rows: Sequence[Row], corpus: str, commands: Optional[Sequence[str]] = None) -> str:
    """The table for people, GitHub flavour: a line on the corpus, the table, what is not finished.

    With ``commands`` (those of this table itself) all commands that made the figures follow.
    """
    words = {row.values["test_set"]: row.values["words"] for row in rows if row.values["words"] is not None}
    sets = ", ".join(f"{name} ({number} words)" for name, number in words.items()) or "nothing scored yet"
    head = ["system", "test set", "search", "parameters", "non-zero", "sparsity", "%WER [95 %]", "ins", "del", "sub"]
    head += ["p (vs no KD)", "train s", "RTF"]
    with_delay = any("delay_ms" in row.values for row in rows)
    head += ["delay ms [95 %]"] if with_delay else []
    of_delay = (
        " Delay: how much later, in the mean, words come that are right in this system and in the one that it is "
        "compared with by rnnt_kd.bin.delay."
    )
    lines = [
        f"Corpus {corpus}; test sets: {sets}. Intervals: bootstrap over utterances. "
        "p: two-sided paired bootstrap of a distilled system against its twin without distillation. "
        "Sparsity: of the sparsified matrices, measured. RTF: encoder and search, features not counted."
        + (of_delay if with_delay else ""),
        "",
        _line(head),
        _line(["---", "---", "---"] + ["---:"] * (len(head) - 3)),
        *(_line(_cells(row) + ([_delay(row)] if with_delay else [])) for row in rows),
    ]
    unfinished = [f"- {row.values['system']} on {row.values['test_set']}: {row.state}" for row in rows if row.state]
    if unfinished:
        lines += ["", "Not finished:", "", *unfinished]
    if commands is not None:
        commands = [*(command for row in rows for command in row.commands), *commands]
        lines += ["", "Commands that made the figures:", "", "```", *dict.fromkeys(commands), "```"]
    return "\n".join(lines) + "\n"


def _rows(exp_dir: Path, name: str, test_sets: Sequence[str]) -> List[Row]:
    system_dir = exp_dir / "teacher" if name == "teacher" else exp_dir / "students" / name
    system = read_json(system_dir / "system.json", default={})
    base: Dict[str, Any] = dict.fromkeys(KEYS)
    base.update({key: system.get(key) for key in ("params", "nonzero_params", "sparsity", "train_seconds")})
    base.update(system=name, role="teacher" if name == "teacher" else "student")
    base.update(kd=bool(system.get("kd", "_kd" in name)))
    state = "" if system else "training is not finished" if system_dir.is_dir() else "missing, not trained"
    decodings = [(_test_set_of(path, test_sets), path) for path in sorted(system_dir.glob("decode_*")) if path.is_dir()]
    rows = []
    for test_set in test_sets:
        values = {**base, "test_set": test_set}
        folders = [path for of_set, path in decodings if of_set == test_set]
        if state or not folders:
            rows.append(Row(values, state or "not decoded", ()))
        else:
            rows += [_scored(values, folder, test_set) for folder in folders]
    return rows


def _test_set_of(folder: Path, test_sets: Sequence[str]) -> Optional[str]:
    """What ``decode.json`` says; without it the longest name that fits the folder's (dev_other, not dev)."""
    fitting = [name for name in test_sets if folder.name.startswith(f"decode_{name}_")]
    return read_json(folder / "decode.json", default={}).get("test_set", max(fitting, key=len, default=None))


def _scored(values: Dict[str, Any], folder: Path, test_set: str) -> Row:
    decode = read_json(folder / "decode.json", default={})
    if not decode:
        return Row({**values, "search": folder.name[len(f"decode_{test_set}_") :]}, "decoding is not finished", ())
    values = {**values, "search": decode.get("search"), "rtf": decode.get("rtf")}
    commands = [decode["command"]] if "command" in decode else []
    wer = read_json(folder / f"wer-{test_set}.json", default={})
    if not wer:
        return Row(values, "decoded, not scored", commands)
    values.update({key: wer.get(key) for key in ("wer", "words", "ins", "del", "sub", "ci95", "p_value")})
    state = "not compared with its twin without distillation" if values["kd"] and values["p_value"] is None else ""
    delay = read_json(folder / f"delay-{test_set}.json", default={})
    if delay:
        values.update({key: delay.get(name) for key, name in DELAY_KEYS.items()})
    return Row(values, state, [*commands, *(file["command"] for file in (wer, delay) if "command" in file)])


def _cells(row: Row) -> List[str]:
    v = row.values
    interval = f" [{v['ci95'][0]:.2f}, {v['ci95'][1]:.2f}]" if v["ci95"] else ""
    return [
        v["system"],
        v["test_set"],
        v["search"] or "-",
        _shown(v["params"], ",d"),
        _shown(v["nonzero_params"], ",d"),
        _shown(v["sparsity"], ".1%"),
        f"{v['wer']:.2f}{interval}" if v["wer"] is not None else row.state,
        *(_shown(v[key], "d") for key in ("ins", "del", "sub")),
        _shown(v["p_value"], ".4f"),
        _shown(v["train_seconds"], ".0f"),
        _shown(v["rtf"], ".4f"),
    ]


def _delay(row: Row) -> str:
    v = row.values
    if v.get("delay_ms") is None:
        return "-"
    return "{:.0f} [{:.0f}, {:.0f}]".format(v["delay_ms"], *v["delay_ci95_ms"])


def _shown(value: Optional[float], style: str) -> str:
    return "-" if value is None else format(value, style)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _twin_of(name: str) -> str:
    """The same system without distillation: sparse90 for sparse90_kd and sparse90_kd_online."""
    return name.partition("_kd")[0]


def _order(name: str):
    return _twin_of(name).startswith("small"), _twin_of(name), name

"""The table of an experiment: a row for each system and test set, all finished seeds together.

    wer, wer_sd, wer_min, wer_max   per cent, over the finished seeds
    ins, del, sub                   sums over these; ins_mean, del_mean, sub_mean: of one seed
    relative_change                 of the mean against the baseline's, per cent; negative is better
    p_value                         paired bootstrap over utterances, all compared seeds together
    p_value_seeds                   the same, and the seeds are drawn as well: training noise counts
                                    (scoring.bootstrap); None where one seed is compared: it says nothing of others
    ci95                            of the %WER, bootstrap over utterances, where one seed is finished
    rtf                             of decoding, encoder and search, mean over seeds
    delay_ms, delay_ci95_ms, delay_words   of a streaming system's first seed, against its teacher's words

System and baseline are compared over the seeds that both have finished (``compared_seeds``).  A seed that is not
finished is in no figure; ``unfinished`` says which and why.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

from rnnt_kd import tables
from rnnt_kd.experiments.plan import Plan
from rnnt_kd.experiments.results import Reasons, Result, Results
from rnnt_kd.scoring.bootstrap import paired_p_value, spread
from rnnt_kd.tables import shown

DELAY = {"delay_ms": "mean_ms", "delay_ci95_ms": "ci95_ms", "delay_words": "words"}  # of delay-<test set>.json
SIZES = {"params": "params", "nonzero_params": "nonzero_params", "sparsity_measured": "sparsity"}  # of system.json


def rows(plan: Plan, results: Results, reasons: Reasons, *, replications: int = 10000, seed: int = 0) -> List[Dict]:
    """JSON values, one object a row; figures are None where no seed is finished."""
    table = []
    for name in plan.systems:
        for test_set in plan.places.test_sets:
            row = _described(plan, name, test_set)
            finished = _finished(plan, results, name, test_set)
            unfinished = {key: reasons[key, test_set] for key in plan.jobs_of(name) if (key, test_set) in reasons}
            row["unfinished"] = {str(job[1]): reason for job, reason in unfinished.items()}
            row["seeds"] = list(finished)
            row.update(_figures(list(finished.values())))
            baseline = _finished(plan, results, plan.systems[name].baseline, test_set)
            row.update(_compared(finished, baseline, replications, seed))
            table.append(row)
    return table


def markdown(table: Sequence[Dict[str, Any]], title: str, commands: Sequence[str] = ()) -> str:
    """For people, GitHub flavour.  ``title``: a sentence on what it is a table of."""
    head = ["system", "test set", "search", "seeds", "parameters", "non-zero", "sparsity", "%WER", "ins", "del", "sub"]
    head += ["compared with", "change", "p (these trainings)", "p (seeds too)", "train s", "RTF"]
    with_delay = any(row["delay_ms"] is not None for row in table)
    words = {row["test_set"]: row["words"] for row in table if row["words"] is not None}
    sets = ", ".join(f"{name} ({number} words)" for name, number in words.items()) or "nothing scored yet"
    lines = [
        f"{title}; test sets: {sets}. %WER: of one seed with its 95 % interval (bootstrap over utterances), of several "
        "mean +- sample standard deviation [min, max]; ins, del, sub: mean of a seed. Change: of the mean %WER against "
        "the system compared with, relative, over the seeds that both have. p (these trainings): two-sided paired "
        "bootstrap, utterances drawn; it says nothing of other trainings of the same systems. p (seeds too): the seeds "
        "are drawn as well. Sparsity: of the sparsified matrices, measured. RTF: encoder and search."
        + (" Delay: how much later than from the teacher words come that are right in both." if with_delay else ""),
        "",
        tables.markdown(head + ["delay ms [95 %]"] * with_delay, [_cells(row, with_delay) for row in table], left=4),
    ]
    missing: Dict[Tuple[str, str], List[str]] = {}  # system, reason -> seeds
    for row in table:
        for seed, reason in row["unfinished"].items():
            seeds = missing.setdefault((row["system"], reason), [])
            seeds += [seed] if seed not in seeds else []
    if missing:
        lines += ["", "Not finished, and in no figure above:", ""]
        lines += [f"- {system}, seed {', '.join(seeds)}: {reason}" for (system, reason), seeds in missing.items()]
    if commands:
        lines += ["", "Commands that made the figures:", "", "```", *commands, "```"]
    return "\n".join(lines) + "\n"


def _described(plan: Plan, name: str, test_set: str) -> Dict[str, Any]:
    system = plan.systems[name]
    config = plan.config((name, system.seeds[0]))
    kd = {key: getattr(config.kd, key, None) for key in ("variant", "weighting", "scale", "ranges", "temperature")}
    return {
        "system": name,
        "role": system.role,
        "baseline": system.baseline,
        "teacher": system.teacher if plan.teacher_of((name, system.seeds[0])) else None,
        "structure": config.sparsity.structure if config.sparsity else None,
        "sparsity": config.sparsity.target if config.sparsity else 0.0,
        "kd": config.kd is not None,
        **{f"kd_{key}": value for key, value in kd.items()},
        "test_set": test_set,
        "search": plan.search,
        "seeds_wanted": list(system.seeds),
    }


def _finished(plan: Plan, results: Results, name: Optional[str], test_set: str) -> Dict[int, Result]:
    jobs = plan.jobs_of(name) if name is not None else []
    return {job[1]: results[job, test_set] for job in jobs if (job, test_set) in results}


def _figures(results: Sequence[Result]) -> Dict[str, Any]:
    counts = ("ins", "del", "sub")
    keys = (*SIZES, "wer", "wer_sd", "wer_min", "wer_max", "words", *counts, *(f"{key}_mean" for key in counts))
    if not results:
        return dict.fromkeys((*keys, "train_seconds", "ci95", "rtf", *DELAY))
    rates = spread([result.scores["wer"] for result in results])
    sums = {key: sum(result.scores[key] for result in results) for key in counts}
    sizes = {key: _mean([result.system[name] for result in results]) for key, name in SIZES.items()}
    return {
        **{key: value if key == "sparsity_measured" else round(value) for key, value in sizes.items()},
        "wer": rates["mean"],
        **{f"wer_{key}": rates[key] for key in ("sd", "min", "max")},
        "words": results[0].scores["words"],
        **sums,
        **{f"{key}_mean": value / len(results) for key, value in sums.items()},
        "train_seconds": _mean([result.system["train_seconds"] for result in results]),
        "ci95": results[0].scores["ci95"] if len(results) == 1 else None,
        "rtf": _mean([result.decoding["rtf"] for result in results]),
        **{key: results[0].delay.get(name) for key, name in DELAY.items()},
    }


def _compared(system: Dict[int, Result], baseline: Dict[int, Result], replications: int, seed: int) -> Dict[str, Any]:
    common = sorted(system.keys() & baseline.keys())
    values: Dict[str, Any] = {"compared_seeds": common}
    if not common:
        return {**values, "baseline_wer": None, "relative_change": None, "p_value": None, "p_value_seeds": None}
    errors, others = ({key: results[key].errors for key in common} for results in (system, baseline))
    rate, other = (_mean([results[key].scores["wer"] for key in common]) for results in (system, baseline))
    values.update(baseline_wer=other, relative_change=100.0 * (rate - other) / other if other else None)
    for name, over in (("p_value", "utterances"), ("p_value_seeds", "both")):
        p = paired_p_value(errors, others, over=over, replications=replications, seed=seed)
        values[name] = round(p, 6) if over == "utterances" or len(common) > 1 else None
    return values


def _cells(row: Dict[str, Any], with_delay: bool) -> List[str]:
    done, wanted = row["seeds"], row["seeds_wanted"]
    seeds = " ".join(map(str, done)) or "-"
    against = row["baseline"] or "-"
    if row["baseline"] and row["compared_seeds"] != done:
        against += f" (seeds {' '.join(map(str, row['compared_seeds'])) or 'none'})"
    cells = [
        row["system"],
        row["test_set"],
        row["search"],
        seeds if len(done) == len(wanted) else f"{seeds} of {' '.join(map(str, wanted))}",
        shown(row["params"], ",d"),
        shown(row["nonzero_params"], ",d"),
        shown(row["sparsity_measured"], ".1%"),
        _rate(row),
        *(shown(row[f"{key}_mean"], "g" if len(done) == 1 else ".1f") for key in ("ins", "del", "sub")),
        against,
        shown(row["relative_change"], "+.1f", " %"),
        shown(row["p_value"], ".4f"),
        shown(row["p_value_seeds"], ".4f"),
        shown(row["train_seconds"], ".0f"),
        shown(row["rtf"], ".4f"),
    ]
    if with_delay:
        delay = (
            "-" if row["delay_ms"] is None else "{:.0f} [{:.0f}, {:.0f}]".format(row["delay_ms"], *row["delay_ci95_ms"])
        )
        cells.append(delay)
    return cells


def _rate(row: Dict[str, Any]) -> str:
    if row["wer"] is None:
        return "not finished"
    if row["wer_sd"] is not None:
        return f"{row['wer']:.2f} +- {row['wer_sd']:.2f} [{row['wer_min']:.2f}, {row['wer_max']:.2f}]"
    return f"{row['wer']:.2f}" + (" [{:.2f}, {:.2f}]".format(*row["ci95"]) if row["ci95"] else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

"""The table of an experiment: a row for each system, test set and way to decode, all finished seeds together.

    search, token_bonus             the way (``Plan.ways``): "own" with each training's own token bonus, else ""
    wer, wer_sd, wer_min, wer_max   per cent, over the finished seeds; None where no word is spoken
    ins, del, sub                   sums over these; ins_mean, del_mean, sub_mean: of one seed
    compared_wer, baseline_wer      means over the seeds that system and baseline both have finished (compared_seeds)
    relative_change                 of the first against the second, per cent; negative is better
    p_value                         paired bootstrap over utterances, all compared seeds together
    p_value_seeds                   the same, and the seeds are drawn as well: training noise counts
                                    (scoring.bootstrap); None where one seed is compared: it says nothing of others
    ci95                            of the %WER, bootstrap over utterances, where one seed is finished
    too_few                         what there is too little of for p-values and interval (scoring.bootstrap), or None
    characters                      the same figures of characters where these are counted (scoring.characters): cer,
                                    cer_sd ... compared_cer, baseline_cer, relative_change and both ps; else None
    rtf                             of decoding, encoder and search, mean over seeds
    delay_ms, delay_ci95_ms, delay_words   of a streaming system's first seed, against its teacher's words

A seed that is not finished is in no figure; ``unfinished`` says which and why.
"""

import itertools
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from rnnt_kd import tables
from rnnt_kd.experiments.plan import OWN_BONUS, Plan
from rnnt_kd.experiments.results import Reasons, Result, Results
from rnnt_kd.files import parse_json
from rnnt_kd.scoring.bootstrap import paired_p_value, spread
from rnnt_kd.tables import shown

DELAY = {"delay_ms": "mean_ms", "delay_ci95_ms": "ci95_ms", "delay_words": "words"}  # of delay-<test set>.json
CHARACTERS = ("%CER", "CER change", "CER p (these trainings)", "CER p (seeds too)")  # columns
LENGTHS = {"wer": "words", "cer": "characters"}
TOO_FEW = "too few"  # in the place of an interval or a p-value
SIZES = {"params": "params", "nonzero_params": "nonzero_params", "sparsity_measured": "sparsity"}  # of system.json


def rows(plan: Plan, results: Results, reasons: Reasons, *, replications: int = 10000, seed: int = 0) -> List[Dict]:
    """JSON values, one object a row; figures are None where no seed is finished."""
    table = []
    for name in plan.systems:
        for test_set, way in itertools.product(plan.places.test_sets, plan.ways):
            row = described(plan, name, test_set, way)
            own = finished(plan, results, name, test_set, way)
            keys = [(job, test_set, way) for job in plan.jobs_of(name)]
            unfinished = {key[0]: reasons[key] for key in keys if key in reasons}
            row["unfinished"] = {str(job[1]): reason for job, reason in unfinished.items()}
            row["seeds"] = list(own)
            row.update(figures(list(own.values())))
            baseline = finished(plan, results, plan.systems[name].baseline, test_set, way)
            row["compared_seeds"] = sorted(own.keys() & baseline.keys())
            given = own, baseline, row["compared_seeds"], {"replications": replications, "seed": seed}
            row.update(_rates("wer", *given))
            has_characters = any(result.figures("cer") for result in own.values())
            row["characters"] = _rates("cer", *given) if has_characters else None
            table.append(row)
    return table


def markdown(
    table: Sequence[Dict[str, Any]], title: str, commands: Sequence[str] = (), by_seed: Optional[float] = None
) -> str:
    """For people, GitHub flavour.

    Args:
      title:     a sentence on what it is a table of.
      by_seed:   for a table of one seed, by what share %WER is known to differ between seeds (``known_spread``).
    """
    is_of_one = not any(len(row["seeds_wanted"]) > 1 for row in table)
    head = ["system", "test set", "search", "seeds", "parameters", "non-zero", "sparsity", "%WER", "ins", "del", "sub"]
    two, seeds_too = "", "p (seeds too): the seeds are drawn as well."
    if is_of_one:
        known = "from its results.json" if by_seed is not None else "not known yet"
        two, seeds_too = "two ", f"Other seeds: so much %WER differs between them on this corpus (sd, {known})."
    head += ["compared with", "change", f"p (these {two}trainings)", seeds_too.partition(":")[0].lower()]
    head += ["train s", "RTF"]
    with_characters = any(row["characters"] for row in table)
    with_delay = any(row["delay_ms"] is not None for row in table)
    few = {row["test_set"]: row["too_few"] for row in table if row["too_few"]}
    head += [*CHARACTERS] * with_characters + ["delay ms [95 %]"] * with_delay
    words = {row["test_set"]: row["words"] for row in table if row["words"] is not None}
    sets = ", ".join(f"{name} ({number} words)" for name, number in words.items()) or "nothing scored yet"
    lines = [
        f"{title}; test sets: {sets}. %WER: of one seed with its 95 % interval (bootstrap over utterances), of several "
        "mean +- sample standard deviation [min, max]; ins, del, sub: mean of a seed. Change: of the mean %WER against "
        f"the system compared with, relative, over the seeds that both have. p (these {two}trainings): two-sided "
        f"paired bootstrap, utterances drawn; it says nothing of other trainings of the same systems. {seeds_too} "
        "Sparsity: of the sparsified matrices, measured. RTF: encoder and search."
        + (" %CER: the same of characters." if with_characters else "")
        + (" Delay: how much later than from the teacher words come that are right in both." if with_delay else "")
        + (f" {TOO_FEW.capitalize()} to tell: {', '.join(f'{n} ({few[n]})' for n in few)}." if few else ""),
        "",
        tables.markdown(
            head, [_cells(row, with_characters, with_delay, is_of_one, by_seed) for row in worth_a_line(table)], left=4
        ),
    ]
    return "\n".join([*lines, *ending(table, "seed ", commands)]) + "\n"


def worth_a_line(table: Sequence[Mapping[str, Any]]) -> List[Mapping[str, Any]]:
    """Every system and test set has one; the further ways to decode, where there is a figure."""
    usual = (table[0]["search"], "") if table else ()
    return [row for row in table if row["seeds"] or (row["search"], row["token_bonus"]) == usual]


def ending(table: Sequence[Mapping[str, Any]], what: str, commands: Sequence[str]) -> List[str]:
    """Lines below a table: what of it is ``unfinished``, ``what`` before its names, and what made the rest."""
    lines: List[str] = []
    missing: Dict[Tuple[str, str], List[str]] = {}  # system, reason -> trainings
    for row in table:
        for training, reason in row["unfinished"].items():
            trainings = missing.setdefault((row["system"], reason), [])
            trainings += [training] if training not in trainings else []
    if missing:
        lines += ["", "Not finished, and in no figure above:", ""]
        lines += [f"- {system}, {what}{', '.join(trainings)}: {why}" for (system, why), trainings in missing.items()]
    if commands:
        lines += ["", "Commands that made the figures:", "", "```", *commands, "```"]
    return lines


def known_spread(path: Path) -> Optional[float]:
    """How much the %WER of one system differs between seeds, as a share of it; of the ``results.json`` of a corpus.

    Root mean square, over all systems and test sets with several seeds, of standard deviation by mean; None where there
    are none, or no such file.
    """
    rates: Dict[Tuple[str, ...], List[float]] = {}
    try:
        for row in parse_json(path.read_text(encoding="utf-8")):
            key = tuple(str(row.get(name)) for name in ("experiment", "fold", "system", "test_set", "token_bonus"))
            if row["wer"] is not None:  # noise has no rate
                rates.setdefault(key, []).append(float(row["wer"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    several = [np.array(values) for values in rates.values() if len(values) > 1 and any(values)]
    return float(np.sqrt(np.mean([(one.std(ddof=1) / one.mean()) ** 2 for one in several]))) if several else None


def described(plan: Plan, name: str, test_set: str, way: str) -> Dict[str, Any]:
    """What a row says of a system beside its figures."""
    system = plan.systems[name]
    config = plan.config((name, system.seeds[0]))
    shown = "variant weighting scale label_scale ranges temperature hears features".split()
    kd = {key: getattr(config.kd, key, None) for key in shown}
    return {
        "system": name,
        "role": system.role,
        "baseline": system.baseline,
        "teacher": system.teacher if plan.teacher_of((name, system.seeds[0])) else None,
        "more_teachers": [name for name, _ in plan.teachers_of((name, system.seeds[0]))[1:]],
        "structure": config.sparsity.structure if config.sparsity else None,
        "sparsity": config.zeros,
        "kd": config.kd is not None,
        **{f"kd_{key}": value for key, value in kd.items()},
        "test_set": test_set,
        "search": plan.search if way == OWN_BONUS else way,
        "token_bonus": "own" if way == OWN_BONUS else "",
        "seeds_wanted": list(system.seeds),
    }


def finished(plan: Plan, results: Results, name: Optional[str], test_set: str, way: str) -> Dict[int, Result]:
    """The trainings of a system, by seed."""
    jobs = plan.jobs_of(name) if name is not None else []
    return {job[1]: results[job, test_set, way] for job in jobs if (job, test_set, way) in results}


def figures(results: Sequence[Result]) -> Dict[str, Any]:
    """Size, times and delay, over some trainings of a system."""
    if not results:
        return dict.fromkeys((*SIZES, "train_seconds", "rtf", "too_few", *DELAY))
    sizes = {key: _mean([result.system[name] for result in results]) for key, name in SIZES.items()}
    return {
        **{key: value if key == "sparsity_measured" else round(value) for key, value in sizes.items()},
        "train_seconds": _mean([result.system["train_seconds"] for result in results]),
        "rtf": _mean([result.decoding["rtf"] for result in results]),
        "too_few": results[0].scores["too_few"],
        **{key: results[0].delay.get(name) for key, name in DELAY.items()},
    }


def _rates(
    rate: str, system: Dict[int, Result], baseline: Dict[int, Result], common: Sequence[int], bootstrap: Dict[str, int]
) -> Dict[str, Any]:
    """``rate``: "wer" or "cer"; over the finished seeds, and against the baseline over the ``common`` ones."""
    counts = ("ins", "del", "sub")
    keys = (
        rate,
        f"{rate}_sd",
        f"{rate}_min",
        f"{rate}_max",
        LENGTHS[rate],
        *counts,
        *(f"{key}_mean" for key in counts),
    )
    keys += ("ci95", f"compared_{rate}", f"baseline_{rate}", "relative_change", "p_value", "p_value_seeds")
    values: Dict[str, Any] = dict.fromkeys(keys)
    scores = [result.figures(rate) for result in system.values()]
    if not scores:
        return values
    sums = {key: sum(item[key] for item in scores) for key in counts}
    values.update({f"{key}_mean": value / len(scores) for key, value in sums.items()}, **sums)
    values[LENGTHS[rate]] = scores[0][LENGTHS[rate]]
    if scores[0][rate] is None:
        return values
    seeds = spread([item[rate] for item in scores])
    values.update({rate: seeds["mean"], **{f"{rate}_{key}": seeds[key] for key in ("sd", "min", "max")}})
    values["ci95"] = scores[0]["ci95"] if len(scores) == 1 else None
    if not common:
        return values
    own, other = (_mean([results[key].figures(rate)[rate] for key in common]) for results in (system, baseline))
    values.update({f"compared_{rate}": own, f"baseline_{rate}": other})
    values["relative_change"] = 100.0 * (own - other) / other if other else None
    if system[common[0]].scores["too_few"]:
        return values
    errors, others = ({key: results[key].errors[rate] for key in common} for results in (system, baseline))
    for name, over in (("p_value", "utterances"), ("p_value_seeds", "both")):
        p = paired_p_value(errors, others, over=over, **bootstrap)
        values[name] = round(p, 6) if p is not None and (over == "utterances" or len(common) > 1) else None
    return values


def _cells(
    row: Mapping[str, Any], with_characters: bool, with_delay: bool, is_of_one: bool, by_seed: Optional[float]
) -> List[str]:
    done, wanted = row["seeds"], row["seeds_wanted"]
    seeds = " ".join(map(str, done)) or "-"
    against = row["baseline"] or "-"
    if row["baseline"] and row["compared_seeds"] != done:
        against += f" (seeds {' '.join(map(str, row['compared_seeds'])) or 'none'})"
    cells = [
        row["system"],
        row["test_set"],
        way_of(row),
        seeds if len(done) == len(wanted) else f"{seeds} of {' '.join(map(str, wanted))}",
        shown(row["params"], ",d"),
        shown(row["nonzero_params"], ",d"),
        shown(row["sparsity_measured"], ".1%"),
        _rate(row, row, "wer"),
        *(shown(row[f"{key}_mean"], "g" if len(done) == 1 else ".1f") for key in ("ins", "del", "sub")),
        against,
        *_comparison(row, row),
        shown(row["train_seconds"], ".0f"),
        shown(row["rtf"], ".4f"),
    ]
    if is_of_one:  # in the place of the p over seeds
        differs = row["wer"] is not None and by_seed is not None
        cells[14] = f"+- {row['wer'] * by_seed:.2f}" if differs else "-"
    if with_characters:
        figures = row["characters"]
        cells += [_rate(row, figures, "cer"), *_comparison(row, figures)] if figures else ["-"] * len(CHARACTERS)
    if with_delay:
        low_high = row["delay_ci95_ms"]
        interval = "[{:.0f}, {:.0f}]".format(*low_high) if low_high else f"[{TOO_FEW}]"
        cells.append("-" if row["delay_ms"] is None else f"{row['delay_ms']:.0f} {interval}")
    return cells


def way_of(row: Mapping[str, Any]) -> str:
    """How it was decoded, for people."""
    return row["search"] + (f", {OWN_BONUS}" if row["token_bonus"] else "")


def _comparison(row: Mapping[str, Any], figures: Mapping[str, Any]) -> List[str]:
    """Change and both p-values, of words or characters."""
    cells = [shown(figures["relative_change"], "+.1f", " %")]
    for key, is_wanted in (("p_value", row["compared_seeds"]), ("p_value_seeds", len(row["compared_seeds"]) > 1)):
        cells.append(TOO_FEW if is_wanted and row["too_few"] else shown(figures[key], ".4f"))
    return cells


def _rate(row: Mapping[str, Any], figures: Mapping[str, Any], rate: str) -> str:
    if not row["seeds"]:
        return "not finished"
    if figures[rate] is None:
        return "-"
    text = f"{figures[rate]:.2f}"
    if figures[f"{rate}_sd"] is not None:
        return f"{text} +- {figures[f'{rate}_sd']:.2f} [{figures[f'{rate}_min']:.2f}, {figures[f'{rate}_max']:.2f}]"
    return f"{text} [" + ("{:.2f}, {:.2f}]".format(*figures["ci95"]) if figures["ci95"] else f"{TOO_FEW}]")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

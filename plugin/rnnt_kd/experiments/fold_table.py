"""The table of an experiment with folds: a row for each system, test set and way to decode, all folds and seeds pooled.

    wer                       per cent: errors, of each fold the mean of its seeds, by the words of all finished folds
    wer_sd                    of one training: root mean square, over folds, of the deviation between their seeds
    ins_mean, del_mean, sub_mean   summed over folds, mean of a seed
    compared_wer, baseline_wer, compared_words   over the folds and seeds that system and baseline both have finished
    relative_change, change_ci95, p_value        of these, per cent; speakers drawn (scoring.bootstrap.Comparison)
    p_value_seeds             the seeds are drawn as well; None where a fold has but one
    seen_with_80, seeds_drawn the smallest change that 80 % of such experiments would see; are the seeds drawn for it
                              and for change_ci95?
    declared, endpoint        is it of the endpoint, written down before the first training? What the endpoint is, or
                              why there is none

Keys that ``table.rows`` has as well mean the same.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from rnnt_kd import tables
from rnnt_kd.experiments import table
from rnnt_kd.experiments.endpoint import Endpoint
from rnnt_kd.experiments.plan import OWN_BONUS, Plan
from rnnt_kd.experiments.results import OF_FOLDS, Reasons, Result, Results, as_list
from rnnt_kd.scoring.bootstrap import clustered_comparison, too_few
from rnnt_kd.tables import shown
from rnnt_kd.training.system_dir import system_record

COUNTS = ("ins", "del", "sub")
POOLED = tuple(  # of pooled.json
    "corpus test_set system baseline sparsity words wer baseline_wer change p p_seeds folds seeds declared".split()
)
CONDITIONS = {"test": "clean", "test_far": "far"}  # in pooled.json
_RATES = ("wer", "wer_sd", "words", *(f"{key}_mean" for key in COUNTS), "baseline_wer", "relative_change")
_RATES += ("p_value", "p_value_seeds", "change_ci95", "seen_with_80", "seeds_drawn", "compared_wer", "compared_words")

Counted = Mapping[str, Any]  # what a figure is made of: words, ins, del, sub, wer, utterances, speaker_errors
Trainings = Mapping[int, Mapping[int, Counted]]  # fold -> seed -> what was counted of one training


@dataclass(frozen=True)
class Fold:
    """What is there of a fold."""

    plan: Plan
    found: Results
    reasons: Reasons


def listed(folds: Mapping[int, Fold], endpoint: Optional[Endpoint], undeclared: str) -> List[Dict[str, Any]]:
    """``results.json``: an object a fold, system, seed and test set; two where it has a token bonus of its own.

    It has all that a pooled figure is made of, so folds can be made on several machines (``pooled_again``).
    """
    is_declared = endpoint is not None and not undeclared
    rows = []
    for number, fold in folds.items():
        for way in (fold.plan.search, OWN_BONUS):
            results = [result for (_, _, its_way), result in fold.found.items() if its_way == way]
            for row, result in zip(as_list(fold.plan, fold.found, way), results):
                bonus = float(result.decoding.get("token_bonus", 0.0))
                declared = is_declared and _is_endpoint(endpoint, row["system"], row["test_set"], way)
                if bonus or way != OWN_BONUS:
                    made_as = _made_as(fold.plan, result)
                    rows.append(
                        {**row, **dict(zip(OF_FOLDS, (number, declared, bonus, made_as, *_of_speakers(result))))}
                    )
    return rows


def rows(
    folds: Mapping[int, Fold],
    endpoint: Optional[Endpoint],
    undeclared: str,
    *,
    replications: int = 10000,
    seed: int = 0,
) -> List[Dict[str, Any]]:
    """JSON values, one object a row; figures are None where nothing is finished.

    ``undeclared``: what speaks against the endpoint as one that was declared before; "" for nothing.
    """
    is_declared = endpoint is not None and not undeclared
    first = next(iter(folds.values())).plan
    made = []
    for name in first.systems:
        for test_set, way in itertools.product(first.places.test_sets, first.ways):
            row = table.described(first, name, test_set, way)
            results, others = (
                {number: table.finished(fold.plan, fold.found, one, test_set, way) for number, fold in folds.items()}
                for one in (name, first.systems[name].baseline)
            )
            every = [result for seeds in results.values() for result in seeds.values()]
            trainings, baseline = (
                {number: {seed: _counted(one) for seed, one in seeds.items()} for number, seeds in given.items()}
                for given in (results, others)
            )
            row["unfinished"] = {
                f"fold {number} seed {job[1]}": fold.reasons[job, test_set, way]
                for number, fold in folds.items()
                for job in fold.plan.jobs_of(name)
                if (job, test_set, way) in fold.reasons
            }
            row["seeds"] = sorted({one for seeds in trainings.values() for one in seeds})
            row["endpoint"] = _state(endpoint, undeclared)
            row["folds"] = [number for number, seeds in trainings.items() if seeds]
            row.update({**table.figures(every), "too_few": None, "characters": None, "ci95": None})
            row.update(_rates(trainings, baseline, replications, seed))
            is_asked = row["baseline"] is None or (endpoint is not None and name == endpoint.system)  # its comparison
            row["declared"] = is_declared and is_asked and _is_endpoint(endpoint, name, test_set, way)
            made.append(row)
    return made


def pooled(table_rows: Sequence[Mapping[str, Any]], corpus: str) -> List[Dict[str, Any]]:
    """``pooled.json``: one object a system, test set and way to decode with a figure, with exactly ``POOLED``.

    ``wer`` and ``words`` are over the folds and seeds that the baseline has, too; ``folds`` and ``seeds`` how many.
    """
    found = []
    for row in table_rows:
        if row["wer"] is None:
            continue
        condition, way = CONDITIONS.get(row["test_set"], row["test_set"]), table.way_of(row)
        is_usual = way == table_rows[0]["search"]
        values = {
            "corpus": corpus,
            "test_set": condition if is_usual else f"{condition}, {way}",
            **{key: row[key] for key in ("system", "baseline", "sparsity")},
            **_in_pooled(row),
            "folds": len(row["folds"]),
            "seeds": len(row["seeds"]),
            "declared": row["declared"],
        }
        found.append({key: values[key] for key in POOLED})
    return found


def pooled_again(pooled_row: Mapping[str, Any], listed_rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A row of ``pooled.json`` over all trainings of one experiment that ``listed_rows`` (of ``results.json``) know.

    The row itself where they know none: of another search or bonus, or made by a version that kept no speakers.

    Raises:
      ValueError: trainings of one fold were not tested on the same, or those of one system not made in the same way.
    """
    system, baseline = (
        _trainings(listed_rows, pooled_row["test_set"], pooled_row[key]) for key in ("system", "baseline")
    )
    if not system:
        return pooled_row
    for name, folds in ((pooled_row["system"], system), (pooled_row["baseline"], baseline)):
        if (
            len({(one["made_as"], one["kd"]) for seeds in folds.values() for one in seeds.values() if "made_as" in one})
            > 1
        ):
            raise ValueError(f"{name} was not made in the same way in folds {', '.join(map(str, sorted(folds)))}")
    for number, seeds in system.items():
        tested = [
            (one["words"], [*one["speaker_errors"]]) for one in (*seeds.values(), *baseline.get(number, {}).values())
        ]
        if any(one != tested[0] for one in tested):
            raise ValueError(
                f"fold {number} of {pooled_row['system']} or its baseline was tested on other speakers or words"
            )
    more = {
        "folds": len(system),
        "seeds": len({seed for seeds in system.values() for seed in seeds}),
        "declared": pooled_row["declared"]
        and all(one["declared"] for seeds in system.values() for one in seeds.values()),
    }
    return {**pooled_row, **_in_pooled(_rates(system, baseline)), **more}


def _trainings(listed_rows: Sequence[Mapping[str, Any]], condition: str, system: str) -> Trainings:
    found: Dict[int, Dict[int, Counted]] = {}
    for row in listed_rows:
        is_it = row["system"] == system and CONDITIONS.get(row["test_set"], row["test_set"]) == condition
        if is_it and not row["token_bonus"] and "speaker_errors" in row:
            found.setdefault(row["fold"], {})[row["seed"]] = row
    return found


def _in_pooled(rates: Mapping[str, Any]) -> Dict[str, Any]:
    is_compared = rates["compared_wer"] is not None
    return {
        "words": rates["compared_words" if is_compared else "words"],
        "wer": _rounded(rates["compared_wer" if is_compared else "wer"]),
        "baseline_wer": _rounded(rates["baseline_wer"]),
        "change": _rounded(rates["relative_change"]),
        "p": rates["p_value"],
        "p_seeds": rates["p_value_seeds"],
    }


def _is_endpoint(endpoint: Optional[Endpoint], system: str, test_set: str, way: str) -> bool:
    """Is it one of the figures that the endpoint is about?"""
    if endpoint is None or way != (OWN_BONUS if endpoint.token_bonus else endpoint.search):
        return False
    return system in (endpoint.system, endpoint.baseline) and test_set == endpoint.test_set


def _rates(system: Trainings, baseline: Trainings, replications: int = 10000, seed: int = 0) -> Dict[str, Any]:
    values: Dict[str, Any] = dict.fromkeys(_RATES)
    finished = {number: list(seeds.values()) for number, seeds in system.items() if seeds}
    words = sum(counted[0]["words"] for counted in finished.values())
    if not words:
        return values
    values["words"] = words
    values.update({f"{key}_mean": sum(_mean(counted, key) for counted in finished.values()) for key in COUNTS})
    values["wer"] = _pooled_wer(finished)
    several = [[one["wer"] for one in counted] for counted in finished.values() if len(counted) > 1]
    values["wer_sd"] = float(np.sqrt(np.mean([np.var(rates, ddof=1) for rates in several]))) if several else None
    both = {number: sorted(system[number].keys() & baseline.get(number, {}).keys()) for number in finished}
    both = {number: seeds for number, seeds in both.items() if seeds}
    if not both:
        return values
    own, other = (
        {number: [given[number][seed] for seed in seeds] for number, seeds in both.items()}
        for given in (system, baseline)
    )
    values.update(compared_wer=_pooled_wer(own), baseline_wer=_pooled_wer(other))
    values["compared_words"] = sum(counted[0]["words"] for counted in own.values())
    if not values["baseline_wer"]:
        return values
    values["relative_change"] = 100.0 * (values["compared_wer"] / values["baseline_wer"] - 1.0)
    speakers = [speaker for counted in own.values() for speaker in counted[0]["speaker_errors"]]
    if too_few(sum(counted[0]["utterances"] for counted in own.values()), set(speakers)):
        return values
    given = [[_by_speaker(counted) for counted in each.values()] for each in (own, other)]
    trainings, seeds_too = (
        clustered_comparison(given[0], given[1], draw_seeds=drawn, replications=replications, seed=seed)
        for drawn in (False, True)
    )
    shown_one = seeds_too or trainings
    if trainings is not None and shown_one is not None:
        values.update(p_value=trainings.p_value, p_value_seeds=seeds_too and seeds_too.p_value)
        values.update(
            change_ci95=list(shown_one.ci95), seen_with_80=shown_one.seen_with_80, seeds_drawn=bool(seeds_too)
        )
    return values


def _pooled_wer(folds: Mapping[int, Sequence[Counted]]) -> float:
    errors = sum(_mean(counted, key) for counted in folds.values() for key in COUNTS)
    return 100.0 * errors / sum(counted[0]["words"] for counted in folds.values())


def _mean(counted: Sequence[Counted], key: str) -> float:
    return sum(one[key] for one in counted) / len(counted)


def _by_speaker(counted: Sequence[Counted]) -> np.ndarray:
    """(K, S) errors of each seed and speaker."""
    return np.array([[one["speaker_errors"][speaker] for speaker in counted[0]["speaker_errors"]] for one in counted])


def _of_speakers(result: Result) -> Tuple[int, Dict[str, int]]:
    """Utterances, and the errors of each speaker, by name."""
    errors = dict.fromkeys(sorted(set(result.speakers)), 0)
    for speaker, number in zip(result.speakers, result.errors["wer"]):
        errors[speaker] += int(number)
    return len(result.speakers), errors


def _made_as(plan: Plan, result: Result) -> str:
    """What tells a system from one of its name that is made in another way, whatever its seed."""
    config = replace(plan.config(result.job), seed=0)
    return system_record(plan.system_dir(result.job), config, {}).identity()[:12]


def _counted(result: Result) -> Counted:
    return {**result.scores, **dict(zip(OF_FOLDS[4:], _of_speakers(result)))}


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None else round(value, 4)


def markdown(
    table_rows: Sequence[Mapping[str, Any]],
    title: str,
    wanted: int,
    endpoint: Optional[Endpoint],
    commands: Sequence[str] = (),
) -> str:
    """For people, GitHub flavour.  ``title``: a sentence on what it is a table of; ``wanted``: folds."""
    head = ["system", "test set", "search", "folds", "seeds", "%WER", "sd of a training", "words", "ins", "del", "sub"]
    head += ["compared with", "change [95 %]", "p (these trainings)", "p (seeds too)", "seen with 80 %", "is"]
    shown_rows = sorted(table.worth_a_line(table_rows), key=lambda row: not row["declared"])
    body = [_cells(row, wanted) for row in shown_rows]
    lines = [
        f"{title}; {wanted} folds by speaker, each tested by systems that never heard its speakers. %WER: all folds "
        "together, mean over seeds; ins, del, sub: sums over folds, mean of a seed; sd of a training: between the "
        "seeds of a fold. Change: of the pooled %WER against the system compared with, over the folds and seeds that "
        "both have. p: two-sided paired bootstrap over speakers; of these trainings, and with the seeds drawn as well; "
        "the interval and the change that would be seen with 80 % are with seeds drawn where there are several.",
        "",
        _answer(table_rows, endpoint),
        "",
        tables.markdown(head, body, left=5),
    ]
    return "\n".join([*lines, *table.ending(table_rows, "", commands)]) + "\n"


def _state(endpoint: Optional[Endpoint], undeclared: str) -> str:
    """What was declared, in a sentence."""
    if endpoint is not None and not undeclared:
        return f"Declared before the first training: {endpoint.sentence()}. Everything else is exploratory."
    asked = f"the endpoint too ({endpoint.sentence()})" if endpoint else "there is no endpoint"
    return f"Everything here is exploratory, {asked}{f': {undeclared}' if undeclared else ''}."


def _answer(table_rows: Sequence[Mapping[str, Any]], endpoint: Optional[Endpoint]) -> str:
    """The endpoint's figures, if it counts."""
    state = table_rows[0]["endpoint"]
    for row in table_rows:
        if endpoint and row["declared"] and row["system"] == endpoint.system:
            if row["relative_change"] is None:
                return f"{state} It is not finished."
            p = [shown(row[key], ".4f") for key in ("p_value", "p_value_seeds")]
            rates = f"{row['baseline_wer']:.2f} to {row['compared_wer']:.2f} %WER"
            return f"{state} **{rates}, {_change(row)}; p {p[0]} of these trainings, {p[1]} seeds too.**"
    return f"{state} It is not finished." if "Declared" in state else state


def _cells(row: Mapping[str, Any], wanted: int) -> List[str]:
    done = len(row["folds"])
    return [
        row["system"],
        row["test_set"],
        table.way_of(row),
        str(done) if done == wanted else f"{done} of {wanted}",
        " ".join(map(str, row["seeds"])) or "-",
        shown(row["wer"], ".2f") if done else "not finished",
        shown(row["wer_sd"], ".2f"),
        shown(row["words"], ",d"),
        *(shown(row[f"{key}_mean"], ".1f") for key in COUNTS),
        row["baseline"] or "-",
        _change(row),
        shown(row["p_value"], ".4f"),
        shown(row["p_value_seeds"], ".4f"),
        shown(row["seen_with_80"], ".1f", " %"),
        "declared" if row["declared"] else "exploratory",
    ]


def _change(row: Mapping[str, Any]) -> str:
    interval = " [{:+.1f}, {:+.1f}]".format(*row["change_ci95"]) if row["change_ci95"] else ""
    return shown(row["relative_change"], "+.1f", " %") + interval

"""The files that an experiment's figures go to, in EXP_DIR/<experiment>.

summary.md, summary.json   the table, for people and as a row a system, test set and way to decode
results.json               an object a system, seed and test set; of an experiment with folds, a fold as well
pooled.json                with folds: what all of them say together
experiment.json            what report, sizes and lattice pictures read
"""

from pathlib import Path
from typing import Dict, Mapping, Tuple

from rnnt_kd import atomic
from rnnt_kd.experiments import endpoint, fold_table, results, table
from rnnt_kd.experiments.plan import Plan
from rnnt_kd.experiments.progress import Progress


def write_summary(
    parts: Mapping[int, Tuple[Plan, Progress]],
    corpus: str,
    command: str,
    known_results: Path,
    bootstrap: Dict[str, int],
) -> str:
    """Write them; returns the table for people, without commands.

    Args:
      parts:         by fold; of an experiment without folds, one.
      command:       that makes the table.
      known_results: ``results.json`` of the corpus, for how much seeds differ.
      bootstrap:     ``replications`` and ``seed``.
    """
    plan = next(iter(parts.values()))[0]
    title = f"Corpus {corpus}, experiment {plan.experiment.name}"
    if plan.experiment.labelled is not None:
        title += f", labels of {100 * plan.experiment.labelled:g} % of the training words"
    jobs = [job for name in plan.systems for job in plan.jobs_of(name)]
    collected = {fold: results.collect(*part, jobs) for fold, part in parts.items()}
    if plan.experiment.folds:
        found = {fold: fold_table.Fold(part[0], *collected[fold]) for fold, part in parts.items()}
        declared, why_not = endpoint.read_endpoint(plan), endpoint.why_not_declared(plan)
        listed = fold_table.listed(found, declared, why_not)
        rows = fold_table.rows(found, declared, why_not, **bootstrap)
        shown = [fold_table.markdown(rows, title, plan.experiment.folds, declared, words) for words in ([], [command])]
        atomic.write_json(plan.dir / "pooled.json", fold_table.pooled(rows, corpus))
    else:
        ((of_all, reasons),) = collected.values()
        listed, rows = results.as_list(plan, of_all, plan.search), table.rows(plan, of_all, reasons, **bootstrap)
        known, commands = table.known_spread(known_results), [*results.commands(of_all), command]
        shown = [table.markdown(rows, title, words, known) for words in ([], commands)]
    results.write_experiment(plan, corpus)
    atomic.write_json(plan.dir / "results.json", listed)
    atomic.write_json(plan.dir / "summary.json", rows)
    atomic.write_text(plan.dir / "summary.md", shown[1])
    return shown[0]

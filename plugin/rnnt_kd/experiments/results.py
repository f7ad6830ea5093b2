"""Every system, seed and test set that is trained, decoded and scored: the figures, and why others have none.

Nothing is averaged here, and nothing that is not finished has a figure.
"""

import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from rnnt_kd.experiments.plan import Job, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.scoring.bootstrap import errors_by_utterance
from rnnt_kd.scoring.characters import as_characters
from rnnt_kd.scoring.recognitions import Recognition, check_same_references, read_recogs, words_counted
from rnnt_kd.scoring.results import figures, read_json, read_scores
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.systems.experiment_folder import EvaluationSet, ExperimentFolder, ListedSystem, write

# Of results.json.
KEYS = tuple("system seed sparsity kd kd_weighting kd_scale test_set wer words ins del sub p_value cer".split())
OF_FOLDS = ("fold", "declared", "token_bonus", "made_as", "utterances", "speaker_errors")  # more, where there are folds
OF_SYSTEM = ("params", "nonzero_params", "sparsity", "train_seconds")  # what the table reads of system.json


@dataclass(frozen=True)
class Result:
    """One seed of a system on one test set.

    Attributes:
      system:   ``system.json`` of its folder.
      scores:   ``wer-<test set>.json``.
      errors:   "wer", and "cer" where characters are counted -> (U,) errors of each utterance, by utterance id.
      decoding: ``decode.json``.
      delay:    ``delay-<test set>.json``; empty where it was not measured.
      speakers: (U,) speaker of each utterance; "" where that is not known.
    """

    job: Job
    test_set: str
    system: Mapping[str, Any]
    scores: Mapping[str, Any]
    errors: Mapping[str, np.ndarray]
    decoding: Mapping[str, Any] = field(default_factory=dict)
    delay: Mapping[str, Any] = field(default_factory=dict)
    speakers: Sequence[str] = ()

    def figures(self, rate: str) -> Mapping[str, Any]:
        """The scores of words ("wer") or of characters ("cer"; empty where these are not counted)."""
        return self.scores if rate == "wer" else self.scores["characters"] or {}


Key = Tuple[Job, str, str]  # test set, way of ``Plan.ways``
Results = Dict[Key, Result]
Reasons = Dict[Key, str]


def collect(plan: Plan, progress: Progress, jobs: Sequence[Job]) -> Tuple[Results, Reasons]:
    """What is there, and for the rest why not.

    Raises:
      UserError: something of another corpus, BPE model or teacher stands among the systems, or two systems were
        scored on different references.
    """
    results: Results = {}
    reasons: Reasons = {}
    for job in jobs:
        progress.refuse_foreign(job)
    for test_set in plan.places.test_sets:
        first: Optional[Tuple[List[Recognition], Path]] = None
        for job, way in itertools.product(jobs, plan.ways):
            folder = plan.decode_dir(job, test_set, way)
            why = progress.why_not_trained(job) or progress.why_not_decoded(job, test_set, way)
            scored = folder / f"wer-{test_set}.json"
            if why or not scored.exists():
                reasons[job, test_set, way] = why or f"{test_set} is not scored"
                continue
            scores = read_scores(scored)
            path = folder / f"recogs-{test_set}.txt"
            recognitions = read_recogs(path)
            first = first or (recognitions, path)
            check_same_references(recognitions, first[0], path, first[1])
            system = read_json(plan.system_dir(job) / "system.json", numbers=OF_SYSTEM)
            decoding = read_json(folder / "decode.json", numbers=("rtf",))
            delay = read_json(folder / f"delay-{test_set}.json", default={})
            counted = words_counted(recognitions, plan.recipe.text.score_events)
            if any(scores[key] != value for key, value in figures(count_all(counted)).items()):
                reasons[job, test_set, way] = f"{test_set} is scored otherwise: run stage 7 again"
                continue
            errors = {"wer": errors_by_utterance(counted)}
            if scores["characters"]:
                errors["cer"] = errors_by_utterance(as_characters(counted))
            known = read_json(folder / f"speakers-{test_set}.json", default={})
            speakers = [str(known.get(item.utterance_id, "")) for item in recognitions]
            results[job, test_set, way] = Result(job, test_set, system, scores, errors, decoding, delay, speakers)
    return results, reasons


def as_list(plan: Plan, results: Results, way: str) -> List[Dict[str, Any]]:
    """``results.json``: one object a system, seed and test set, with exactly ``KEYS``; decoded in this way.

    ``p_value``: of the system against its baseline, seed by seed (paired bootstrap over utterances); None for a
    system that others are compared with, where the baseline has no such seed, and of too few utterances.  ``cer``:
    None where only words are counted.
    """
    rows = []
    baselines = {system.baseline for system in plan.systems.values()}
    for (job, test_set, its_way), result in results.items():
        if its_way != way:
            continue
        config = plan.config(job)
        compared = job[0] not in baselines and plan.baseline_of(job) is not None
        values = {
            "system": job[0],
            "seed": job[1],
            "sparsity": config.zeros,
            "kd": config.kd is not None,
            "kd_weighting": config.kd.weighting if config.kd else None,
            "kd_scale": config.kd.scale if config.kd else None,
            "test_set": test_set,
            **{key: result.scores[key] for key in ("wer", "words", "ins", "del", "sub")},
            "p_value": result.scores["p_value"] if compared else None,
            "cer": result.figures("cer").get("cer"),
        }
        assert tuple(values) == KEYS
        rows.append(values)
    return rows


def commands(results: Results) -> List[str]:
    """What made the figures, each command once."""
    files = [file for result in results.values() for file in (result.decoding, result.scores, result.delay)]
    return list(dict.fromkeys(file["command"] for file in files if "command" in file))


def write_experiment(plan: Plan, corpus: str) -> None:
    """``experiment.json``, for report, sizes and lattice pictures."""
    places = plan.places
    sets = {
        name: EvaluationSet(data.absolute(), places.cuts(name).absolute()) for name, data in places.test_sets.items()
    }
    systems = []
    for name, system in plan.systems.items():
        config = plan.config(plan.jobs_of(name)[0])
        teacher = plan.teacher_of(plan.jobs_of(name)[0])
        systems.append(
            ListedSystem(
                name=name,
                role=system.role,
                seeds=system.seeds,
                folders={job[1]: plan.system_dir(job).absolute() for job in plan.jobs_of(name)},
                baseline=system.baseline,
                teacher=teacher and teacher[0],
                sparsity=config.zeros,
                structure=config.sparsity.structure if config.sparsity else None,
                kd=asdict(config.kd) if config.kd else None,
            )
        )
    folder = ExperimentFolder(
        experiment=plan.experiment.name,
        corpus=corpus,
        preset=str(places.preset),
        search=plan.search,
        beam=plan.recipe.decoding.beam,
        bpe_dir=places.bpe_dir.absolute(),
        train_cuts=places.train_cuts.absolute(),
        test_sets=sets,
        systems=tuple(systems),
        score_events=plan.recipe.text.score_events,
    )
    plan.dir.mkdir(parents=True, exist_ok=True)
    write(plan.dir, folder)

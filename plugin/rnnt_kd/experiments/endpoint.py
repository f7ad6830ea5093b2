"""The endpoint of an experiment: the one comparison that it was made for, written down before it runs.

    endpoint: {system: sparse90_kd, baseline: sparse90, sparsity: 0.9, test_set: test, search: modified_beam_search}

With ``token_bonus: own`` both systems are compared with the token bonus that each has from its development set, else
with none.  The first training of the experiment records the endpoint, and how both systems and their teachers are made,
in EXP_DIR/<experiment>/.endpoint.record.json; what is changed afterwards is said in the table.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from rnnt_kd import choices
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.plan import Plan
from rnnt_kd.record import Record, in_words, read_record
from rnnt_kd.training.system_dir import system_record

KEYS = ("system", "baseline", "sparsity", "test_set", "search")
OWN = "own"  # token bonus: each system's, from its development set


@dataclass(frozen=True)
class Endpoint:
    """See above; ``token_bonus``: "" or "own"."""

    system: str
    baseline: str
    sparsity: float
    test_set: str
    search: str
    token_bonus: str = ""

    def sentence(self) -> str:
        bonus = ", each with its own token bonus" if self.token_bonus else ""
        systems = f"{self.system} against {self.baseline} ({self.sparsity:.0%} zeros)"
        return f"{systems} on {self.test_set}, {self.search}{bonus}"


def read_endpoint(plan: Plan) -> Optional[Endpoint]:
    """The endpoint of the plan's file; None where it has none.

    Raises UserError: a key is missing or unknown, or the experiment has no such system, baseline, test set or search.
    """
    given, where = plan.experiment.endpoint, f"{plan.experiment.path}: endpoint"
    if given is None:
        return None
    for key in given:
        choices.check(str(key), (*KEYS, "token_bonus"), where)
    missing = [key for key in KEYS if given.get(key) is None]
    if missing:
        raise UserError(where, f"names no {missing[0]}", ", ".join(KEYS), "write it down before the first training")
    for key in ("system", "baseline"):
        choices.check(given[key], list(plan.systems), f"{where}: {key}")
    if given["system"] == given["baseline"]:
        raise UserError(where, f"compares {given['system']} with itself", "two systems")
    compared = plan.systems[given["system"]].baseline
    if given["baseline"] != compared:
        raise UserError(
            f"{where}: baseline", given["baseline"], f"{compared}, which {given['system']} is compared with"
        )
    choices.check(given["test_set"], list(plan.places.test_sets), f"{where}: test_set")
    choices.check(given["search"], [plan.search], f"{where}: search")
    config = plan.config(plan.jobs_of(given["system"])[0])
    sparsity = config.zeros
    if given["sparsity"] != sparsity:
        raise UserError(f"{where}: sparsity", repr(given["sparsity"]), f"{sparsity:g}, that of {given['system']}")
    bonus = given.get("token_bonus") or ""
    if bonus not in ("", OWN) or (bonus and not plan.experiment.tune_token_bonus):
        raise UserError(f"{where}: token_bonus", str(bonus), f"{OWN}, with tune_token_bonus: true", "or omit it")
    return Endpoint(**{**given, "token_bonus": bonus})


def record_endpoint(plan: Plan, trained: bool) -> None:
    """Record the endpoint, where none is recorded; called before a training starts.

    ``trained``: one of its two systems is trained already, so it comes too late.
    """
    record = _record(plan)
    if not record.path.exists():
        plan.dir.mkdir(parents=True, exist_ok=True)
        late = Record(record.folder, record.name, {"endpoint": None}, {})
        (late if trained else record).start(keep=True)


def why_not_declared(plan: Plan) -> str:
    """What speaks against the endpoint as one that was declared before, for the table; "" for nothing."""
    record, is_given = _record(plan), plan.experiment.endpoint is not None
    if not record.path.exists():
        return "it was not recorded before a first training" if is_given else ""
    before = read_record(record.path).get("settings")
    if before is None:
        return f"what was declared cannot be told: {record.path} is damaged"
    if "endpoint" in before and is_given:
        return "it was written down after the first training"
    changes = record.changes()
    return f"changed after the first training: {in_words(changes)}" if changes else ""


def _record(plan: Plan) -> Record:
    endpoint = read_endpoint(plan)
    if endpoint is None:
        return Record(plan.dir, "endpoint", {"endpoint": None}, {})
    made_as = {name: plan.systems[name].values for name in (endpoint.system, endpoint.baseline)}
    share = plan.experiment.labelled
    declared = {**asdict(endpoint), **({} if share is None else {"labelled": share})}
    jobs = [plan.jobs_of(name)[0] for name in made_as]
    whole = dict.fromkeys(job[0] for one in jobs for job in (one, *plan.teachers_of(one)))  # with preset and --set
    trained = {name: system_record(Path(), plan.config((name, 0)), {}).settings for name in whole}
    settings = {"declared": declared, **made_as, "trained": trained}
    return Record(plan.dir, "endpoint", settings, {}, defaults={"trained": trained})  # older records say nothing of it

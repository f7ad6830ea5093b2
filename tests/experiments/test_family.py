"""A family in an experiment: one training, whose members are decoded, scored, exported and shown as systems."""

import json
import shutil
from argparse import Namespace

import pytest
from experiments.conftest import printed

from rnnt_kd.bin import train
from rnnt_kd.bin.experiment_steps import Part, Run
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.plan import Places, Plan
from rnnt_kd.experiments.progress import Progress
from rnnt_kd.record import record_path
from rnnt_kd.systems.store import read_system

SYSTEMS = """
systems:
  teacher: {role: teacher}
  family: {role: sparse_student, sparsity: {target: 0.8, nested: [0.5, 0.65]}, baseline: plain}
  plain: {role: sparse_student, sparsity: 0.5}
"""
MEMBERS = ["family", "family-0.65", "family-0.8"]


@pytest.fixture(scope="module")
def made(untrained, tmp_path_factory):
    trial = untrained.copy(tmp_path_factory.mktemp("family"))
    trial.file.write_text(SYSTEMS)
    return trial, trial.run()


def test_it_is_trained_once_and_each_member_is_decoded_scored_and_exported(made):
    trial, started = made
    assert [line for line in started if line.startswith("train ")] == ["train family/1", "train plain/1"]
    assert [line for line in started if line.startswith("decode family")] == [
        f"decode {name}/1 dev, {search}" for name in MEMBERS for search in ("modified_beam_search", "greedy_search")
    ]
    results = {item["system"]: item for item in trial.read("results.json")}
    assert list(results) == ["teacher", *MEMBERS, "plain"]
    assert [results[name]["sparsity"] for name in MEMBERS] == [0.5, 0.65, 0.8]
    rows = {item["system"]: item for item in trial.read("summary.json")}
    assert {rows[name]["baseline"] for name in MEMBERS} == {"plain"}
    sizes = [rows[name]["nonzero_params"] for name in MEMBERS]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert len({rows[name]["train_seconds"] for name in MEMBERS}) == 1
    listed = {item["name"]: item["folders"]["1"] for item in trial.read("experiment.json")["systems"]}
    for name, folder in zip(MEMBERS, ("seed1", "seed1/members/0.65", "seed1/members/0.8")):
        assert listed[name].endswith(f"family/{folder}") and read_system(trial.dir / "family" / folder).name == name


def test_what_is_there_is_not_made_again_and_a_members_lost_decoding_is(made):
    trial, _ = made
    assert trial.run("--steps", "train decode") == []
    shutil.rmtree(trial.dir / "family" / "seed1" / "members" / "0.8" / "decode_dev_greedy_search")
    assert trial.run("--steps", "train decode") == ["decode family-0.8/1 dev, greedy_search"]


def test_a_queue_has_one_job_for_all_members(made, tmp_path, capsys):
    trial = made[0].copy(tmp_path)
    shutil.rmtree(trial.dir / "family")
    (line,) = printed(trial, capsys)
    assert line.endswith(" --job family/1")
    started = trial.run("--job", "family/1")
    assert started[0] == "train family/1" and [one.split()[1] for one in started[1::2]] == [f"{n}/1" for n in MEMBERS]
    assert printed(trial, capsys) == []
    with pytest.raises(UserError, match="family-0.8/1"):
        trial.run("--job", "family-0.8/1")


def test_a_member_is_compared_with_the_member_of_its_sparsity(tmp_path, made):
    nested = "{base: family, kd: {}, baseline: family"
    text = f"""{SYSTEMS.replace(", baseline: plain", "")}
  family_kd: {nested}}}
  other: {nested}, sparsity: {{target: 0.7, nested: [0.5]}}}}
  alone: {{base: plain, baseline: family}}
"""
    (tmp_path / "trial.yaml").write_text(text)
    plan = Plan(tmp_path / "trial.yaml", Places(made[0].corpus.preset, tmp_path / "exp", "dev", {}))
    assert {name: plan.systems[name].baseline for name in plan.systems} == {
        "teacher": None, "family": None, "family-0.65": None, "family-0.8": None, "plain": None,
        "family_kd": "family", "family_kd-0.65": "family-0.65", "family_kd-0.8": "family-0.8",
        "other": "family", "other-0.7": None, "alone": "family",
    }  # fmt: skip


def test_an_endpoint_of_a_member_comes_too_late_once_its_family_is_trained(made, tmp_path):
    path = tmp_path / "trial.yaml"
    asked = "{system: family-0.8, baseline: plain, sparsity: 0.8, test_set: dev, search: modified_beam_search}"
    path.write_text(f"folds: 3\nendpoint: {asked}\n{SYSTEMS}")
    plan = Plan(path, Places(made[0].corpus.preset, tmp_path / "exp", "dev", {"dev": tmp_path}))
    run = Run([Part(plan, Progress(plan), 1)], Namespace(cmd=None, fold=None), [])
    found = []
    for is_trained in (False, True):
        if is_trained:
            (folder := plan.system_dir(("family", 1))).mkdir(parents=True)
            record_path(folder, "training").write_text("{}")
        run._record_endpoint()
        record = record_path(plan.dir, "endpoint")
        found.append("declared.system" in json.loads(record.read_text())["settings"])
        record.unlink()
    assert found == [True, False]


def test_a_member_is_not_trained_by_itself(made):
    trial, _ = made
    words = ["--config", trial.corpus.preset, "--experiment", trial.file, "--exp-dir", trial.exp, "--dev-set", "dev"]
    with pytest.raises(UserError, match="--system.*family-0.8"):
        train.main.__wrapped__([*map(str, words), "--system", "family-0.8"])


def test_a_system_with_the_name_of_a_member_is_refused(made, tmp_path):
    trial = made[0].copy(tmp_path)
    trial.file.write_text(SYSTEMS + "  family-0.8: {base: plain}\n")
    with pytest.raises(UserError, match="system family-0.8: names one as the member of family"):
        trial.run()

"""What experiment.json says is read as it was written, wherever the folder stands."""

import json
import shutil
from pathlib import Path

import pytest

from rnnt_kd.errors import UserError
from rnnt_kd.systems.experiment_folder import EvaluationSet, ExperimentFolder, ListedSystem, read, write


def described(folder):
    exp_dir = folder.parent
    systems = (
        ListedSystem("teacher", "teacher", (1,), {1: exp_dir / "default/teacher/seed1"}),
        ListedSystem(
            "sparse90_kd", "sparse_student", (2, 1), {seed: folder / f"sparse90_kd/seed{seed}" for seed in (1, 2)},
            baseline="sparse90", teacher="teacher", sparsity=0.9, structure="16x1", kd={"ranges": "student"},
        ),
    )  # fmt: skip
    test_sets = {"test": EvaluationSet(Path("/data/an4/test"), exp_dir / "cuts/test.jsonl.gz")}
    paths = exp_dir / "bpe", exp_dir / "cuts/train.jsonl.gz"
    return ExperimentFolder("paper", "an4", "conf/cpu.yaml", "greedy_search", 4, *paths, test_sets, systems)


def test_what_was_written_is_read_in_another_place_too(tmp_path):
    folder = tmp_path / "exp" / "paper"
    write(folder, described(folder))
    assert read(folder) == described(folder)
    written = json.loads((folder / "experiment.json").read_text())
    assert written["bpe_dir"] == "../bpe" and written["test_sets"]["test"]["data_dir"] == "/data/an4/test"
    assert written["systems"][0]["folders"] == {"1": "../default/teacher/seed1"}
    moved = shutil.copytree(tmp_path / "exp", tmp_path / "moved") / "paper"
    assert read(moved) == described(moved) and read(moved).system("sparse90_kd").first == moved / "sparse90_kd/seed2"
    assert read(moved).test_set() == read(moved).test_set("test")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "no such file; expected the folder of an experiment"),
        (lambda path: path.write_text("{"), "JSON"),
        (lambda path: path.write_text(path.read_text().replace('"beam": 4', '"beam": "many"')), "beam: "),
        (lambda path: path.write_text(path.read_text().replace('"role"', '"rule"', 1)), "systems.0.role: "),
        (lambda path: path.write_text(path.read_text().replace('"2": "', '"3": "')), "'sparse90_kd' has no folder"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    write(tmp_path / "paper", described(tmp_path / "paper"))
    damage(tmp_path / "paper/experiment.json")
    with pytest.raises(UserError) as error:
        read(tmp_path / "paper")
    assert message in str(error.value) and str(tmp_path / "paper/experiment.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_system_or_test_set_is_named_with_those_that_there_are(tmp_path):
    experiment = described(tmp_path / "paper")
    with pytest.raises(UserError, match="no system 'small'; expected of: teacher, sparse90_kd"):
        experiment.system("small")
    with pytest.raises(UserError, match="no test set 'other'; expected of: test"):
        experiment.test_set("other")

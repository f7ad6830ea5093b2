"""What experiment.json says is read as it was written, wherever the folder stands."""

import json
import shutil

import pytest
from command_cases import told
from experiment_cases import write_experiment

from rnnt_kd.systems.experiment_folder import read

SYSTEMS = {
    "teacher": {"role": "teacher"},
    "taught": {
        "role": "sparse_student",
        "baseline": "sparse90",
        "sparsity": 0.9,
        "structure": "16x1",
        "kd": {"scale": 2},
    },
}


def test_what_was_written_is_read_in_another_place_too(tmp_path):
    folder = tmp_path / "exp" / "paper"
    experiment = write_experiment(folder, SYSTEMS, (2, 1))
    assert read(folder) == experiment
    text = (folder / "experiment.json").read_text()
    written = json.loads(text)
    assert written["bpe_dir"] == "../bpe" and written["test_sets"]["test"]["data_dir"] == "/data/test"
    (folder / "experiment.json").write_text(text.replace('"teacher/seed1"', '"../default/teacher/seed1"'))
    moved = shutil.copytree(tmp_path / "exp", tmp_path / "moved") / "paper"
    assert read(moved).system("taught").first == moved / "taught/seed2"
    assert read(moved).system("teacher").folders[1] == tmp_path / "moved/default/teacher/seed1"
    assert read(moved).bpe_dir == tmp_path / "moved/bpe" and read(moved).test_set() == read(moved).test_set("test")


@pytest.mark.parametrize("damage, message", [
    (lambda path: path.unlink(), "no such file; expected the folder of an experiment"),
    (lambda path: path.write_text("{"), "JSON"),
    (lambda path: path.write_text(path.read_text().replace('"beam": 4', '"beam": "many"')), "beam: "),
    (lambda path: path.write_text(path.read_text().replace('"role"', '"rule"', 1)), "systems.0.role: "),
    (lambda path: path.write_text(path.read_text().replace('"2": "', '"3": "')), "'teacher' has no folder"),
    (lambda path: path.write_text(path.read_text().replace('"taught"', '"../../taught"')), "'../../taught' is no name"),
    (lambda path: path.write_text(path.read_text().replace('"test"', '".."')), "'..' is no name"),
    (lambda path: path.write_text(path.read_text().replace('"../bpe"', '"/etc"')), "names /etc, which is not below"),
    (lambda path: path.write_text(path.read_text().replace('"teacher/seed1"', '"../../x"')), "x, which is not below"),
    (lambda path: (path.parent / "teacher").symlink_to("/etc"), "teacher/seed2, which is not below"),
    (lambda path: path.write_text("[" * 100_000), "JSON"),
])  # fmt: skip
def test_damage_is_named(tmp_path, damage, message):
    write_experiment(tmp_path / "paper", SYSTEMS, (2, 1))
    damage(tmp_path / "paper/experiment.json")
    said = told(read, tmp_path / "paper")
    assert message in said and str(tmp_path / "paper/experiment.json") in said


def test_an_unknown_system_or_test_set_is_named_with_those_that_there_are(tmp_path):
    experiment = write_experiment(tmp_path / "paper", SYSTEMS)
    assert "no system 'small'; expected of: teacher, taught" in told(experiment.system, "small")
    assert "no test set 'other'; expected of: test" in told(experiment.test_set, "other")

"""Experiment files: what they may say, and each thing that they may not as one line that names it."""

import pytest
from command_cases import told

from rnnt_kd.errors import UserError
from rnnt_kd.experiments.definition import read_experiment

WHOLE = """
seeds: [1, 2]
baseline: sparse90
systems:
  teacher: {role: teacher, seeds: [1]}
  sparse90: {role: sparse_student, sparsity: 0.9, training: {epochs: 3}}
  uniform: {base: sparse90, kd: {weighting: uniform, scale: 2}}
  hot: {base: uniform, kd: {scale: 4, temperature: 2}, training: {prune_range: 7}, seeds: [7]}
  blocks: {base: hot, kd: null, sparsity: {structure: 16x1}}
  blocks_kd: {base: blocks, kd: {}, sparsity: 0.8}
  large: {role: teacher, seeds: [3], model: {encoder_options: {dim: 128}}}
  small: {role: small_student, teacher: large, kd: {ranges: student}}
  alone: {role: small_student, baseline: null}
  other: {role: small_student, baseline: hot}
"""
SECTIONS = ("features", "text", "decoding", "teacher")


def experiment(tmp_path, text, *overrides):
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return read_experiment(path, overrides, SECTIONS)


def test_a_base_gives_all_but_the_baseline_and_options_key_by_key(tmp_path):
    read = experiment(tmp_path, WHOLE)
    assert read.name == "trial" and list(read.systems)[:3] == ["teacher", "sparse90", "uniform"]
    uniform, hot, blocks, again = (read.systems[name] for name in ("uniform", "hot", "blocks", "blocks_kd"))
    assert (uniform.role, uniform.seeds, uniform.experiment) == ("sparse_student", (1, 2), "trial")
    zeros, few = {"target": 0.9}, {"epochs": 3}
    assert uniform.values == {"sparsity": zeros, "training": few, "kd": {"weighting": "uniform", "scale": 2}}
    assert hot.values["kd"] == {"weighting": "uniform", "scale": 4, "temperature": 2} and hot.seeds == (7,)
    assert hot.values["training"] == {"epochs": 3, "prune_range": 7}
    assert blocks.values["kd"] is None and blocks.values["sparsity"] == {"target": 0.9, "structure": "16x1"}
    assert again.values["kd"] == {}  # all options as in the preset, and not those of hot
    assert again.values["sparsity"] == {"target": 0.8, "structure": "16x1"}
    assert (
        read.systems["small"].teacher == "large" and hot.teacher == "teacher" and read.systems["large"].teacher is None
    )


def test_the_baseline_is_the_nearest_base_without_distillation_else_the_files(tmp_path):
    systems = experiment(tmp_path, WHOLE).systems
    assert {name: system.baseline for name, system in systems.items()} == {
        "teacher": None, "sparse90": None, "uniform": "sparse90", "hot": "sparse90", "blocks": "sparse90",
        "blocks_kd": "blocks", "large": None, "small": "sparse90", "alone": None, "other": "hot",
    }  # fmt: skip


def test_a_system_of_another_experiment_is_the_same_system_in_its_folder(tmp_path):
    (tmp_path / "default.yaml").write_text(WHOLE)
    text = "seeds: [5]\nsystems: {teacher: {of: default}, sparse90: {of: default}, hot: {base: sparse90, kd: {}}, uniform: {of: default}}"
    mine, others = experiment(tmp_path, text).systems, read_experiment(tmp_path / "default.yaml").systems
    assert mine["teacher"] == others["teacher"] and mine["sparse90"].experiment == "default"
    assert mine["uniform"] == others["uniform"] and mine["uniform"].baseline == "sparse90"
    assert (mine["hot"].experiment, mine["hot"].seeds, mine["hot"].baseline) == ("trial", (5,), "sparse90")
    assert mine["hot"].values == {**others["sparse90"].values, "kd": {}}


def test_overrides_stand_as_if_they_were_in_the_file(tmp_path):
    overrides = ["uniform.kd.scale=3", "sparse90.sparsity=0.5", "seeds=[4]", "large.model.encoder_options.dim=32"]
    systems = experiment(tmp_path, WHOLE, *overrides, "uniform.training.learning_rate=1e-3").systems
    assert systems["uniform"].values["kd"] == {"weighting": "uniform", "scale": 3}
    assert systems["uniform"].values["training"] == {"epochs": 3, "learning_rate": 1e-3}
    assert systems["hot"].values["kd"]["scale"] == 4 and systems["hot"].values["sparsity"] == {"target": 0.5}
    assert systems["sparse90"].seeds == (4,) and systems["large"].values["model"]["encoder_options"] == {"dim": 32}
    assert experiment(tmp_path, WHOLE, "decoding.beam=8", "text.vocab_size=9").preset == (
        "decoding.beam=8",
        "text.vocab_size=9",
    )


@pytest.mark.parametrize("override, words", [
    ("unifrm.kd.scale=3", ["--set unifrm.kd.scale", "did you mean 'uniform'"]),
    ("uniform.kdd.scale=3", ["system uniform", "'kdd'", "did you mean 'kd'"]),
    ("uniform=3", ["--set uniform", "SYSTEM.KEY=VALUE"]),
    ("uniform.kd.scale", ["--set", "uniform.kd.scale", "="]),
    ("seeds=x", ["seeds", "x"]),
])  # fmt: skip
def test_an_override_of_what_is_not_there_is_one_line(tmp_path, override, words):
    said = told(experiment, tmp_path, WHOLE, override)
    assert "\n" not in said and all(word in said for word in words), said


@pytest.mark.parametrize("text, words", [
    ("", ["trial.yaml: names no system"]),
    ("systems: {}", ["names no system"]),
    ("systems: [a]", ["systems", "no mapping"]),
    ("sistems: {a: {role: teacher}}", ["sistems", "did you mean 'systems'"]),
    ("systems: {a: {}}", ["system a: has no role", "sparse_student"]),
    ("systems: {a: {role: sparse_studnt}}", ["sparse_studnt", "did you mean 'sparse_student'"]),
    ("systems: {a: {rol: teacher}}", ["system a", "'rol'", "did you mean 'role'"]),
    ("systems: {a: {role: small_student, kd: 3}}", ["system a: kd", "no mapping"]),
    ("systems: {a: {role: small_student, training: null}}", ["system a: training", "no mapping"]),
    (
        "systems: {small: {role: small_student}, b: {base: smal}}",
        ["system b: base", "'smal'", "did you mean 'small'"],
    ),
    ("systems: {a: {base: b}, b: {base: c}, c: {base: b}}", ["in a circle: b -> c -> b"]),
    ("systems: {a: {base: a}}", ["in a circle: a -> a"]),
    ("systems:\n  a: {role: teacher}\n  a: {role: teacher}\n", ["trial.yaml:3", "duplicate key a"]),
    ("systems: {a: {role: teacher, seeds: [1, 2, 1]}}", ["system a: seeds", "1 stands there twice"]),
    ("seeds: [2, 2]\nsystems: {a: {role: teacher}}", ["seeds", "2 stands there twice"]),
    ("seeds: []\nsystems: {a: {role: teacher}}", ["seeds", "[]"]),
    ("systems: {a: {role: teacher, seeds: []}}", ["system a: seeds", "[]"]),
    ("seeds: [-1]\nsystems: {a: {role: teacher}}", ["-1"]),
    ("seeds: [1.5]\nsystems: {a: {role: teacher}}", ["seeds", "1.5"]),
    ("systems: {export: {role: teacher}}", ["'export' is no name"]),
    ("systems: {log: {role: teacher}}", ["'log' is no name"]),
    ("systems: {a/b: {role: teacher}}", ["'a/b' is no name"]),
    ("systems: {a: {role: teacher}, A: {role: teacher}}", ["systems a and A would lie in one folder"]),
    ("systems: {summary.json: {role: teacher}}", ["'summary.json' is no name", "*.json, *.md"]),
    (f"systems: {{{'x' * 101}: {{role: teacher}}}}", ["is no name", "at most 100"]),
    ("systems: {null: {role: teacher}}", ["trial.yaml: not a mapping", "NoneType"]),
    ("5", ["trial.yaml: not a mapping"]),
    ("systems: {60: {role: teacher}}", ["'60' is no name"]),
    ("baseline: b\nsystems: {a: {role: teacher}}", ["baseline", "there is no 'b'"]),
    ("systems: {a: {role: teacher, baseline: a}}", ["baseline", "the system itself"]),
    ("systems: {a: {role: small_student, teacher: b}}", ["system a: teacher", "there is no 'b'"]),
    ("systems: {a: {role: small_student, teacher: b}, b: {role: small_student}}", ["b is a small_student"]),
    ("systems: {a: {role: teacher, teacher: b}, b: {role: teacher}}", ["given for a teacher"]),
    ("systems: {a: {role: small_student, teacher: [b, c]}, b: {role: teacher}}", ["system a: teacher", "there is no 'c'"]),
    ("systems: {a: {role: small_student, teacher: [b, b]}, b: {role: teacher}}", ["system a: teacher", "each once"]),
    ("systems: {a: {role: small_student, teacher: []}, b: {role: teacher}}", ["system a: teacher", "each once"]),
    ("systems: {a: {role: small_student, teacher: [b, a]}, b: {role: teacher}}", ["a is a small_student"]),
    ("seeds: [1, 2]\nsystems: {a: {role: small_student, teacher: b}, b: {role: teacher}}", ["b has 2 seeds"]),
    ("systems: {a: {of: nowhere}}", ["system a: of", "there is no 'nowhere'", "other"]),
    ("systems: {a: {of: ../other}}", ["system a: of", "did you mean 'other'"]),
    ("systems: {a: {of: other}}", ["system a: of other", "there is no 'a'", "one of: teacher, student"]),
    ("systems: {student: {of: other, kd: {}}}", ["kd given beside of", "set it there"]),
    ("systems: {student: {of: other}, teacher: {role: teacher}}", ["not that of experiment other", "{of: other}"]),
    ("systems: {teacher: {role: teacher}, alone: {of: lonely}}", ["system alone: teacher", "not that of experiment lonely"]),
    ("systems: {a: {of: circle}}", ["experiments in a circle: trial.yaml -> circle.yaml -> trial.yaml"]),
    ("systems: {a: [", ["trial.yaml", "not YAML"]),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, words):
    (tmp_path / "other.yaml").write_text(
        "systems: {teacher: {role: teacher}, student: {role: sparse_student, sparsity: 0.5}}"
    )
    (tmp_path / "lonely.yaml").write_text("systems: {alone: {role: small_student}}")
    (tmp_path / "circle.yaml").write_text("systems: {a: {of: trial}}")
    said = told(experiment, tmp_path, text)
    assert "\n" not in said and all(word in said for word in [".yaml", *words]), said


@pytest.mark.parametrize("name", ["bpe", "cuts", "data", "log", "folds5", "fold1of5"])
def test_an_experiment_has_a_folder_of_its_own(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text("systems: {a: {role: teacher}}")
    assert f"'{name}' is a folder of EXP_DIR for something else" in told(read_experiment, tmp_path / f"{name}.yaml")


def test_empty_options_of_a_teachers_encoder_are_none(tmp_path):
    for options in ("", "5"):
        text = f"systems:\n  t: {{role: teacher, model: {{encoder_options: {options}}}}}\n  s: {{role: sparse_student, teacher: t}}"
        assert experiment(tmp_path, text).systems["s"].teacher == "t"


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file.*conf/experiments"):
        read_experiment(tmp_path / "nowhere.yaml")

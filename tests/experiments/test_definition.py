"""Experiment files: what they may say, and each thing that they may not as one line that names it."""

import pytest

from rnnt_kd.errors import UserError
from rnnt_kd.experiments.definition import read_experiment

WHOLE = """
seeds: [1, 2]
baseline: sparse90
systems:
  sparse90: {role: sparse_student, sparsity: 0.9, set: {sparse_student.training.epochs: 3}}
  uniform: {base: sparse90, kd: {weighting: uniform, scale: 2}}
  hot: {base: uniform, kd: {scale: 4, temperature: 2}, set: {text.vocab_size: 70}, seeds: [7]}
  blocks: {base: hot, kd: null, structure: 16x1}
  blocks_kd: {base: blocks, kd: {}}
  large: {role: teacher, seeds: [3], set: {teacher.model.encoder_options.dim: 128}}
  small: {role: small_student, teacher: large, kd: {ranges: student}}
  alone: {role: small_student, baseline: null}
  other: {role: small_student, baseline: hot}
"""


def experiment(tmp_path, text):
    path = tmp_path / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return read_experiment(path)


def test_a_base_gives_all_but_the_baseline_and_options_key_by_key(tmp_path):
    read = experiment(tmp_path, WHOLE)
    assert read.name == "trial" and list(read.systems)[:3] == ["sparse90", "uniform", "hot"]
    uniform, hot, blocks = (read.systems[name] for name in ("uniform", "hot", "blocks"))
    assert (uniform.role, uniform.sparsity, uniform.seeds) == ("sparse_student", 0.9, (1, 2))
    assert uniform.kd == {"weighting": "uniform", "scale": 2.0}
    assert hot.kd == {"weighting": "uniform", "scale": 4.0, "temperature": 2.0} and hot.seeds == (7,)
    assert hot.overrides == {"sparse_student.training.epochs": 3, "text.vocab_size": 70}
    assert blocks.kd is None and blocks.structure == "16x1" and blocks.overrides == hot.overrides
    assert read.systems["blocks_kd"].kd == {}  # all options as in the preset, and not those of hot
    assert read.systems["small"].teacher == "large" and hot.teacher == "teacher"


def test_the_baseline_is_the_nearest_base_without_distillation_else_the_files(tmp_path):
    systems = experiment(tmp_path, WHOLE).systems
    assert {name: system.baseline for name, system in systems.items()} == {
        "sparse90": None, "uniform": "sparse90", "hot": "sparse90", "blocks": "sparse90", "blocks_kd": "blocks",
        "large": None, "small": "sparse90", "alone": None, "other": "hot",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["trial.yaml: names no system"]),
        ("systems: {}", ["names no system"]),
        ("systems: [a]", ["systems", "no mapping"]),
        ("sistems: {a: {role: teacher}}", ["sistems", "did you mean 'systems'"]),
        ("systems: {a: {}}", ["system a: has no role", "sparse_student"]),
        ("systems: {a: {role: sparse_studnt}}", ["sparse_studnt", "did you mean 'sparse_student'"]),
        ("systems: {a: {rol: teacher}}", ["system a", "unknown key 'rol'", "did you mean 'role'"]),
        ("systems: {a: {role: small_student, kd: {scael: 1}}}", ["system a: kd", "'scael'", "did you mean 'scale'"]),
        ("systems: {a: {role: small_student, kd: {scale: much}}}", ["system a: kd", "'scale'", "much"]),
        ("systems: {a: {role: small_student, kd: 3}}", ["system a", "kd"]),
        (
            "systems: {small: {role: small_student}, b: {base: smal}}",
            ["system b: base", "'smal'", "did you mean 'small'"],
        ),
        ("systems: {a: {base: b}, b: {base: c}, c: {base: b}}", ["in a circle: b -> c -> b"]),
        ("systems: {a: {base: a}}", ["in a circle: a -> a"]),
        ("systems:\n  a: {role: teacher}\n  a: {role: teacher}\n", ["trial.yaml:3", "duplicate key a"]),
        ("systems: {a: {role: teacher, seeds: [1, 2, 1]}}", ["system a: seeds", "1 stands there twice"]),
        ("seeds: [2, 2]\nsystems: {a: {role: teacher}}", ["seeds", "2 stands there twice"]),
        ("seeds: []\nsystems: {a: {role: teacher}}", ["seeds: empty"]),
        ("systems: {a: {role: teacher, seeds: []}}", ["system a: seeds: empty"]),
        ("seeds: [-1]\nsystems: {a: {role: teacher}}", ["-1"]),
        ("seeds: [1.5]\nsystems: {a: {role: teacher}}", ["seeds", "1.5"]),
        ("systems: {teacher: {role: teacher}}", ["'teacher' is no name"]),
        ("systems: {a/b: {role: teacher}}", ["'a/b' is no name"]),
        ("systems: {60: {role: teacher}}", ["'60' is no name"]),
        ("baseline: b\nsystems: {a: {role: teacher}}", ["baseline", "there is no system 'b'"]),
        ("systems: {a: {role: teacher, baseline: a}}", ["baseline", "the system itself"]),
        ("systems: {a: {role: small_student, teacher: b}}", ["system a: teacher", "there is no system 'b'"]),
        ("systems: {a: {role: small_student, teacher: b}, b: {role: small_student}}", ["b is a small_student"]),
        ("seeds: [1, 2]\nsystems: {a: {role: small_student, teacher: b}, b: {role: teacher}}", ["b has 2 seeds"]),
        ("systems: {a: [", ["trial.yaml", "not YAML"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        experiment(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message and "trial.yaml" in message
    for word in words:
        assert word in message, message


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such configuration file.*conf/experiments"):
        read_experiment(tmp_path / "nowhere.yaml")

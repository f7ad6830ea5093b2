"""Configuration files: what is wrong is said in one line that names the key and the right keys."""

import dataclasses

import pytest
from command_cases import told

from rnnt_kd.config import KdConfig, RecipeConfig, SparsityConfig, StreamingStudentConfig, SystemConfig
from rnnt_kd.config_io import as_plain_dict, load_recipe, parse_override, read_system_config, write_system_config
from rnnt_kd.systems.compose import check_device, compose

# 10 ** 9 values by aliases of aliases
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


ODD_SCALARS = ("0x_", "0b_", "!!int abc", "!!bool x", "!!timestamp x", "!!int ''")


def recipe_from(tmp_path, text, overrides=()):
    path = tmp_path / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def test_values_and_defaults(tmp_path):
    recipe = recipe_from(tmp_path, "text: {vocab_size: 77}\nteacher: {model: {encoder_options: {dim: 48}}}\n")
    assert recipe.text.vocab_size == 77
    assert recipe.teacher.model.encoder_options == {"dim": 48}
    assert recipe.sparse_student == RecipeConfig().sparse_student and recipe.streaming_student is None


def test_override_wins_over_file(tmp_path):
    recipe = recipe_from(tmp_path, "text: {vocab_size: 77}\n", ["text.vocab_size=78", "kd.weighting=uniform"])
    assert (recipe.text.vocab_size, recipe.kd.weighting) == (78, "uniform")


def test_training_is_shared_by_the_roles_and_a_preset_is_laid_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "training: {epochs: 9, specaugment: {num_time_masks: 1}}\nsmall_student: {training: {epochs: 4}}\n"
        "streaming_student: {model: {encoder: streaming_conformer}}\n"
    )
    recipe = recipe_from(tmp_path, "base: base.yaml\ntraining: {specaugment: {max_time_frames: 7}}\nkd: {scale: 3}\n")
    assert (recipe.teacher.training.epochs, recipe.small_student.training.epochs, recipe.kd.scale) == (9, 4, 3.0)
    for part in (recipe.teacher, recipe.sparse_student, recipe.small_student, recipe.streaming_student):
        masks = part.training.specaugment
        assert (masks.num_time_masks, masks.max_time_frames, masks.num_frequency_masks) == (1, 7, 2)
    assert "preset.yaml: base: ../x.yaml" in told(recipe_from, tmp_path, "base: ../x.yaml")
    assert "base: preset.yaml" in told(recipe_from, tmp_path, "base: preset.yaml")


@pytest.mark.parametrize(
    "text, overrides, words",
    [
        ("texd: {vocab_size: 7}\n", [], ["preset.yaml", "texd", "did you mean 'text'", "teacher"]),
        ("text: {vocab_sise: 7}\n", [], ["text.vocab_sise", "did you mean 'vocab_size'", "model_type"]),
        ("teacher: {model: {sise: tiny}}\n", [], ["teacher.model.sise", "did you mean 'size'", "joiner_dim"]),
        ("text: {vocab_size: many}\n", [], ['preset.yaml: text.vocab_size: "many"', "a whole number"]),
        ("text: {vocab_size: '7'}\n", [], ['text.vocab_size: "7"', "a whole number"]),
        ("text: {vocab_size: true}\n", [], ["text.vocab_size: true", "a whole number"]),
        ("text: {vocab_size: 7.5}\n", [], ["text.vocab_size: 7.5", "a whole number"]),
        ("teacher: 3\n", [], ["teacher", "3", "mapping"]),
        ("text: {vocab_size: [\n", [], ["preset.yaml", "not YAML"]),
        ("a: 1\na: 2\n", [], ["preset.yaml:2", "duplicate"]),
        ("- a\n- b\n", [], ["not a mapping"]),
        ("text: {vocab_size: '${oc.env:HOME}'}\n", [], ["preset.yaml", "'${oc.env:HOME}'", "plain values"]),
        ("text: {model_type: '${'}\n", [], ["preset.yaml", "'${", "plain values"]),
        ("text: {model_type: !!python/object/apply:os.system ['touch x']}\n", [], ["preset.yaml:1", "not YAML", "python"]),
        ("a: " + "[" * 5000, [], ["preset.yaml", "nested too deep"]),
        ("a: &a [*a]\n", [], ["preset.yaml", "an alias of itself"]),
        (BOMB, [], ["preset.yaml", "not YAML (more than 100000 values"]),
        *((f"text: {{vocab_size: {value}}}\n", [], ["preset.yaml: not YAML ("]) for value in ODD_SCALARS),
        ("", ["teacher.model.encoder_options.x=${oc.env:HOME}"], ["--set teacher.model.encoder_options.x", "'${oc.env:HOME}'"]),
        ("", ["teacher.model.encoder_options.x=${"], ["--set teacher.model.encoder_options.x", "'${'"]),
        ("", ["text.vocab_size"], ["--set", "KEY=VALUE"]),
        ("", ["text.nothing=1"], ["--set", "text.nothing", "vocab_size"]),
        ("", ["text.vocab_size=["], ["--set text.vocab_size", "'['"]),
        ("", ["training.epochs=0"], ["--set: teacher.training.epochs: 0", "a number >= 1"]),
        ("kd: {scale: -1}\n", [], ["kd.scale: -1", "a number >= 0"]),
        ("kd: {scale: much}\n", [], ['kd.scale: "much"', "a number"]),
        ("kd: {scale: .nan}\n", [], ["kd.scale: NaN", "a finite number"]),
        ("kd: {temperature: 0}\n", [], ["kd.temperature: 0", "a number > 0"]),
        ("kd: {shift: -1}\n", [], ["kd.shift: -1", "a number >= 0"]),
        ("kd: {ranges: both}\n", [], ['kd.ranges: "both"', "one of: teacher, student"]),
        ("kd: {variant: collapsd}\n", [], ["kd.variant: there is no 'collapsd'", "full", "did you mean 'collapsed'"]),
        ("kd: {weighting: unform}\n", [], ["kd.weighting: there is no 'unform'", "did you mean 'uniform'"]),
        ("kd: {variant: full}\n", [], ["kd.variant: full compares whole logits", "ranges student"]),
        ("kd: {class_scales: [1, 2]}\n", [], ["kd.class_scales: [1, 2]", "at least 3 values"]),
        ("kd: {class_scales: [1, 2, -1]}\n", [], ["kd.class_scales.2: -1", "a number >= 0"]),
        ("training: {min_seconds: 3, max_seconds: 2}\n", [], ["preset.yaml: teacher.training.min_seconds: 3.0 > 2.0"]),
        ("training: {rnnt_type: odd}\n", [], ['teacher.training.rnnt_type: "odd"', "one of: regular"]),
        ("training: {betas: [0.9, 1.0]}\n", [], ["betas.1: 1.0", "a number < 1"]),
        ("training: {betas: [0.9]}\n", [], ["betas: [0.9]", "at least 2 values"]),
        ("training: {prune_range: 1}\n", [], ["prune_range: 1", "a number >= 2"]),
        ("sparse_student: {sparsity: {begin_fraction: 0.6, end_fraction: 0.5}}\n", [], ["begin_fraction: 0.6 > 0.5"]),
        ("sparse_student: {sparsity: {structure: 4y4}}\n", [], ["sparse_student.sparsity.structure", "4y4", "16x1"]),
        ("sparse_student: {sparsity: {structure: 2:4}}\n", [], ["sparsity.structure: 124", 'quotes', '"2:4"']),
        ("training: {delay_penalty: -1}\n", [], ["training.delay_penalty: -1", "a number >= 0"]),
        ("teacher: {model: {ctc_head: 1}}\n", [], ["teacher.model.ctc_head: 1", "true or false"]),
        ("features: {speed_perturb: 1.0}\n", [], ["features.speed_perturb: 1.0", "a list"]),
        ("streaming_student: {model: 3}\n", [], ["streaming_student.model: 3", "key: value pairs"]),
        ("base: none.yaml\n", [], ["none.yaml: no such file", "it is the base of"]),
        ("sparse_student: {sparsity: {scope: all}}\n", [], ['scope: "all"', "global"]),
    ],
)  # fmt: skip
def test_errors_name_the_key_in_one_line(tmp_path, text, overrides, words):
    message = told(recipe_from, tmp_path, text, overrides)
    for word in words:
        assert word in message, message


def test_missing_and_binary_files(tmp_path):
    assert "no such file" in told(load_recipe, tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert "UTF-8" in told(load_recipe, tmp_path / "binary.yaml")


def test_every_preset_on_disk_is_valid(root):
    presets = sorted(root.glob("egs/*/conf/*.yaml"))
    assert presets
    for preset in presets:
        assert load_recipe(preset).text.vocab_size > 2, preset


def test_system_config_round_trip(tmp_path):
    for name, structure in (("a", "unstructured"), ("1e5", "2:4"), ("010", "16x1"), ("no", "unstructured")):
        zeros = SparsityConfig(target=0.5, structure=structure)  # names that YAML would read as something else
        config = SystemConfig(name=name, role="sparse_student", sparsity=zeros, kd=KdConfig(scale=1e-3))
        write_system_config(tmp_path / "config.yaml", config)
        assert read_system_config(tmp_path / "config.yaml") == config
    assert as_plain_dict(config)["kd"]["scale"] == 1e-3
    assert "unknown key 'target_sparsity'" in told(read_system_config, _written(tmp_path, "target_sparsity: 0.9\n"))
    for reference in (
        "${oc.env:HOME}",
        "${seed}",
        "${nope.x}",
        "${",
        "${oc.env:HOME",
        "x ${oc.decode:1} y",
        "\\${seed}",
    ):
        assert "plain values" in told(read_system_config, _written(tmp_path, f"name: '{reference}'\n"))


def _written(folder, text):
    (folder / "old.yaml").write_text(text)
    return folder / "old.yaml"


@pytest.mark.parametrize(
    "text, value",
    [("2", 2), ("1e-3", 1e-3), ("[1, 2]", [1, 2]), ("text", "text"), ("a=b", "a=b"), ("null", None), ("2:4", "2:4")],
)
def test_overrides_are_yaml(text, value):
    assert parse_override(f"a.b={text}") == ("a.b", value)


def test_a_system_is_the_part_of_its_role_with_values_over_it(tmp_path):
    recipe = recipe_from(tmp_path, "kd: {weighting: uniform, scale: 2}\nteacher: {model: {predictor_dim: 24}}\n")
    config = compose(
        recipe, name="a", role="sparse_student", seed=3,
        values={"sparsity": 0.9, "kd": {"scale": 5}, "training": {"specaugment": {"num_time_masks": 9}}},
    )  # fmt: skip
    assert (config.name, config.seed, config.model.predictor_dim) == ("a", 3, 24)
    assert config.kd == dataclasses.replace(recipe.kd, scale=5.0) and config.sparsity == SparsityConfig(target=0.9)
    assert config.training.specaugment.num_time_masks == 9 and config.training.specaugment.max_time_frames == 40
    assert compose(recipe, name="b", role="small_student", values={"kd": None}).kd is None
    assert compose(recipe, name="b", role="small_student", values={"kd": {}}).kd == recipe.kd


@pytest.mark.parametrize("role, values, words", [
    ("sparse_student", {}, ["sparsity.target", "0.9"]),
    ("sparse_student", {"sparsity": 1.0}, ["sparsity.target: 1.0", "a number < 1"]),
    ("small_student", {"sparsity": 0.5}, ["sparsity", "small_student, which is dense"]),
    ("teacher", {"kd": {}}, ["kd", "teacher"]),
    ("small_student", {"kd": {"scael": 1}}, ["kd.scael", "did you mean 'scale'"]),
    ("small_student", {"traning": {}}, ["did you mean 'training'"]),
    ("small_student", {"seed": 2}, ["there is no 'seed'", "model, training, sparsity, kd"]),
    ("small_studnet", {}, ["role", "did you mean 'small_student'"]),
    ("sparse_student", {"sparsity": {"target": 0.9, "structur": "4x4"}}, ["did you mean 'structure'"]),
    ("sparse_student", {"sparsity": {"target": 0.9, "structure": "2:4"}}, ["sparsity.structure: 2:4", "0.5"]),
    ("small_student", {"kd": 3}, ["kd: '3' is no mapping"]),
    ("sparse_student", {"sparsity": "much"}, ["sparsity: 'much' is no mapping"]),
    ("streaming_student", {}, ["no part streaming_student"]),
])  # fmt: skip
def test_values_that_a_role_cannot_have(role, values, words):
    message = told(compose, RecipeConfig(), name="x", role=role, values=values)
    assert all(word in message for word in words), message


def test_a_streaming_student_streams_and_is_dense_without_a_target():
    recipe = dataclasses.replace(RecipeConfig(), streaming_student=StreamingStudentConfig())
    streaming = dict(name="x", role="streaming_student")
    assert compose(recipe, **streaming).sparsity is None
    assert compose(recipe, **streaming, values={"sparsity": 0}).sparsity is None
    assert compose(recipe, **streaming, values={"sparsity": 0.5}).sparsity == SparsityConfig(target=0.5)
    assert "target as well" in told(compose, recipe, **streaming, values={"sparsity": {"structure": "4x4"}})
    encoder = {"model": {"encoder": "conformer"}}
    assert "model.encoder: conformer for a streaming student" in told(compose, recipe, **streaming, values=encoder)


def test_precision_depends_on_the_device():
    config = compose(RecipeConfig(), name="x", role="teacher", values={"training": {"precision": "16-mixed"}})
    assert "16-mixed on a CPU" in told(check_device, config, "cpu")
    check_device(config, "cuda")

"""Configuration files: what is wrong is said in one line that names the key and the right keys."""

import dataclasses

import pytest

from rnnt_kd.config import KdConfig, RecipeConfig, SystemConfig
from rnnt_kd.config_io import load_recipe, read_system_config, write_system_config
from rnnt_kd.errors import UserError


def recipe_from(tmp_path, text, overrides=()):
    path = tmp_path / "preset.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def test_values_and_defaults(tmp_path):
    recipe = recipe_from(tmp_path, "text: {vocab_size: 77}\nteacher: {model: {encoder_options: {dim: 48}}}\n")
    assert recipe.text.vocab_size == 77
    assert recipe.teacher.model.encoder_options == {"dim": 48}
    assert recipe.sparse_student == RecipeConfig().sparse_student


def test_override_wins_over_file(tmp_path):
    recipe = recipe_from(tmp_path, "text: {vocab_size: 77}\n", ["text.vocab_size=78", "kd.weighting=uniform"])
    assert (recipe.text.vocab_size, recipe.kd.weighting) == (78, "uniform")


@pytest.mark.parametrize(
    "text, overrides, words",
    [
        ("texd: {vocab_size: 7}\n", [], ["texd", "did you mean 'text'", "teacher"]),
        ("text: {vocab_sise: 7}\n", [], ["text.vocab_sise", "vocab_size", "model_type"]),
        ("text: {vocab_size: many}\n", [], ["text.vocab_size", "many"]),
        ("text: {vocab_size: [\n", [], ["preset.yaml", "not YAML"]),
        ("- a\n- b\n", [], ["not a mapping"]),
        ("", ["text.vocab_size"], ["--set", "key=value"]),
        ("", ["text.nothing=1"], ["--set text.nothing", "vocab_size"]),
    ],
)
def test_errors_name_the_key_in_one_line(tmp_path, text, overrides, words):
    with pytest.raises(UserError) as caught:
        recipe_from(tmp_path, text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="no such configuration file"):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_every_preset_on_disk_is_valid(root):
    presets = sorted(root.glob("egs/*/conf/*.yaml"))
    assert presets
    for preset in presets:
        recipe = load_recipe(preset)
        assert recipe.text.vocab_size > 2, preset


def test_system_config_round_trip(tmp_path):
    config = SystemConfig(name="sparse90_kd", role="sparse_student", target_sparsity=0.9, kd=KdConfig(scale=0.25))
    write_system_config(tmp_path / "config.yaml", config)
    assert read_system_config(tmp_path / "config.yaml") == config
    assert dataclasses.asdict(config)["kd"]["scale"] == 0.25

"""From definitions to folders and commands: what bin.train reads from them is what the plan says it is."""

from pathlib import Path

import pytest
from command_cases import told

from rnnt_kd.bin import cache_teacher, export, train
from rnnt_kd.config import KdConfig
from rnnt_kd.config_io import load_recipe
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.plan import Places, Plan

EXP = Path("/exp")
SYSTEMS = """
seeds: [1, 2]
systems:
  teacher: {role: teacher, seeds: [1]}
  sparse90: {role: sparse_student, sparsity: {target: 0.9, structure: 4x4}}
  uniform: {base: sparse90, kd: {weighting: uniform, scale: 0.5}}
  hot: {base: uniform, kd: {temperature: 2.0, ramp_steps: 5}}
  wide: {base: hot, training: {prune_range: 7}}
  online: {base: uniform, kd: {variant: full, ranges: student}}
  small: {role: small_student}
  small_kd: {base: small, kd: {}}
  small_large: {base: small, teacher: large, kd: {}}
  large: {role: teacher, seeds: [5], model: {encoder_options: {dim: 64}}}
  small_both: {base: small, teacher: [large, teacher], kd: {}}
  sparse_both: {base: sparse90, teacher: [teacher, large], kd: {temperature: 2.0}}
  sparse_none: {base: sparse_both, kd: null}
"""


@pytest.fixture
def plan(tmp_path, root):
    return made(tmp_path, root, SYSTEMS)


def made(tmp_path, root, text, *overrides):
    (tmp_path / "trial.yaml").write_text(text)
    places = Places(
        root / "egs/synth/conf/smoke.yaml", EXP, "dev", {"test": Path("/data/test")}, overrides=overrides,
        device=("--device", "cpu"),
    )  # fmt: skip
    return Plan(tmp_path / "trial.yaml", places)


@pytest.fixture
def trained(monkeypatch):
    """What bin.train would train: command -> (config, folder, options)."""

    def run(command):
        calls = []
        monkeypatch.setattr(
            "rnnt_kd.training.loop.train_system", lambda *args, **options: calls.append((*args, options))
        )
        monkeypatch.setattr("rnnt_kd.text.tokenizer.Tokenizer.load", lambda folder: folder)
        assert command[:2] == ["-m", "rnnt_kd.bin.train"]
        train.main.__wrapped__(command[2:])
        return calls[0]

    return run


def test_training_commands_say_what_the_plan_says(tmp_path, root, trained, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: "seed" in path.parent.name)  # the caches are there
    plan = made(tmp_path, root, SYSTEMS, "hot.kd.scale=3", "seeds=[4]")
    assert plan.config(("hot", 4)).kd.scale == 3.0
    for job in plan.jobs():
        config, folder, options = trained(plan.train_command(job))
        assert config == plan.config(job)
        assert folder == plan.system_dir(job) == EXP / "trial" / job[0] / f"seed{job[1]}"
        teachers = [plan.system_dir(teacher) for teacher in plan.teachers_of(job)] or [None]
        assert [options["teacher_dir"], *options["more_teachers"]] == teachers
        cache = plan.cache(job)
        assert options["kd_cache"] == (cache.folder if cache else None)


def test_every_seed_of_every_system_teachers_first(plan):
    jobs = list(plan.jobs())
    assert jobs[:4] == [("teacher", 1), ("large", 5), ("sparse90", 1), ("sparse90", 2)]
    assert len(jobs) == len(set(jobs)) == 2 + 11 * 2


def test_options_not_in_the_file_are_the_presets(plan):
    assert plan.config(("small_kd", 1)).kd == KdConfig()
    hot = plan.config(("hot", 2))
    assert (hot.seed, hot.sparsity.target, hot.sparsity.structure) == (2, 0.9, "4x4")
    assert hot.kd == KdConfig(weighting="uniform", scale=0.5, temperature=2.0, ramp_steps=5)
    assert plan.config(("wide", 1)).training.prune_range == 7 and hot.training.prune_range == 5
    assert plan.config(("large", 5)).model.encoder_options["dim"] == 64


def test_overrides_of_the_preset_reach_the_stages_that_read_it(tmp_path, root):
    plan = made(tmp_path, root, SYSTEMS, "decoding.beam=7", "text.vocab_size=33", "features.speed_perturb=[0.9, 1.1]")
    command = plan.decode_command(("small", 1), "test")
    assert command[command.index("--beam") + 1] == "7"
    assert plan.recipe == load_recipe(
        root / "egs/synth/conf/smoke.yaml",
        ["decoding.beam=7", "text.vocab_size=33", "features.speed_perturb=[0.9, 1.1]"],
    )


def test_far_sets_stand_beside_the_clean_ones_and_copies_in_the_training_set(tmp_path, root):
    places = Places(
        root / "egs/an4/conf/far.yaml", tmp_path / "exp", "dev", {"test": tmp_path / "test"}, tmp_path / "train",
        tmp_path / "dev", ("features.noise_dir=/n", "features.snr_db=[1, 2]"),
    )  # fmt: skip
    plan = Plan(root / "egs/an4/conf/experiments/default.yaml", places)
    assert list(plan.places.test_sets) == ["test", "test_far"]
    commands = plan.features_commands()
    order = ["train", "dev", "test", "dev_far, audio", "dev_far", "test_far, audio", "test_far"]
    assert list(commands) == order
    text = {name: " ".join(command) for name, command in commands.items()}
    place = f"--keep-apart {tmp_path}/dev {tmp_path}/test --snr-db 1.0 2.0 --noise-dir /n"
    assert text["train"].endswith(f"--speed-perturb 0.9 1.0 1.1 --far-copies 1 {place}")
    far = f"--train-dir {tmp_path}/train --out-dir {tmp_path}/exp/data/test_far {place}"
    assert text["test_far, audio"] == f"-m rnnt_kd.bin.far_data --data-dir {tmp_path}/test {far}"
    assert f"--data-dir {tmp_path}/exp/data/test_far " in text["test_far"] and "--far-copies" not in text["test"]
    assert "decode_test_far_" in str(plan.decode_dir(("small", 1), "test_far"))


@pytest.mark.parametrize("override, words", [
    ("features.noise_dir=x", "nothing is heard there"), ("features.snr_db=[9, 3]", "snr_db"), ("features.snr_db=[3]", "snr_db"),
    ("features.far_copies=-1", "far_copies"),
])  # fmt: skip
def test_surroundings_that_cannot_be_are_refused(tmp_path, root, override, words):
    with pytest.raises(UserError, match=words):
        made(tmp_path, root, SYSTEMS, override)


def test_a_set_with_the_name_of_a_far_one_is_refused(root):
    places = Places(root / "egs/an4/conf/far.yaml", EXP, "dev", {"test": Path("test"), "test_far": Path("test_far")})
    with pytest.raises(UserError, match="makes test_far, and there is one"):
        Plan(root / "egs/an4/conf/experiments/default.yaml", places)


def test_a_cache_lies_with_its_teacher_and_caches_differ_where_their_contents_do(plan):
    teacher, large = EXP / "trial" / "teacher" / "seed1", EXP / "trial" / "large" / "seed5"
    folders = {
        name: getattr(plan.cache((name, 1)), "folder", None) for name in plan.systems if plan.systems[name].teacher
    }
    assert folders == {
        "sparse90": None, "uniform": teacher / "kd_cache", "hot": teacher / "kd_cache_temperature2",
        "wide": teacher / "kd_cache_range7_temperature2", "online": None, "small": None,
        "small_kd": teacher / "kd_cache", "small_large": large / "kd_cache",
        "small_both": large / "kd_cache_mean-79690471", "sparse_both": teacher / "kd_cache_temperature2_mean-d1f84a70",
        "sparse_none": None,
    }  # fmt: skip
    assert plan.teacher_dir(("small_large", 1)) == large and plan.teacher_dir(("small", 1)) is None
    assert plan.teachers_of(("small_both", 1)) == [("large", 5), ("teacher", 1)]
    assert plan.teachers_of(("sparse_both", 1)) == [("teacher", 1), ("large", 5)]
    assert plan.teachers_of(("sparse_none", 1)) == [("teacher", 1)]
    assert plan.teachers_of(("small", 1)) == plan.teachers_of(("large", 5)) == []
    assert plan.teacher_of(("small_large", 2)) == ("large", 5) and plan.teacher_of(("uniform", 1)) == ("teacher", 1)


def test_cache_commands_make_the_lattice_that_the_student_needs(plan, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "rnnt_kd.teachers.cache_teacher.cache_teacher", lambda *args, **options: calls.append((args, options))
    )
    monkeypatch.setattr("rnnt_kd.teachers.cache_teacher.our_teachers", lambda folder, *_: folder)
    monkeypatch.setattr("rnnt_kd.text.tokenizer.Tokenizer.load", lambda folder: folder)
    settings_of = {"uniform": (1, 5), "hot": (2, 5), "wide": (2, 7), "small_large": (1, 5), "sparse_both": (2, 5)}
    for name, (temperature, prune_range) in settings_of.items():
        cache = plan.cache((name, 1))
        for job in (1, 2, 3):
            cache_teacher.main.__wrapped__([*plan.cache_command(cache)[2:], "--job", str(job), "--nj", "3"])
            (folders, cuts, bpe_dir, folder, settings), options = calls[-1]
            assert (folder, folders) == (cache.folder, [plan.system_dir(teacher) for teacher in cache.teachers])
            assert (settings.temperature, settings.prune_range) == (temperature, prune_range)
            assert (options["job"], options["num_jobs"], cuts) == (job, 3, EXP / "cuts" / "train.jsonl.gz")


def test_several_teachers_run_from_a_cache_alone(tmp_path, root):
    online = "  x: {base: small, teacher: [teacher, large], kd: {ranges: student}}\n"
    with pytest.raises(UserError, match="system x: several teachers, and kd.ranges student.*kd.ranges teacher"):
        made(tmp_path, root, SYSTEMS + online)


@pytest.mark.parametrize(
    "system, words",
    [
        ("{role: sparse_student}", ["system x", "sparsity"]),
        ("{role: small_student, sparsity: 0.5}", ["system x", "sparsity"]),
        ("{role: sparse_student, sparsity: 1.5}", ["system x", "1.5"]),
        ("{role: sparse_student, sparsity: {target: 0.9, score: taylor}}", ["sparsity.score", "structure of units"]),
        ("{role: teacher, kd: {}}", ["system x", "kd"]),
        ("{role: small_student, kd: {scael: 1}}", ["system x", "'kd.scael'", "did you mean 'scale'"]),
        ("{role: small_student, kd: {label_scale: 0, missing: skip}}", ["kd.label_scale", "kd.missing error"]),
        ("{role: small_student, kd: {label_scale: 0, scale: 0}}", ["system x: kd", "one of them above 0"]),
        ("{role: small_student, modl: {size: tiny}}", ["system x", "modl", "did you mean 'model'"]),
        ("{role: small_student, training: {optimizer: adamv}}", ["system x: training.optimizer", "adamv"]),
        ("{role: small_student, training: {schedule: noan}}", ["system x: training.schedule", "noan"]),
        ("{role: small_student, model: {encoder: confromer}}", ["system x: model.encoder", "did you mean 'conformer'"]),
    ],
)  # fmt: skip
def test_a_system_that_cannot_be_is_refused_before_anything_runs(tmp_path, root, system, words):
    said = told(made, tmp_path, root, f"systems: {{teacher: {{role: teacher}}, x: {system}}}")
    assert all(word in said for word in words), said


def test_a_student_without_a_teacher_in_the_file_is_refused(tmp_path, root):
    with pytest.raises(UserError, match="system x: needs a teacher.*teacher: {role: teacher}"):
        made(tmp_path, root, "systems: {x: {role: sparse_student, sparsity: 0.5}}")


def test_every_experiment_on_disk_is_valid_with_its_presets(root):
    found = sorted(root.glob("egs/*/conf/experiments/*.yaml"))
    assert {path.parts[-4] for path in found} >= {"an4", "custom", "librispeech", "synth"}
    own = {"smoke": ["smoke"], "paper_5h": ["5h", "5h-cpu"], "paper_960h": ["960h"]}
    for path in found:
        presets = own.get(path.stem) or [file.stem for file in path.parents[1].glob("*.yaml") if file.stem != "base"]
        for preset in presets:
            plan = Plan(path, Places(path.parents[1] / f"{preset}.yaml", EXP, "dev", {}))
            for job in plan.jobs():
                assert plan.train_command(job) and (plan.cache(job) is None or plan.cache_command(plan.cache(job)))


def test_a_system_with_rounded_weights_is_exported_as_it_learned(tmp_path, root):
    text = "systems:\n  teacher: {role: teacher}\n"
    for name, training in (("four", {"weight_bits": 4}), ("eight", {"weight_bits": 8}), ("plain", {})):
        text += f"  {name}: {{role: sparse_student, sparsity: 0.5, training: {training}}}\n"
    plan = made(tmp_path, root, text)
    for name, form in (("four", "int4+sparse"), ("eight", "int8+sparse"), ("plain", "float32"), ("teacher", "float32")):
        command = plan.export_command((name, 1))
        assert command[:2] == ["-m", "rnnt_kd.bin.export"] and export.arguments(command[2:]).form == form

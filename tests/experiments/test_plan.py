"""From definitions to folders and commands: what bin.train reads from them is what the plan says it is."""

from pathlib import Path

import pytest

from rnnt_kd.bin import cache_teacher, train
from rnnt_kd.config import KdConfig
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.definition import read_experiment
from rnnt_kd.experiments.plan import Places, Plan

EXP = Path("/exp")
SYSTEMS = """
seeds: [1, 2]
systems:
  sparse90: {role: sparse_student, sparsity: 0.9, structure: 4x4}
  uniform: {base: sparse90, kd: {weighting: uniform, scale: 0.5}}
  hot: {base: uniform, kd: {temperature: 2.0, ramp_steps: 5}}
  wide: {base: hot, set: {sparse_student.training.prune_range: 7}}
  online: {base: uniform, kd: {variant: full, ranges: student}}
  small: {role: small_student}
  small_kd: {base: small, kd: {}}
  small_large: {base: small, teacher: large, kd: {}}
  large: {role: teacher, seeds: [5], set: {teacher.model.encoder_options.dim: 64}}
"""


@pytest.fixture
def plan(tmp_path, root):
    return made(tmp_path, root, SYSTEMS)


def made(tmp_path, root, text):
    (tmp_path / "trial.yaml").write_text(text)
    places = Places(
        root / "egs/synth/conf/smoke.yaml", EXP, "dev", {"test": Path("/data/test")}, machine=("--device", "cpu")
    )
    return Plan(read_experiment(tmp_path / "trial.yaml"), places)


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


def test_training_commands_say_what_the_plan_says(plan, trained):
    for job in plan.jobs():
        config, folder, options = trained(plan.train_command(job))
        assert config == plan.config(job)
        assert folder == plan.system_dir(job) == EXP / "experiments" / "trial" / job[0] / f"seed{job[1]}"
        assert options["teacher_dir"] == plan.teacher_dir(job)
        cache = plan.cache(job)
        assert options["kd_cache"] == (cache.folder if cache else None)


def test_every_seed_of_every_system_teachers_of_the_file_first(plan):
    jobs = list(plan.jobs())
    assert jobs[:3] == [("large", 5), ("sparse90", 1), ("sparse90", 2)]
    assert len(jobs) == len(set(jobs)) == 1 + 8 * 2


def test_options_not_in_the_file_are_the_presets(plan):
    assert plan.config(("small_kd", 1)).kd == KdConfig()
    hot = plan.config(("hot", 2))
    assert (hot.seed, hot.target_sparsity, hot.sparsity.structure) == (2, 0.9, "4x4")
    assert hot.kd == KdConfig(weighting="uniform", scale=0.5, temperature=2.0, ramp_steps=5)
    assert plan.config(("wide", 1)).training.prune_range == 7 and hot.training.prune_range == 5
    assert plan.config(("large", 5)).model.encoder_options["dim"] == 64


def test_caches_differ_where_their_contents_do(plan):
    folders = {
        name: plan.cache((name, 1)) and plan.cache((name, 1)).folder
        for name in plan.systems
        if name not in ("large", "teacher")
    }
    own = EXP / "experiments" / "trial" / "kd_caches"
    assert folders == {
        "sparse90": None, "uniform": EXP / "kd_cache", "hot": own / "temperature2", "wide": own / "range7_temperature2",
        "online": None, "small": None, "small_kd": EXP / "kd_cache", "small_large": own / "large",
    }  # fmt: skip
    assert (
        plan.teacher_dir(("small_large", 1)) == plan.system_dir(("large", 5)) and plan.teacher_dir(("small", 1)) is None
    )
    assert plan.teacher_of(("small_large", 2)) == ("large", 5) and plan.teacher_of(("uniform", 1)) is None


def test_cache_commands_make_the_lattice_that_the_student_needs(plan, monkeypatch):
    calls = []
    monkeypatch.setattr("rnnt_kd.teachers.write_cache.cache_teacher", lambda *args, **options: calls.append(args))
    monkeypatch.setattr("rnnt_kd.text.tokenizer.Tokenizer.load", lambda folder: folder)
    for name, temperature, prune_range in (
        ("uniform", 1.0, 5),
        ("hot", 2.0, 5),
        ("wide", 2.0, 7),
        ("small_large", 1.0, 5),
    ):
        cache = plan.cache((name, 1))
        cache_teacher.main.__wrapped__(plan.cache_command(cache)[2:])
        teacher_dir, cuts, bpe_dir, folder, lattice = calls[-1]
        assert (folder, teacher_dir) == (cache.folder, cache.teacher_dir)
        assert (lattice.temperature, lattice.prune_range, cuts) == (
            temperature,
            prune_range,
            EXP / "cuts" / "train.jsonl.gz",
        )


@pytest.mark.parametrize(
    "system, words",
    [
        ("{role: sparse_student}", ["system x", "--sparsity", "0.0 for a sparse student"]),
        ("{role: small_student, sparsity: 0.5}", ["system x", "which is dense"]),
        ("{role: sparse_student, sparsity: 1.5}", ["system x", "1.5"]),
        ("{role: sparse_student, sparsity: 0.9, structure: 4y4}", ["system x", "4y4"]),
        ("{role: small_student, structure: 4x4}", ["system x", "--structure"]),
        ("{role: teacher, kd: {}}", ["system x", "--kd"]),
        ("{role: small_student, kd: {weighting: unform}}", ["system x", "kd.weighting", "unform", "uniform"]),
        ("{role: small_student, kd: {temperature: 0}}", ["system x", "kd.temperature"]),
        ("{role: small_student, kd: {variant: full}}", ["system x", "kd.variant", "ranges student"]),
        ("{role: teacher, set: {teacher.model.encoder: conformer, teacher.modl.size: tiny}}", ["system x", "teacher.modl", "did you mean 'model'"]),
        ("{role: small_student, set: {small_student.training.epochs: 0}}", ["system x", "training.epochs"]),
        ("{role: small_student, set: {small_student.training.epochs: few}}", ["system x", "epochs", "few"]),
    ],
)  # fmt: skip
def test_a_system_that_cannot_be_is_refused_before_anything_runs(tmp_path, root, system, words):
    with pytest.raises(UserError) as caught:
        made(tmp_path, root, f"systems: {{x: {system}}}")
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_every_experiment_on_disk_is_valid_with_its_presets(root):
    found = sorted(root.glob("egs/*/conf/experiments/*.yaml"))
    assert {path.relative_to(root / "egs").parts[0] for path in found} >= {"an4", "librispeech", "synth"}
    presets = {"paper": ["cpu", "gpu"], "smoke": ["smoke"], "paper_5h": ["5h", "5h-cpu"], "paper_960h": ["960h"]}
    for path in found:
        for preset in presets[path.stem]:
            plan = Plan(read_experiment(path), Places(path.parents[1] / f"{preset}.yaml", EXP, "dev", {}))
            for job in plan.jobs():
                assert plan.train_command(job) and (plan.cache(job) is None or plan.cache_command(plan.cache(job)))

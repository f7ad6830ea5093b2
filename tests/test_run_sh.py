"""run.sh as users type it: options, errors, and what --dry-run prints.  Nothing is installed or run."""

import re
import shutil
import subprocess

import pytest


def run_sh(root, *arguments):
    return subprocess.run(
        ["bash", str(root / "run.sh"), *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--fancy", "1"], ["--fancy", "--corpus", "--stop-stage", "--dry-run"]),
        (["corpus"], ["unknown option 'corpus'"]),
        (["--stage", "10"], ["--stage: '10'", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"]),
        (["--stop-stage", "11"], ["--stop-stage: '11'", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"]),
        (["--stage", "x"], ["--stage: 'x'"]),
        (["--stage", "5", "--stop-stage", "3"], ["--stage 5 comes after --stop-stage 3"]),
        (["--corpus", "timit"], ["'timit'", "an4", "librispeech", "mini_librispeech", "synth"]),
        (["--preset", "huge"], ["--preset: 'huge'", "cpu"]),
        (["--corpus", "an4"], ["--corpus-dir"]),
        (["--device", "tpu"], ["auto, cpu, cuda"]),
        (["--env", "conda"], ["auto, k2, torch2, none"]),
        (["--lattice-backend", "jax"], ["auto, k2, torch"]),
        (["--kd-variant", "none"], ["collapsed, full"]),
        (["--kd-weighting", "x"], ["occupancy, one-best, student-occupancy, uniform"]),
        (["--kd-scale", "-1"], ["--kd-scale: '-1'"]),
        (["--kd-ranges", "none"], ["--kd-ranges: 'none'", "teacher, student, both"]),
        (["--sparsities", "0.5 1.5"], ["--sparsities: '1.5'"]),
        (["--sparsities", ""], ["--sparsities"]),
        (["--sparsities", "0.9 0.60 .6"], ["--sparsities: '0.9 0.60 .6'", "different numbers"]),
        (
            ["--structures", "unstructured blocks"],
            ["--structures: 'blocks'", "unstructured, 1x16, 16x1, 4x4, 16x16, 2:4"],
        ),
        (["--structures", "0x4"], ["--structures: '0x4'"]),
        (["--structures", "4:2"], ["--structures: '4:2'", "N < M"]),
        (["--structures", "16x1 16x1"], ["--structures: '16x1 16x1'", "different names"]),
        (["--structures", ""], ["--structures"]),
        (["--kd-shift", "4"], ["--kd-shift 4 without --streaming"]),
        (["--streaming", "--kd-shift", "0"], ["--kd-shift: '0'", "at least 1"]),
        (["--streaming", "--kd-shift", "4 04"], ["--kd-shift: '4 04'", "different numbers"]),
        (["--experiment", "papre"], ["--experiment: 'papre'", "smoke"]),
        (
            ["--corpus", "mini_librispeech", "--corpus-dir", "x", "--experiment", "paper"],
            ["egs/mini_librispeech/conf/experiments holds none"],
        ),
        (["--jobs", "2"], ["--jobs and --print-jobs are for an experiment"]),
        (["--print-jobs"], ["--jobs and --print-jobs are for an experiment"]),
        (["--experiment", "smoke", "--jobs", "0"], ["--jobs: '0'"]),
        (["--seed", "1.5"], ["--seed: '1.5'"]),
        (["--nj", "0"], ["--nj: '0'"]),
        (["--nj"], ["--nj needs a value"]),
        (["--train-dir", "data/train"], ["--dev-dir", "--test-dirs"]),
        (["--corpus", "custom"], ["--train-dir"]),
        (["--corpus", "an4", "--train-dir", "a", "--dev-dir", "b", "--test-dirs", "c"], ["exclude each other"]),
        (
            ["--train-dir", "a", "--dev-dir", "b", "--test-dirs", "x/test y/test"],
            ["two directories have the name 'test'"],
        ),
        (["--train-dir", "a", "--dev-dir", "b", "--test-dirs", " "], ["--test-dirs", "all three"]),
        (
            ["--train-dir", "my data", "--dev-dir", "b", "--test-dirs", "c"],
            ["--train-dir: 'my data'", "without blanks"],
        ),
        (["--exp-dir", "exp [1]"], ["--exp-dir: 'exp [1]'", "without blanks"]),
    ],
)
def test_wrong_options_are_one_line_that_lists_the_right_ones(root, arguments, words):
    result = run_sh(root, *arguments)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    for word in words:
        assert word in result.stderr


def test_help_names_every_option(root):
    result = run_sh(root, "--help")
    assert result.returncode == 0 and result.stderr == ""
    declared = re.findall(r"^([a-z_]+)=.*# ", (root / "run.sh").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(declared) > 15
    for name in declared:
        assert f"--{name.replace('_', '-')} " in result.stdout


def commands(result):
    assert result.returncode == 0, result.stderr
    return [line for line in result.stdout.splitlines() if line.startswith("+")]


def test_dry_run_prints_the_stages_asked_for_and_makes_nothing(root, tmp_path):
    exp = tmp_path / "exp"
    result = run_sh(root, "--dry-run", "--stage", "3", "--stop-stage", "5", "--exp-dir", str(exp), "--seed", "7")
    lines = [line for line in commands(result) if "cache_teacher" not in line]
    assert not exp.exists()
    names = [re.search(r"--name (\S+)", line).group(1) for line in lines]
    assert names == ["teacher", "sparse60", "sparse60_kd", "sparse90", "sparse90_kd", "small", "small_kd"]
    assert all("--seed 7" in line for line in lines)
    for name, line in zip(names, lines):
        assert ("--kd" in line.split()) == name.endswith("_kd")
        assert ("--sparsity" in line.split()) == name.startswith("sparse")
    assert "--sparsity 0.9 " in lines[4]


def test_options_reach_the_students(root, tmp_path):
    result = run_sh(
        root, "--dry-run", "--stage", "5", "--stop-stage", "5", "--exp-dir", str(tmp_path), "--sparsities", "0.975",
        "--kd-variant", "full", "--kd-weighting", "one-best", "--kd-scale", "0.25", "--kd-ranges", "student",
    )  # fmt: skip
    lines = commands(result)
    assert len(lines) == 4 and "--name sparse97.5_kd_online" in lines[1]
    for line in (lines[1], lines[3]):
        assert "--kd-variant full --kd-weighting one-best --kd-scale 0.25" in line
    for line in (lines[0], lines[2]):
        assert "--kd" not in line


def test_a_variant_that_no_cache_can_serve_is_refused_at_once(root, tmp_path):
    arguments = ["--dry-run", "--exp-dir", str(tmp_path), "--kd-variant", "full"]
    for more in ([], ["--kd-ranges", "both"]):
        result = run_sh(root, *arguments, *more)
        assert result.returncode == 1 and "cache_teacher" not in result.stdout
        assert result.stderr.count("\n") == 1 and "--kd-ranges student" in result.stderr
    assert run_sh(root, *arguments, "--kd-ranges", "student").returncode == 0


def test_an_environment_behind_a_link_is_left_alone(root, tmp_path):
    kept = tmp_path / "elsewhere" / "torch2" / "file"
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    for name in ("local", "requirements"):
        shutil.copytree(root / name, tmp_path / "checkout" / name)
    (tmp_path / "checkout" / ".venv").symlink_to(tmp_path / "elsewhere")
    result = subprocess.run(
        ["bash", str(tmp_path / "checkout" / "local" / "setup_env.sh"), "--env", "torch2"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "is a link" in result.stderr
    assert kept.read_text() == "kept"


def test_jobs_fill_the_cache_and_students_with_distillation_read_it(root, tmp_path):
    arguments = ["--dry-run", "--stage", "4", "--stop-stage", "5", "--exp-dir", str(tmp_path), "--nj", "3"]
    lines = commands(run_sh(root, *arguments))
    jobs = [line for line in lines if "cache_teacher" in line]
    assert [re.search(r"--job (\d) --nj (\d)", line).groups() for line in jobs] == [("1", "3"), ("2", "3"), ("3", "3")]
    assert all(f"--cache-dir {tmp_path}/kd_cache " in line for line in jobs)
    for line in lines[3:]:
        assert ("--kd-ranges teacher --kd-cache" in line) == ("_kd --exp-dir" in line)


def test_an_online_teacher_has_no_cache(root, tmp_path):
    arguments = ["--dry-run", "--stage", "4", "--stop-stage", "5", "--exp-dir", str(tmp_path), "--kd-ranges", "student"]
    lines = commands(run_sh(root, *arguments))
    assert not any("cache" in line for line in lines)
    for line in lines:
        assert ("--kd-ranges student" in line) == ("_kd_online --exp-dir" in line)
        if "_kd_online --exp-dir" in line:
            assert f"--teacher-dir {tmp_path}/teacher" in line


def test_both_teachers_can_be_compared_in_one_table(root, tmp_path):
    arguments = ["--dry-run", "--stage", "5", "--exp-dir", str(tmp_path), "--kd-ranges", "both", "--sparsities", "0.9"]
    lines = commands(run_sh(root, *arguments))
    names = ["sparse90", "sparse90_kd", "sparse90_kd_online", "small", "small_kd", "small_kd_online"]
    assert [re.search(r"--name (\S+)", line).group(1) for line in lines[:6]] == names
    assert all("--sparsity 0.9" in line for line in lines[:3])
    compared = [line for line in lines if "--baseline-decode-dir" in line]
    assert [re.search(r"students/(\w+)/decode.*students/(\w+)/decode", line).groups() for line in compared] == [
        (twin, name) for twin in ("sparse90", "small") for name in (f"{twin}_kd", f"{twin}_kd_online")
    ]
    table = next(line for line in lines if "summarize" in line)
    assert f"teacher {' '.join(names)}" in table.replace("\\ ", " ")


def test_every_sparsity_is_trained_in_every_structure_and_n_of_m_in_its_own(root, tmp_path):
    arguments = ["--dry-run", "--stage", "5", "--exp-dir", str(tmp_path), "--structures", "unstructured 16x1 2:4 1:3"]
    lines = commands(run_sh(root, *arguments, "--sparsities", "0.6 0.9"))
    asked = [re.search(r"--name (\w+) .*--sparsity ([\d.]+) --structure (\S+)", line) for line in lines]
    assert [found.groups() for found in asked if found and not found.group(1).endswith("_kd")] == [
        ("sparse60", "0.6", "unstructured"), ("sparse90", "0.9", "unstructured"),
        ("sparse60_16x1", "0.6", "16x1"), ("sparse90_16x1", "0.9", "16x1"),
        ("sparse50_2of4", "0.5", "2:4"), ("sparse67_1of3", "0.666666667", "1:3"),
    ]  # fmt: skip
    compared = [line for line in lines if "--baseline-decode-dir" in line]
    pairs = [re.search(r"students/(\w+)/decode.*students/(\w+)/decode", line).groups() for line in compared]
    assert ("sparse90_16x1", "sparse90_16x1_kd") in pairs and all(f"{twin}_kd" == name for twin, name in pairs)


def test_streaming_students_learn_from_lattices_moved_later_and_their_delay_is_measured(root, tmp_path):
    arguments = ["--dry-run", "--stage", "5", "--exp-dir", str(tmp_path), "--streaming", "--kd-shift", "4 8"]
    lines = commands(run_sh(root, *arguments))
    training = [line for line in lines if "--role streaming_student" in line]
    names = ["stream", "stream_kd", "stream_kd_shift4", "stream_kd_shift8"]
    assert [re.search(r"--name (\S+)", line).group(1) for line in training] == names
    for name, line in zip(names, training):
        assert f"--teacher-dir {tmp_path}/teacher" in line and "--sparsity" not in line
        assert ("--kd-ranges teacher --kd-cache" in line) == (name != "stream")
        assert re.findall(r"--kd-shift (\d+)", line) == re.findall(r"shift(\d+)", name)
    delays = [line for line in lines if "rnnt_kd.bin.delay" in line]
    assert len(delays) == 4 and all(f"--baseline-decode-dir {tmp_path}/teacher/decode_" in line for line in delays)
    exported = [line for line in lines if "rnnt_kd.bin.export" in line]
    for line in exported:
        assert ("--streaming" in line.split()) == (f"{tmp_path}/students/stream" in line)
    compared = [line for line in lines if "--baseline-decode-dir" in line and "students/stream/decode" in line]
    assert sum("score.sh" in line for line in compared) == 3  # each against stream


def test_every_system_is_exported_and_its_files_are_weighed(root, tmp_path):
    arguments = ["--dry-run", "--stage", "8", "--stop-stage", "8", "--exp-dir", str(tmp_path), "--allow-pipes"]
    lines = commands(run_sh(root, *arguments))
    names = ["teacher", "sparse60", "sparse60_kd", "sparse90", "sparse90_kd", "small", "small_kd"]
    outs = [re.search(r"--out (\S+) --check-data-dir \S+/test --allow-pipes", line) for line in lines[:7]]
    assert [found.group(1) for found in outs] == [f"{tmp_path}/export/{name}" for name in names]
    assert "rnnt_kd.bin.size_table" in lines[7] and " ".join(names) in lines[7].replace("\\ ", " ")
    assert len(lines) == 8


def test_the_report_comes_last_with_lattices_of_distilled_systems(root, tmp_path):
    arguments = [
        "--dry-run",
        "--stage",
        "9",
        "--exp-dir",
        str(tmp_path),
        "--train-dir",
        "d/train",
        "--dev-dir",
        "d/dev",
    ]
    lines = commands(run_sh(root, *arguments, "--test-dirs", "d/a d/b", "--streaming", "--sparsities", "0.9"))
    lattices, report = lines[:-1], lines[-1].replace("\\ ", " ")
    assert [re.search(r"--test-set (\S+)", line).group(1) for line in lattices] == ["a", "b"]
    for line in lattices:
        assert "rnnt_kd.bin.dump_lattices" in line and "--systems sparse90_kd small_kd --" in line.replace("\\ ", " ")
    assert "rnnt_kd.bin.report" in report and "--test-sets a b" in report
    assert "--systems teacher sparse90 sparse90_kd small small_kd stream stream_kd" in report


def test_own_directories_run_stages_0_to_9(root, tmp_path):
    result = run_sh(
        root,
        "--dry-run",
        "--train-dir",
        "d/train",
        "--dev-dir",
        "d/dev",
        "--test-dirs",
        "d/a d/b",
        "--exp-dir",
        str(tmp_path),
    )
    lines = commands(result)
    assert [line for line in lines if "validate_data_dir" in line][3].endswith("d/b")
    assert sum("rnnt_kd.bin.decode" in line for line in lines) == 14
    assert sum("score.sh" in line for line in lines) == 14
    assert sum("summarize" in line for line in lines) == 1
    exports = [line for line in lines if "rnnt_kd.bin.export" in line]
    assert len(exports) == 7 and all("--check-data-dir d/a " in line for line in exports)


def test_a_trailing_slash_does_not_change_a_directory(root):
    arguments = [
        "--dry-run",
        "--stop-stage",
        "1",
        "--train-dir",
        "d/train/",
        "--dev-dir",
        "d/dev",
        "--test-dirs",
        "d/dev/ d/a/",
    ]
    lines = commands(run_sh(root, *arguments))
    assert [line.split()[-1] for line in lines if "validate_data_dir" in line] == ["d/train", "d/dev", "d/dev", "d/a"]


def test_an_experiment_shares_stages_0_to_4_and_takes_the_place_of_the_students(root, tmp_path):
    arguments = ["--dry-run", "--exp-dir", str(tmp_path), "--experiment", "smoke", "--preset", "smoke"]
    lines = commands(run_sh(root, *arguments, "--jobs", "3"))
    modules = [
        re.search(r"(rnnt_kd\.bin\.\w+|local/\w+\.sh)", line).group(1).rpartition(".")[0 if ".sh" in line else 2]
        for line in lines
    ]
    assert [name for name in dict.fromkeys(modules)][-4:] == ["train", "cache_teacher", "experiment", "report"]
    assert modules.count("train") == modules.count("experiment") == 1
    whole = lines[-2].replace("\\ ", " ")
    for word in (
        "egs/synth/conf/experiments/smoke.yaml",
        "--config",
        f"--exp-dir {tmp_path}",
        "--dev-set dev",
        "--jobs 3",
        "--steps train decode score",
    ):
        assert word in whole
    assert f"--test-dirs {root}/data/synth/test --corpus" in whole
    assert "--steps decode score" in commands(run_sh(root, *arguments, "--stage", "6"))[0].replace("\\ ", " ")
    assert commands(run_sh(root, *arguments, "--stage", "5", "--stop-stage", "5"))[0].endswith("--steps train")
    assert "--jobs 5" in commands(run_sh(root, *arguments, "--stage", "5", "--nj", "5"))[0]
    assert not any("rnnt_kd.bin.experiment" in line for line in commands(run_sh(root, *arguments, "--stop-stage", "4")))


def test_jobs_of_an_experiment_are_printed_and_no_stage_is_run(root, tmp_path):
    lines = commands(run_sh(root, "--dry-run", "--exp-dir", str(tmp_path), "--experiment", "smoke", "--print-jobs"))
    assert len(lines) == 1 and "rnnt_kd.bin.experiment" in lines[0] and lines[0].endswith("--print-jobs")


def test_help_names_the_experiments_of_every_corpus(root):
    text = run_sh(root, "--help").stdout
    assert re.search(r"^Experiments: .*paper \(an4\).*paper_5h.*\(librispeech\).*smoke \(synth\)", text, re.MULTILINE)

"""run.sh as users type it: options, errors, and what --dry-run prints.  Nothing is installed or run."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

OWN = ["--train-dir", "d/train", "--dev-dir", "d/dev", "--test-dirs", "d/a d/b"]


def run_sh(root, *arguments):
    return subprocess.run(
        ["bash", str(root / "run.sh"), *map(str, arguments)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600,
    )  # fmt: skip


def commands(root, *arguments):
    result = run_sh(root, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line[2:]) for line in result.stdout.splitlines() if line.startswith("+ ")]


def value(words, option):
    return words[words.index(option) + 1]


def values(words, option):
    return list(itertools.takewhile(lambda word: not word.startswith("--"), words[words.index(option) + 1 :]))


@pytest.mark.parametrize("arguments, words", [
    (["--fancy", "1"], ["--fancy", "--corpus", "--stop-stage", "--dry-run"]),
    (["--fancy=1"], ["unknown option '--fancy=1'", "--corpus"]),
    (["corpus"], ["unknown option 'corpus'"]),
    (["--stage", "10"], ["--stage: '10'", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"]),
    (["--stage="], ["--stage: ''"]),
    (["--stop-stage", "x"], ["--stop-stage: 'x'"]),
    (["--stage", "5", "--stop-stage", "3"], ["--stage 5 comes after --stop-stage 3"]),
    (["--corpus", "timit"], ["'timit'", "an4", "librispeech", "mini_librispeech", "synth"]),
    (["--preset", "huge"], ["--preset: 'huge'", "cpu"]),
    (["--preset", "base"], ["--preset: 'base'"]),
    (["--corpus", "an4"], ["--corpus-dir"]),
    (["--device", "tpu"], ["auto, cpu, cuda"]),
    (["--env", "conda"], ["auto, k2, torch2, none"]),
    (["--experiment", "papre"], ["--experiment: 'papre'", "default, smoke"]),
    (["--seed", "1.5"], ["--seed: '1.5'"]),
    (["--nj", "0"], ["--nj: '0'"]),
    (["--nproc", "0"], ["--nproc: '0'"]),
    (["--num-nodes", "two"], ["--num-nodes: 'two'"]),
    (["--ngpu", "2", "--nproc", "2"], ["--nproc and --ngpu exclude each other"]),
    (["--ngpu", "2", "--device", "cpu"], ["--ngpu and --device cpu exclude each other"]),
    (["--nj"], ["--nj needs a value"]),
    (["--allow-pipes", "maybe"], ["--allow-pipes: 'maybe'", "true, false"]),
    (["--config", "nowhere.conf"], ["--config: 'nowhere.conf'"]),
    (["--config", "/"], ["--config: '/'", "a file"]),
    (["--seed", "1\r\n2"], ["--seed: '1  2'"]),
    (["--train-dir", "data/train"], ["--dev-dir", "--test-dirs"]),
    (["--train-cuts", "a"], ["--dev-dir", "--test-dirs"]),
    (["--train-cuts", "a", *OWN], ["--train-dir and --train-cuts exclude each other"]),
    (["--corpus", "custom"], ["--train-dir"]),
    (["--corpus", "an4", *OWN], ["exclude each other"]),
    (["--train-dir", "a", "--dev-dir", "b", "--test-dirs", " "], ["--test-dirs", "all three"]),
])  # fmt: skip
def test_wrong_options_are_one_line_that_lists_the_right_ones(root, arguments, words):
    result = run_sh(root, *arguments)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    for word in words:
        assert word in result.stderr


def test_help_fits_two_screens_and_names_what_is_on_disk(root):
    result = run_sh(root, "--help")
    assert result.returncode == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 140
    declared = re.findall(r"^  (--[a-z-]+) ", result.stdout, re.MULTILINE)
    assert len(declared) == len(set(declared)) > 15
    for path in root.glob("egs/*/conf/experiments/*.yaml"):
        assert re.search(rf"^  {path.parts[-4]}: .*\b{path.stem}\b", result.stdout, re.MULTILINE)
    assert all(f" {path.parent.name}" in result.stdout for path in root.glob("egs/*/corpus.sh"))


def test_options_as_kaldi_has_them(root, tmp_path):
    file = tmp_path / "my.conf"
    file.write_text(
        '\ufeffnj=3\r\n# mine\nexp_dir: "e x"\n--device cpu\nallow_pipes=true\nset=small.training.epochs=2\n'
    )
    ways = [
        [f"--config={file}", "--seed=7"],
        ["--seed", "7", "--config", file, "--allow-pipes"],
        ["--nj=3", "--exp-dir=e x", "--device", "cpu", "--allow-pipes", "true", "--seed", "7", "--set", "small.training.epochs=2"],
    ]  # fmt: skip
    first, *others = [commands(root, *way, "--stage", "5", "--stop-stage", "5") for way in ways]
    assert first == others[0] == others[1]
    (words,) = first
    assert [value(words, option) for option in ("--nj", "--exp-dir", "--device")] == ["3", "e x", "cpu"]
    assert (
        "--allow-pipes" in words and "--set=small.training.epochs=2" in words and value(words, "--set") == "seeds=[7]"
    )
    assert commands(root, "--config", file, "--nj", "9", "--stage", "9") != commands(
        root, "--config", file, "--stage", "9"
    )
    assert "--allow-pipes" not in commands(root, "--config", file, "--allow-pipes", "false", "--stage", "9")[0]
    (words,) = commands(root, "--data-root", "a b", "--data-root=c", "--allow-storage", "kaldiio", "--stage", "9")
    assert {"--data-root=a b", "--data-root=c", "--allow-storage=kaldiio"} <= set(words)


def test_quotes_in_an_option_file_are_around_a_whole_value(root, tmp_path):
    file = tmp_path / "my.conf"
    file.write_text("exp_dir=\"a#b c\" # here\nset=small.name='x' # there\ndevice: 'cpu'\n")
    (words,) = commands(root, "--config", file, "--stage", "9")
    assert (
        value(words, "--exp-dir") == "a#b c" and "--set=small.name='x'" in words and value(words, "--device") == "cpu"
    )
    for line in ('exp_dir="a#b', "exp_dir='a' b"):
        file.write_text(line)
        result = run_sh(root, "--config", file)
        assert (
            result.returncode == 1 and f"my.conf: '{line}'; expected the quotes around the whole value" in result.stderr
        )


def test_nothing_in_an_option_file_is_run(root, tmp_path):
    file = tmp_path / "evil.conf"
    file.write_text(f"exp_dir=$(touch {tmp_path}/a)`touch {tmp_path}/b`\nset=x[$(touch {tmp_path}/c)].y=1\n")
    commands(root, "--config", file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.conf"]


def test_it_runs_from_any_folder_through_a_link_and_with_cdpath(root, tmp_path):
    (tmp_path / "link.sh").symlink_to(root / "run.sh")
    expected = run_sh(root, "--help").stdout
    for folder, script in ((root.parent, f"{root.name}/run.sh"), (tmp_path, "link.sh"), (tmp_path, "./link.sh")):
        result = subprocess.run(
            ["bash", script, "--help"], cwd=folder, env={**os.environ, "CDPATH": f"{root.parent}:/"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")


def test_an_option_file_names_no_other(root, tmp_path):
    (tmp_path / "a.conf").write_text("nj=2\nconfig=b.conf\n")
    result = run_sh(root, "--config", tmp_path / "a.conf")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "a.conf: 'config=b.conf'; expected no --config in such a file" in result.stderr


def test_a_stage_that_fails_after_the_teachers_ends_nothing_but_the_status(root, tmp_path):
    """An export that fails its check keeps nobody from the report."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *"--steps export"*) exit 1;; *"--steps report"*) echo "page made";; esac\n'
    )
    python.chmod(0o755)
    result = subprocess.run(
        ["bash", str(root / "run.sh"), "--env", "none", "--exp-dir", str(tmp_path / "exp"), "--stage", "8"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "page made" in result.stdout and result.returncode == 1
    assert "stage 8: not everything was made" in result.stderr


def test_what_it_starts_ends_with_it_whatever_ended_it(root, tmp_path):
    """Every command of ours knows whose child it is."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *rnnt_kd.bin*) echo "$RNNT_KD_SHELL is $PPID";; esac\n')
    python.chmod(0o755)
    shown = subprocess.run(
        ["bash", str(root / "run.sh"), "--env", "none", "--exp-dir", str(tmp_path / "exp"), "--stop-stage", "0"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, timeout=600,
    ).stdout  # fmt: skip
    pairs = [line.split(" is ") for line in shown.splitlines() if " is " in line]
    assert len(pairs) == 2 and all(shell == parent for shell, parent in pairs)
    code = "import os, time; from rnnt_kd.bin.entry import command; "
    code += "command(lambda argv: (print(os.getpid(), flush=True), time.sleep(600)))([])"
    shell = subprocess.Popen(
        ["bash", "-c", 'RNNT_KD_SHELL=$$ "$@"; true', "bash", sys.executable, "-c", code],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root / "plugin")},
    )  # fmt: skip
    child = int(shell.stdout.readline())
    shell.kill()
    shell.wait()
    assert shell.stdout.read() == ""  # to its end, which is the child's
    with pytest.raises(ProcessLookupError):
        for _ in range(600):
            os.kill(child, 0)
            time.sleep(0.1)


def test_the_data_commands_that_are_printed_run_anywhere(root, tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = ["--env", "none", "--exp-dir", tmp_path / "exp", "--data-dir", tmp_path / "data", "--stop-stage", "0"]
    printed = subprocess.run(
        ["bash", root / "run.sh", *words, "--print-jobs", "--stage", "0"],
        env=environment, capture_output=True, text=True, timeout=600, check=True,
    ).stdout.splitlines()  # fmt: skip
    (line,) = [line for line in printed if "rnnt_kd.bin.prepare_corpus" in line]
    (tmp_path / "all.conf").write_text("stage 0\n")
    for given in (["--stage=0"], ["--config", tmp_path / "all.conf"]):  # given, though it is what it is anyway
        every = subprocess.run(
            ["bash", root / "run.sh", *words[:-2], "--print-jobs", *given],
            env=environment, capture_output=True, text=True, timeout=600, check=True,
        ).stdout.splitlines()  # fmt: skip
        assert {"# data", "# features", "# bpe", "# train", "# report"} <= {*every}
    helped = subprocess.run(
        ["bash", "-c", f"{line} --help"], cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert helped.returncode == 0 and "--corpus" in helped.stdout, helped.stderr


def test_stages_keep_their_numbers(root, tmp_path):
    steps = ["features", "bpe", "teacher", "pseudo_label cache", "train", "decode", "score", "export", "report"]
    lines = commands(root, "--exp-dir", tmp_path / "exp")
    assert value(lines[0], "-m") == "rnnt_kd.bin.prepare_corpus" and not (tmp_path / "exp").exists()
    assert [value(words, "--steps") for words in lines[1:]] == steps
    for number, step in enumerate(steps, 1):
        (words,) = commands(root, "--stage", number, "--stop-stage", number)
        assert value(words, "--steps") == step
        assert value(words, "--experiment").endswith("egs/synth/conf/experiments/default.yaml")
        assert value(words, "--test-dirs") == f"{root}/data/synth/test"


def test_own_directories_and_experiments_reach_the_commands(root, tmp_path):
    lines = commands(root, *OWN, "--experiment", "default", "--preset", "gpu")
    assert [words[-1] for words in lines if "rnnt_kd.bin.validate_data_dir" in words] == [
        "d/train",
        "d/dev",
        "d/a",
        "d/b",
    ]
    assert values(lines[-1], "--test-dirs") == ["d/a", "d/b"] and value(lines[-1], "--dev-dir") == "d/dev"
    assert (
        value(lines[-1], "--config").endswith("egs/custom/conf/gpu.yaml") and value(lines[-1], "--corpus") == "custom"
    )
    (tmp_path / "it's a b").mkdir()
    (tmp_path / "conf").write_text("test-dirs = d/never\n")
    more = ["--test-dirs", tmp_path / "it's a b", f"--config={tmp_path / 'conf'}"]
    assert values(commands(root, *OWN, *more)[-1], "--test-dirs") == ["d/a", "d/b", str(tmp_path / "it's a b")]
    assert values(commands(root, "--data-dir", "d x")[-1], "--test-dirs") == ["d x/test"]
    assert value(commands(root, *OWN, "--bpe-model", "lang/bpe.model")[-1], "--bpe-model") == "lang/bpe.model"
    first, *_, last = commands(root, *OWN, "--unlabelled-dir", "d/calls")
    assert first[-2:] == ["d/calls", "--unlabelled"] and "rnnt_kd.bin.validate_data_dir" in first
    assert "features.unlabelled_dir='d/calls'" in values(last, "--set")
    *_, last = commands(root, *OWN, "--noise-dir", "on: it's", "--rir-dir", "2024")
    assert "features.noise_dir='on: it''s'" in last and "features.rir_dir='2024'" in last
    (words,) = commands(root, "--experiment", "smoke", "--print-jobs")
    assert words[-1] == "--print-jobs" and value(words, "--experiment").endswith("/smoke.yaml")


def test_processes_of_a_training_reach_the_commands(root):
    words = commands(root, "--ngpu", "8", "--num-nodes", "2", "--preset", "cpu")[-1]
    assert [value(words, f"--{name}") for name in ("device", "nproc", "num-nodes")] == ["cuda", "8", "2"]
    assert value(commands(root, "--nproc", "2")[-1], "--nproc") == "2"


def test_mini_librispeech_is_five_hours_of_librispeech(root):
    mini = commands(root, "--corpus", "mini_librispeech", "--data-dir", "d", "--exp-dir", "e", "--device", "cpu")
    five = commands(
        root, "--corpus", "librispeech", "--preset", "5h-cpu", "--data-dir", "d", "--exp-dir", "e", "--device", "cpu"
    )
    named = [[word.replace("mini_librispeech", "librispeech") for word in words] for words in mini]
    assert named == five


def test_an_environment_behind_a_link_is_left_alone(root, tmp_path):
    kept = tmp_path / "elsewhere" / "torch2" / "file"
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    for name in ("local", "requirements"):
        shutil.copytree(root / name, tmp_path / "checkout" / name)
    (tmp_path / "checkout" / ".venv").symlink_to(tmp_path / "elsewhere")
    setup = ["bash", str(tmp_path / "checkout" / "local" / "setup_env.sh"), "--env", "torch2"]
    result = subprocess.run(setup, capture_output=True, text=True)
    assert result.returncode == 1 and "is a link" in result.stderr
    assert kept.read_text() == "kept"

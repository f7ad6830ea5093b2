"""Machines set up by somebody else: what others export, another shell, another locale, environments half made."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HOSTILE_SHELL = """
cd() { echo moved; builtin cd "$@"; }
ls() { command ls --color=always -l "$@"; }
basename() { echo nothing; }
shopt -s expand_aliases failglob
alias readlink=false
set -o noclobber
"""
OTHERS_EXPORT = {
    "CDPATH": {"CDPATH": ".:/"},
    "options of the shell": {"SHELLOPTS": "noclobber:noglob:nounset:posix"},
    "options of bash": {"BASHOPTS": "failglob:nullglob:nocasematch:nocaseglob:dotglob"},
    "the order POSIX asks for": {"POSIXLY_CORRECT": "1"},
    "words of grep and ls": {"GREP_OPTIONS": "--color=always -n", "QUOTING_STYLE": "shell-always", "GLOBIGNORE": "*"},
    "blanks": {"IFS": "/:s"},
    "our own names": {"corpus": "an4", "stage": "7", "preset": "x", "conf_corpus": "an4", "root": "/", "failed": "1"},
    "no folder for temporary files": {"TMPDIR": "/nowhere"},
    "no GPU, and no terminal": {"CUDA_VISIBLE_DEVICES": "", "TERM": ""},
}


def dry_run(root, environment=os.environ, start=("bash", "run.sh"), words=("--dry-run",), cwd=None):
    done = subprocess.run(
        [*start, *words], cwd=cwd or root, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=300
    )
    return done.returncode, re.sub(rb"\d\d:\d\d:\d\d", b"TIME", done.stdout), done.stderr


@pytest.fixture(scope="module")
def as_here(root):
    status, printed, errors = dry_run(root)
    assert (status, errors) == (0, b"") and printed.count(b"\n+ python") == 10
    return status, printed, errors


@pytest.mark.parametrize("name", list(OTHERS_EXPORT))
def test_what_others_export_changes_no_command(root, as_here, name):
    assert dry_run(root, {**os.environ, **OTHERS_EXPORT[name]}) == as_here


def test_functions_and_aliases_of_other_shells_change_no_command(root, as_here, tmp_path):
    (tmp_path / "profile").write_text(HOSTILE_SHELL)
    assert dry_run(root, {**os.environ, "BASH_ENV": str(tmp_path / "profile")}) == as_here
    start = ["bash", "-c", f"{HOSTILE_SHELL}\nexport -f cd ls basename; exec ./run.sh --dry-run"]
    assert dry_run(root, start=start, words=()) == as_here


def test_any_shell_may_start_it(root, as_here, tmp_path):
    assert dry_run(root, start=["sh", "run.sh"]) == as_here
    assert dry_run(root, start=["bash", "--posix", "run.sh"]) == as_here
    (tmp_path / "rnnt").symlink_to(root / "run.sh")
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert dry_run(root, {**os.environ, "PATH": path}, start=["rnnt"], cwd="/") == as_here
    assert dry_run(root, start=["sh", "rnnt"], cwd=tmp_path) == as_here


@pytest.mark.parametrize("shell", ["bash", "zsh", "dash"])
def test_the_shell_of_a_user_takes_path_sh_from_anywhere_or_says_why_not(root, tmp_path, shell):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    show = '. "$1/local/path.sh" && echo "$PYTHONPATH"'
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [shell, "-c", show, shell, root], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if shell == "dash":
        assert done.stdout == "" and done.stderr.startswith("error: local/path.sh: ") and done.stderr.count("\n") == 1
    else:
        assert (done.stdout, done.stderr) == (f"{root}/plugin:{root}/packages/engine:{root}\n", "")


NEWER_THAN_BASH_3_2 = re.compile(
    r"(local|declare|typeset) -\w*[nAgu]|mapfile|readarray|coproc|globstar|wait -n|&>>|\|&|;;?&|\[\[? -[vR] "
    r"|\$\{\w+(\^|,|@[A-Za-z])|\[-\d|EPOCH|BASHPID|\{\w+\}[<>]|read -\w*[iN]|printf '?%\(|\\u[0-9a-f]{4}"
)


def test_the_shells_of_macos_are_enough(root):
    """Its bash is 3.2, of 2006."""
    for path in [root / "run.sh", *root.glob("local/*.sh"), *root.glob("egs/*/*.sh"), root / "tests" / "run.sh"]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not NEWER_THAN_BASH_3_2.search(line), f"{path}:{number}: {line}"


def test_cron_gives_nothing_and_it_runs(root, as_here):
    assert dry_run(root, {"PATH": "/usr/bin:/bin"}) == as_here
    for script in ("local/score.sh", "local/setup_env.sh", "tests/run.sh"):
        status, printed, errors = dry_run(root, {"PATH": "/usr/bin:/bin"}, ["sh", script], ["--help"])
        assert (status, errors) == (0, b"") and script.encode() in printed and b"-p" not in printed


@pytest.fixture(scope="module")
def turkish(tmp_path_factory):
    """A locale with a decimal comma, an i of its own, and an order that is not that of bytes; what selects it."""
    folder = tmp_path_factory.mktemp("locales")
    localedef = shutil.which("localedef", path=f"{os.environ['PATH']}:/usr/bin:/usr/sbin")
    made = localedef and subprocess.run(
        [localedef, "-i", "tr_TR", "-f", "UTF-8", folder / "tr_TR.UTF-8"], capture_output=True
    )
    if not made or not (folder / "tr_TR.UTF-8").is_dir():
        pytest.skip("no locale can be made here (Debian's package locales)")
    return {**os.environ, "LOCPATH": str(folder), "LC_ALL": "tr_TR.UTF-8"}


@pytest.fixture
def checkout(root, tmp_path):
    """The shell's part of one, below a folder whose name needs quoting, with Pythons that do nothing and are quick."""
    made = tmp_path / "it's a $(touch x); \\folder"
    for name in ("local", "requirements"):
        shutil.copytree(root / name, made / name)
    python = tmp_path / "bin" / "python3.10"
    python.parent.mkdir()
    python.write_text(f"""#!/bin/bash
case "$1 $2" in
  "-I -c") echo 3.10 ;;
  "-m venv")
    mkdir -p "$3/bin" "$3/lib/python3.10/site-packages"
    cp "$0" "$3/bin/python"
    echo "#!$3/bin/python" >"$3/bin/tool" ;;
  "-m pip") [ ! -e "{tmp_path}/no-network" ] || {{ echo "ERROR: no network"; exit 1; }} ;;
  "- "*) exec "{sys.executable}" "$@" ;;
esac
""")
    python.chmod(0o755)
    return made


def set_up(checkout, **environment):
    path = f"{checkout.parent / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", checkout / "local" / "setup_env.sh", "--env", "k2"], env={"PATH": path, **environment},
        capture_output=True, text=True, errors="replace", timeout=300,
    )  # fmt: skip


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_an_environment_is_finished_in_every_locale(checkout, turkish):
    assert set_up(checkout).returncode == 0
    (checkout.parent / "no-network").touch()
    for locale in ({}, {"LC_ALL": "POSIX"}, turkish):
        again = set_up(checkout, **{name: locale[name] for name in ("LC_ALL", "LOCPATH") if name in locale})
        assert (again.returncode, again.stderr) == (0, "") and "is ready" in again.stdout
    wanted = "cat requirements/k2-wheel.txt requirements/k2.txt | cksum"  # as environments that exist have it
    assert (
        subprocess.check_output(["sh", "-c", wanted], cwd=checkout)
        == (checkout / ".venv" / "k2" / ".finished").read_bytes()
    )


def test_a_working_environment_is_kept_until_its_successor_is_whole(checkout):
    assert set_up(checkout).returncode == 0
    venv = checkout / ".venv" / "k2"
    assert (venv / "bin" / "tool").read_text() == f"#!{venv}/bin/python\n" and names(checkout / ".venv") == ["k2"]
    (venv / "old").touch()
    (checkout / "requirements" / "k2.txt").write_text("another==1\n")
    (checkout.parent / "no-network").touch()
    failed = set_up(checkout)
    assert failed.returncode == 1 and "ERROR: no network\nerror: pip install" in failed.stderr
    assert (venv / "old").exists() and (venv / "bin" / "python").exists()
    (checkout.parent / "no-network").unlink()
    assert set_up(checkout).returncode == 0
    assert not (venv / "old").exists() and names(checkout / ".venv") == ["k2"]


def test_an_environment_that_is_whole_is_taken_after_a_kill(checkout):
    assert set_up(checkout).returncode == 0
    (checkout / ".venv" / "k2").rename(checkout / ".venv" / ".k2.new")  # between the two moves
    (checkout.parent / "no-network").touch()
    assert set_up(checkout).returncode == 0 and names(checkout / ".venv") == ["k2"]


@pytest.mark.parametrize("umask, mode", [(0o077, 0o700), (0o000, 0o777)])
def test_an_environment_is_made_under_any_umask_and_without_a_home(checkout, umask, mode):
    before = os.umask(umask)
    try:
        made = set_up(checkout, PYTHONHOME="/nowhere", PIP_USER="1", PIP_TARGET="/nowhere")
    finally:
        os.umask(before)
    assert (made.returncode, made.stderr) == (0, "")
    assert (checkout / ".venv" / "k2").stat().st_mode & 0o777 == mode


def test_what_others_export_for_their_python_hides_nothing_of_ours(checkout):
    assert set_up(checkout).returncode == 0
    others = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/theirs", "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "4,2"}
    show = '. "$0/local/path.sh"; command -v python; env'
    done = subprocess.run(
        ["bash", "-c", show, checkout], env={"PATH": "/usr/bin:/bin", **others}, capture_output=True, text=True
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    venv = checkout / ".venv" / "k2"
    assert lines[0] == f"{venv}/bin/python"
    assert f"PYTHONPATH={checkout}/plugin:{checkout}/packages/engine:{checkout}:/theirs" in lines
    assert {"OMP_NUM_THREADS=1", "PYTHONUTF8=1"} <= set(lines)
    assert not [line for line in lines if line.startswith(("PYTHONHOME=", "PYTHONWARNINGS="))]


def test_a_user_without_a_home_and_without_an_entry_that_names_one(root):
    if os.getuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:  # the checkout may be closed to others
        os.chmod(folder, 0o755)
        shutil.copytree(root / "local", Path(folder) / "local")
        show = f'. {folder}/local/path.sh; echo "$HOME"'
        done = subprocess.run(
            ["bash", "-c", show], user=54321, group=54321, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True,
            text=True,
        )  # fmt: skip
    assert done.stdout == "/\n", done.stderr


@pytest.mark.parametrize("visible, preset", [(None, "gpu"), ("1", "gpu"), ("", "cpu"), ("-1", "cpu")])
def test_a_gpu_that_others_hide_is_not_counted_on(root, tmp_path, visible, preset):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-0)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}),
    }
    own = ["--dry-run", "--train-dir", "a", "--dev-dir", "b", "--test-dirs", "c"]
    _, printed, _ = dry_run(root, environment, words=own)
    assert f"custom/conf/{preset}.yaml".encode() in printed


def test_the_commands_are_the_same_in_every_locale(root, as_here, turkish):
    assert dry_run(root, turkish) == as_here
    assert dry_run(root, {**os.environ, "LC_NUMERIC": "tr_TR.UTF-8", "LOCPATH": turkish["LOCPATH"]}) == as_here

"""The package as others install it: what it needs, what it brings, and that the loss runs on torch alone."""

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rnnt_kd.bin.entry import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOSS = """
import sys, torch
import rnnt_kd
from rnnt_kd import JoinerParts, pruned_transducer_loss, rnnt_loss_pruned

def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)

generator = torch.Generator().manual_seed(1)
symbols, ranges = torch.tensor([[2, 1, 3]]), torch.arange(4).expand(1, 5, 4)
am, lm, weight, bias = (x.requires_grad_() for x in (draw(1, 5, 8), draw(1, 4, 8), draw(6, 8), draw(6)))
teacher = JoinerParts(draw(1, 5, 8), draw(1, 4, 8), draw(6, 8), draw(6))
loss = pruned_transducer_loss(
    am, lm, weight, bias, symbols, ranges, termination_symbol=0, teacher=teacher, kd_weighting="occupancy"
)
logits = torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1)) @ weight.T + bias
theirs = torch.tanh(teacher.am.unsqueeze(2) + teacher.lm.unsqueeze(1)) @ teacher.weight.T + teacher.bias
other = rnnt_loss_pruned(logits, symbols, ranges, 0, teacher_logits=theirs, kd_weighting="occupancy")
numbers = [loss, other]
for value in (loss, other):
    numbers += [gradient.sum() for gradient in torch.autograd.grad(value, (am, lm, weight, bias), retain_graph=True)]
"""


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def closure(name):
    """Installed distributions that ``name`` needs, itself included."""
    names, open_names = {}, [name]
    while open_names:
        name = canonicalize_name(open_names.pop())
        if name in names:
            continue
        try:
            names[name] = distribution(name)
        except PackageNotFoundError as error:
            pytest.skip(f"torch is not installed with all that it asks for: {error}")
        needed = map(Requirement, names[name].requires or [])
        open_names += [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return names.values()


@pytest.fixture(scope="module")
def torch_alone(root, tmp_path_factory):
    """The Python of an empty environment with torch, what torch needs, and our wheel."""
    folder = tmp_path_factory.mktemp("package")
    source, venv = folder / "source", folder / "venv"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    shutil.copytree(root / "plugin", source / "plugin", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    try:
        run([sys.executable, "-m", "venv", "--without-pip", venv])
        run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source])
    except subprocess.CalledProcessError as error:
        if re.search(r"No module named (pip|venv|ensurepip|setuptools|wheel)|'bdist_wheel'", error.stderr):
            pytest.skip("pip, venv and setuptools cannot make an environment here")
        raise AssertionError(error.stderr) from error
    site_packages = next(venv.glob("lib/python*/site-packages"))
    for one in closure("torch"):
        for top in {file.parts[0] for file in one.files or [] if not file.parts[0].startswith((".", "__pycache__"))}:
            if not (site_packages / top).exists():
                (site_packages / top).symlink_to(Path(one.locate_file(top)).resolve())
    (wheel,) = folder.glob("*.whl")
    run([*pip, "--python", venv / "bin" / "python", "install", "--no-index", wheel])  # it may ask for torch alone
    return venv / "bin" / "python"


def run(command, **options):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **options)


def test_the_wheel_computes_loss_and_gradient_in_an_environment_that_has_torch_alone(torch_alone, tmp_path):
    program = LOSS + "print(rnnt_kd.__file__)\nprint(*(number.item().hex() for number in numbers))"
    done = run([torch_alone, "-I", "-c", program], cwd=tmp_path)
    place, numbers = done.stdout.splitlines()
    assert Path(place).is_relative_to(torch_alone.parents[1])
    here = {}
    exec(LOSS, here)
    numbers = torch.tensor([float.fromhex(number) for number in numbers.split()], dtype=torch.float64)
    torch.testing.assert_close(numbers, torch.stack(here["numbers"]).detach(), rtol=1e-12, atol=1e-12)
    assert numbers.isfinite().all() and numbers[2:].abs().max() > 0
    torch.testing.assert_close(numbers[0], numbers[1])  # the two functions agree


def test_a_command_without_its_packages_is_one_line_that_says_what_to_install(torch_alone, tmp_path):
    for name, extra in (("experiment", "recipe"), ("score", "recipe")):
        command = [str(torch_alone), "-I", "-m", f"rnnt_kd.bin.{name}", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1
        error = done.stderr.splitlines()[-1]
        assert re.match(r"error: the package \w+ is not installed; ", error) and f"rnnt-kd[{extra}]" in error
        assert "Traceback" not in done.stderr


def test_the_package_needs_torch_alone(project):
    assert [Requirement(text).name for text in project["dependencies"]] == ["torch"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_installs_what_its_commands_import(extra, project):
    other_names = {"pyyaml": "yaml"}
    packages = [canonicalize_name(Requirement(text).name) for text in project["optional-dependencies"][extra]]
    imported = {other_names.get(name, name).replace("-", "_") for name in packages}
    assert imported == set(EXTRAS[extra].split())


def test_every_package_that_is_imported_stands_in_an_extra(root):
    known = {"rnnt_kd", "torch", "triton", "llvmlite", "warprnnt_numba", "sounddevice", *sys.stdlib_module_names}
    known |= {"espnet2", "rnnt_kd_engine"}  # who distils in ESPnet has it; packages/engine
    known |= set(" ".join(EXTRAS.values()).split())  # triton comes with torch, llvmlite with numba
    for path in (root / "plugin").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {node.module.split(".")[0]}
            else:
                continue
            assert names <= known, f"{path}:{node.lineno}"


def test_the_environments_hold_every_extra_but_k2(root, project):
    for environment in ("k2", "torch2"):
        lines = (root / "requirements" / f"{environment}.txt").read_text().split()
        pinned = {canonicalize_name(line.split("==")[0]) for line in lines}
        for extra, packages in project["optional-dependencies"].items():
            for package in map(Requirement, packages if extra != "k2" else []):
                if not package.marker or environment == "k2":
                    assert canonicalize_name(package.name) in pinned, package.name


def test_version_and_licence_are_the_same_everywhere(root, project):
    citation = (root / "CITATION.cff").read_text()
    assert f"version: {project['version']}\n" in citation and f"license: {project['license']['text']}\n" in citation
    assert re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == project["version"]
    assert "Apache License" in (root / "LICENSE").read_text()[:200]

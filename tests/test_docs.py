"""README, CHANGELOG and docs: short enough to be read, no dead link, no command or option that is not there."""

import ast
import contextlib
import importlib
import inspect
import io
import re
from functools import cache
from pathlib import Path

import pytest

import rnnt_kd
from rnnt_kd.bin.entry import EXTRAS
from rnnt_kd.losses import available_variants, available_weightings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("egs/*/*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
LAUNCHERS = ("rnnt_kd.icefall", "rnnt_kd.zipformer", "rnnt_kd.espnet")  # of other programs, to which most options go
COMMAND = re.compile(r"(\./run\.sh|tests/run\.sh|python -m [\w.]+)([^\n`]*)")


def name(page):
    return str(page.relative_to(ROOT))


def headings(page):
    """Anchors of a page as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page):
    """(program, the rest of its line) of every command on a page; comments of the shell, and the command of another
    program that ``--cmd`` names, are left out."""
    text = re.sub(r"\\\n", " ", page.read_text())
    return [
        (program, re.sub(r'(--cmd) "[^"]*"', r"\1 CMD", re.sub(r"\s#.*", "", rest)))
        for program, rest in COMMAND.findall(text)
    ]


def options(text):
    return re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)


@cache
def help_of(module, *words):
    """What a command of ours prints for --help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*words, "--help"])
    assert ended.value.code == 0
    return printed.getvalue()


def test_commands_are_found_on_a_page():
    readme = commands(ROOT / "README.md")
    assert ("./run.sh", " --corpus an4 --corpus-dir ~/an4") in [(program, rest.rstrip()) for program, rest in readme]
    assert any(program == "python -m benchmark.loss" for program, _ in commands(ROOT / "docs" / "loss.md"))


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 140] == []


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in headings(there), target


def test_every_page_of_docs_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in ROOT.glob("docs/*.md") if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_ours_is_there_with_its_options(page):
    for program, rest in commands(page):
        module = program.removeprefix("python -m ")
        if module.startswith(LAUNCHERS):
            words = [word for word in rest.split()[:1] if word in ("cache", "average")]
            given = {x for x in options(rest) if words or x.startswith(("--kd-", "--sparsity"))}
            launcher = "espnet" if "espnet" in module else "icefall"
            if given:  # ESPnet's launcher needs ESPnet, even for --help
                assert given <= set(options(help_of(f"rnnt_kd.{launcher}.__main__", *words))), (program, rest)
        elif module.startswith(("rnnt_kd.", "benchmark.")):
            assert set(options(rest)) <= set(options(help_of(module))), (program, rest)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_of_run_sh_is_there_with_its_value(page):
    known = set(re.findall(r"^  (--[a-z-]+)", (ROOT / "run.sh").read_text(), re.MULTILINE)) | {"--help"}
    for program, rest in commands(page):
        if program == "./run.sh":
            assert set(options(rest)) <= known, rest
            given = dict(re.findall(r"--(corpus|preset|experiment) ([\w-]+)", rest))
            corpus = ROOT / "egs" / given.get("corpus", "synth")
            assert (corpus / "corpus.sh").exists(), rest
            conf = (corpus if (corpus / "conf").exists() else ROOT / "egs" / "librispeech") / "conf"
            for key, folder in (("preset", conf), ("experiment", conf / "experiments")):
                assert given.get(key) is None or (folder / f"{given[key]}.yaml").exists(), rest


def test_options_of_run_sh_that_stand_alone_in_a_text_are_there():
    known = set(options((ROOT / "run.sh").read_text())) | {"--name", "--flag"}
    for text in re.findall(r"`(--[^`]*)`", (ROOT / "README.md").read_text()):
        assert set(options(text)) <= known, text


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "loss.md"], ids=name)
def test_the_swap_for_an_icefall_recipe_is_a_call_of_the_loss(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            function = getattr(call.func, "id", "")
            if function in rnnt_kd.__all__:
                given = {one.arg: one.value for one in call.keywords}
                inspect.signature(getattr(rnnt_kd, function)).bind(*call.args, **given)


def test_every_weighting_and_variant_is_explained():
    text = (ROOT / "docs" / "method.md").read_text()
    assert [one for one in [*available_variants(), *available_weightings()] if f"| `{one}` |" not in text] == []


def test_every_extra_is_explained():
    text = (ROOT / "docs" / "environments.md").read_text()
    assert [extra for extra in [*EXTRAS, "bench", "test"] if f"| `{extra}` |" not in text] == []

"""The layers of the package, held by walking every import with ``ast``.

    bin -> {experiments -> training, export -> decoding, report} -> teachers -> systems
        -> {losses -> lattice, models, sparsity, text, data, scoring}

``MAY_IMPORT`` says which arrows there are; one that nobody uses is an error, too.  The mathematics sees no
config, file or logger.  Each third-party package with a door comes in by that door only.
"""

import ast
import functools
import importlib.util
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "plugin" / "rnnt_kd"
FILES = sorted(PACKAGE.rglob("*.py"))

MATHEMATICS = {"lattice", "losses", "models", "sparsity"}
# part -> the parts it imports, no more and no fewer; errors, choices and files are everybody's.  Every part imports
# parts of earlier rows alone, so the table is the drawing.
MAY_IMPORT = {
    "errors": "",
    "choices": "",
    "atomic": "",
    "tables": "",
    "children": "",
    "progress_bar": "",
    "jobs": "children progress_bar",
    "files": "",
    "text_files": "",
    "record": "atomic",
    "parts": "atomic",
    "lattice": "",
    "losses": "lattice",
    "models": "",
    "sparsity": "",
    "config": "losses sparsity",
    "config_io": "atomic config text_files",
    "text": "atomic record text_files",
    "data": "atomic children parts progress_bar record text text_files",
    "scoring": "atomic tables text text_files",
    "systems": "atomic config config_io models record sparsity",
    "teachers": "atomic data lattice losses models progress_bar systems text",
    "training": "atomic children config config_io data lattice losses models progress_bar record sparsity systems "
    "teachers text",
    "decoding": "children data models scoring text text_files",
    "export": "atomic children config config_io data decoding models record scoring sparsity systems tables text",
    "experiments": "atomic config config_io data record scoring systems tables teachers text training",
    "report": "atomic config data lattice losses models scoring systems teachers text",
    "bin": "atomic config data decoding experiments export jobs models parts progress_bar "
    "record report scoring systems teachers text text_files training",
    "icefall": "atomic bin config losses models sparsity systems teachers text",
    "zipformer": "bin icefall losses",
    "espnet": "bin lattice losses systems teachers text_files",
    "__init__": "losses",
}

# third-party package -> where it may be imported
DOORS = {
    "k2": ("lattice/k2_backend.py", "decoding/fast_beam_search.py"),
    "_k2": (),
    "triton": ("lattice/triton_", "losses/node_scores/triton_"),
    "lhotse": ("data/",),
    "sentencepiece": ("text/",),
    "kaldialign": ("scoring/",),
    "kaldilm": ("decoding/arpa_worker.py",),
    "matplotlib": ("report/",),
    "jinja2": ("report/page.py",),
    "espnet2": ("espnet/",),
    "torchaudio": (),
    "warprnnt_numba": (),
    "onnx": ("export/",),
    "onnxruntime": ("export/",),
    "numba": ("decoding/compiled_loop.py",),
    "llvmlite": (),
    "rnnt_kd_engine": ("bin/decode.py",),  # a package of its own, which imports from here; --engine asks for it
    "sherpa_onnx": ("export/client_worker.py",),
    "argparse": ("bin/", "icefall/__main__.py"),
    "tabulate": ("tables.py",),
    "zipformer": ("zipformer/",),
    "benchmark": (),  # the folder beside the package: it imports from here, never the other way round
}
NOT_IN_MATHEMATICS = {"os", "io", "pathlib", "json", "yaml", "logging"}
NOT_IN_MATHEMATICS |= {"omegaconf", "tqdm", "tensorboard", "safetensors"}
LISTS_ITS_OWN_FILES = {"lattice/__init__.py"}  # names on the command line are things on disk
LISTS_ITS_OWN_FILES |= {"losses/node_scores/__init__.py"}
SAYS_WHAT_IT_CHOSE = {"losses/node_scores/__init__.py"}  # at debug level


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path):
    """Dotted names, relative ones resolved, wherever in the file the import stands."""
    package = ("rnnt_kd",) + path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield ".".join(base)
            if base == ["rnnt_kd"]:  # from rnnt_kd import losses
                for alias in node.names:
                    yield f"rnnt_kd.{alias.name}"


def calls(path, names):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node.func.id


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_the_package_is_there():
    assert {"lattice", "losses"} <= {part_of(path) for path in FILES}


def imports_of(part):
    """Other parts that ``part`` imports -> one file that does."""
    return {
        name.split(".")[1]: relative(path)
        for path in FILES
        if part_of(path) == part
        for name in imported_modules(path)
        if name.startswith("rnnt_kd.") and name.split(".")[1] != part
    }


@pytest.mark.parametrize("part", sorted({part_of(path) for path in FILES}))
def test_each_part_imports_exactly_the_parts_it_is_allowed_to(part):
    assert part in MAY_IMPORT, f"{part} has no place in the layers: give it one in this test and in CONTRIBUTING.md"
    allowed, found = set(MAY_IMPORT[part].split()), imports_of(part)
    new = {other: file for other, file in found.items() if other not in {*allowed, "errors", "choices", "files"}}
    assert not new, f"arrows that are not allowed: {part} -> {new}"
    assert not allowed - set(found), f"arrows that nobody uses: {part} -> {sorted(allowed - set(found))}"


def test_the_engine_knows_encoders_and_nothing_else():
    files = sorted((PACKAGE.parents[1] / "packages" / "engine").rglob("*.py"))
    nodes = [node for path in files for node in ast.walk(tree(path))]
    found = {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rnnt_kd")
    }
    others = {name for name in found if not name.startswith(("rnnt_kd.models.", "rnnt_kd_engine"))}
    assert files and others == {"rnnt_kd", "rnnt_kd.errors"}  # choices and errors


def test_arrows_point_to_earlier_rows():
    """So there is no circle of parts."""
    parts = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= set(parts[: parts.index(part)]), part


def test_third_party_packages_come_in_by_their_doors():
    assert not [
        f"{relative(path)} imports {name}"
        for path in FILES
        for name in imported_modules(path)
        for package, doors in DOORS.items()
        if (name == package or name.startswith(package + ".")) and not relative(path).startswith(doors or "-")
    ]


def test_mathematics_sees_no_file_and_no_logger():
    wrong = []
    for path in FILES:
        forbidden = set(NOT_IN_MATHEMATICS) if part_of(path) in MATHEMATICS else set()
        if relative(path) in LISTS_ITS_OWN_FILES:
            forbidden -= {"pathlib", "os"}
        if relative(path) in SAYS_WHAT_IT_CHOSE:
            forbidden -= {"logging"}
        names = imported_modules(path)
        wrong += [f"{relative(path)} imports {name}" for name in names if name.split(".")[0] in forbidden]
    assert not wrong


def test_only_commands_print():
    assert not [
        f"{relative(path)} calls {name}"
        for path in FILES
        if part_of(path) != "bin"
        for name in calls(path, {"print", "exit", "quit", "input"})
    ]


def test_the_walk_sees_imports(tmp_path, monkeypatch):
    """The rule can fail: relative, nested, aliased imports are all seen."""
    file = tmp_path / "losses" / "bad.py"
    file.parent.mkdir()
    file.write_text(
        "import k2 as fast\nfrom ..training import loop\nfrom rnnt_kd import bin\n"
        "def f():\n    from lhotse.cut import Cut\n"
    )
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert set(imported_modules(file)) == {"k2", "rnnt_kd.training", "rnnt_kd", "rnnt_kd.bin", "lhotse.cut"}


@pytest.mark.parametrize("toolkit", ["espnet", "espnet2", "icefall", "zipformer"])
def test_no_folder_of_tests_is_taken_for_a_toolkit(toolkit):
    """The folder of tests is on the path, and Python imports any folder there when no package of that name is installed."""
    found = importlib.util.find_spec(toolkit)
    tests = str(Path(__file__).parent)
    assert found is None or not any(place.startswith(tests) for place in found.submodule_search_locations)

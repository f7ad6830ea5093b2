"""The tests end with a table of what was skipped, and why."""

import os
import subprocess
import sys

TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_on_a_gpu(number):
    pytest.skip("no GPU here")

@pytest.mark.skipif(True, reason="root reads everything")
def test_rights(): pass

def test_other():
    pytest.importorskip("not_there")

@pytest.mark.xfail
def test_known(): assert False

def test_fine(): pass
"""
FILE = "import pytest\npytest.importorskip('not_there')\ndef test(): pass\n"


def last_lines(root, folder):
    """What pytest prints under "not tested here" for the tests in a folder."""
    options = ["-q", "-p", "conftest", "-p", "no:cacheprovider", "--rootdir", folder, "-c", os.devnull, folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "tests"), str(root / "plugin")])}
    done = subprocess.run([sys.executable, "-m", "pytest", *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.partition("not tested here")[2].splitlines()[1:]


def test_skipped_tests_are_counted_by_reason(root, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_file.py").write_text(FILE)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in last_lines(root, tmp_path)]
    assert cells[0] == ["why", "tests", "whole files"]
    assert cells[2:5] == [
        ["no GPU here", "3", "0"],
        ["not_there is not in this environment", "1", "1"],
        ["root reads everything", "1", "0"],
    ]
    assert "6 skipped" in cells[5][0]


def test_nothing_is_said_where_nothing_was_skipped(root, tmp_path):
    (tmp_path / "test_some.py").write_text("def test_fine(): pass\n")
    assert last_lines(root, tmp_path) == []

"""Two hundred damaged inputs of every kind (tests/fuzz.py): no traceback, no hang, nothing run, nothing wrong taken for right."""

import os
import subprocess
import sys

import pytest
from fuzz_targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_refused_in_one_line_or_changes_nothing(root, target):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(root / "tests" / "fuzz.py"), "1", "200", "--targets", target]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"| {target}" in done.stdout and "200" in done.stdout

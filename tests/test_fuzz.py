"""A hundred damaged inputs of every kind (tests/fuzz.py), others in each environment: no traceback, no hang, nothing run,
nothing wrong taken for right."""

import os
import subprocess
import sys

import pytest
import torch
from fuzz_targets import TARGETS

SEED, COUNT = torch.__version__.split(".")[0], 100


@pytest.fixture(scope="module")
def campaign(root):
    """What the campaign says, and target -> [inputs, refused, same, other, WRONG, BUG]."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "tests" / "fuzz.py"), SEED, str(COUNT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    rows = (line.split("|")[1:-2] for line in done.stdout.splitlines() if line.startswith("| "))
    return done.stdout + done.stderr, {name.strip(): cells for name, *cells in rows}


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_refused_in_one_line_or_changes_nothing(campaign, target):
    said, rows = campaign
    assert target in rows, said[-3000:]
    inputs, refused, same, other, wrong, bug = map(int, rows[target])
    told = [line for line in said.splitlines() if line.startswith(f"{target} ")]
    assert (inputs, wrong, bug) == (COUNT, 0, 0) and refused + same + other == COUNT, "\n".join(told)[-4000:]

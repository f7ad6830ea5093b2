"""Shared fixtures.  Tests that need real speech skip, and say so, without ``../shared/corpora``."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from rnnt_kd.tables import markdown

ROOT = Path(__file__).resolve().parents[1]

# Started in the background of a script, a process ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where there is no GPU, Triton's kernels run in its interpreter.  It looks at this when it is imported, so
# it is set here, for all tests; "auto" does not choose interpreted kernels.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile(
    "rnnt_kd", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck)
)
settings.load_profile("rnnt_kd")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Folder of real corpora: ``$RNNT_KD_CORPORA``, or ``../shared/corpora`` beside the checkout."""
    folder = Path(os.environ.get("RNNT_KD_CORPORA", ROOT.parent / "shared" / "corpora"))
    if not folder.is_dir():
        pytest.skip(f"real speech is not at {folder} (set RNNT_KD_CORPORA)")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def one_thread():
    """Two shared cores deliver about one; results do not depend on the thread count this way."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Training flushes them to zero in its whole process; the next test has them again."""
    torch.set_flush_denormal(False)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


def pytest_terminal_summary(terminalreporter):
    """Table of the tests that were skipped, by reason, the most frequent first."""
    tests, files = Counter(), Counter()
    for report in terminalreporter.stats.get("skipped", []):
        if not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = re.sub(
                r"^could not import '([\w.]+)'.*", r"\1 is not in this environment", reason.removeprefix("Skipped: ")
            )
            # A file that skips itself is reported once, before its tests are known.
            (files if isinstance(report, pytest.CollectReport) else tests)[reason] += 1
    rows = [[reason, tests[reason], files[reason]] for reason, _ in (tests + files).most_common()]
    if rows:
        terminalreporter.section("not tested here")
        terminalreporter.write_line(markdown(["why", "tests", "whole files"], rows))

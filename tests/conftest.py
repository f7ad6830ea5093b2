"""Shared fixtures.  Tests that need real speech skip, and say so, without ``../shared/corpora``."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# Started in the background of a script, a process ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
    import torch

    torch.set_num_threads(1)

"""Triton's compiler proves that every kernel would run on a GPU, whether or not one is here."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "kernels, shared_memory",
    [("lattice", 48 * 1024), ("node_scores", 228 * 1024 // 2)],  # any GPU's; half an H100's, for two programs
)
def test_kernels_compile_for_gpus(kernels, shared_memory, root, tmp_path):
    pytest.importorskip("triton", reason="triton is not in this environment")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.update(PYTHONPATH=str(root / "plugin"), TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, str(root / "tests" / "cases" / "compile_kernels.py"), kernels, "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = [int(line.split()[2]) for line in done.stdout.splitlines()]
    assert len(shared) == 12 and max(shared) <= shared_memory

"""The compiled conformer on a processor without AVX-512: vectors of 8, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features()
features.update({name: False for name in features if name.startswith("avx512")})
llvmlite.binding.get_host_cpu_features = lambda: features  # numba asks here, too
import torch
from rnnt_kd_engine import compile_encoder, vectors
from rnnt_kd.models.encoders.conformer import Conformer
torch.manual_seed(1)
encoder = Conformer(dim=32, num_layers=1, num_heads=4, feedforward_dim=48, depthwise_kernel=7, subsampling_channels=8)
encoder.eval().requires_grad_(False).layers[0].feedforward1.linear_in.weight[:, ::2] = 0.0
encode = compile_encoder(encoder, engine="numba")
differences = [0.0]
for frames in (1, 31, 203):
    x = torch.randn(frames, 80) * 3.5 - 7.5
    expected = encoder(x[None], torch.tensor([frames]))[0][0]
    assert encode(x).shape == expected.shape
    differences.append(float((encode(x) - expected).abs().max()))
print(vectors.LANES, max(differences))
"""


def test_vectors_of_eight_equal_torch(tmp_path):
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / "plugin"), str(root / "packages" / "engine"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "NUMBA_CACHE_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    lanes, difference = result.stdout.split()
    assert lanes == "8" and 0.0 < float(difference) < 1e-4

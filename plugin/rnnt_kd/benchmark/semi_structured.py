"""2:4 on a GPU: an encoder whose linear maps go through torch's semi-structured kernels, against dense bfloat16."""

import copy
import time
from statistics import median
from typing import Any, Dict, List

import torch
from torch import nn

from rnnt_kd.benchmark.encoder_pass import make_model
from rnnt_kd.errors import UserError

GOAL = 1.3  # times faster than dense, size L, batch 32


def semi_structured_rows(size: str, batch: int, frames: int, rounds: int, seed: int) -> List[Dict[str, Any]]:
    """Encode a batch of random features by turns; rows with ``kind``, ``seconds``, ``low``, ``high`` and ``faster``.

    Raises UserError: this torch or GPU has no semi-structured kernels.
    """
    try:
        from torch.sparse import to_sparse_semi_structured
    except ImportError:
        raise UserError("torch", f"version {torch.__version__} has no 2:4 matrices", "2.1 or newer") from None
    model = make_model({"size": size, "seed": seed, "structure": "2:4", "sparsity": 0.5})
    dense = model.encoder.to(device="cuda", dtype=torch.bfloat16)
    sparse = copy.deepcopy(dense)
    try:
        for module in sparse.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(to_sparse_semi_structured(module.weight.data), requires_grad=False)
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(batch, frames, 80, generator=generator) * 3.5 - 7.5).to("cuda", torch.bfloat16)
        lens = torch.full((batch,), frames, device="cuda")
        encoders = {"dense": dense, "2:4": sparse}
        with torch.no_grad():
            for encoder in encoders.values():
                for _ in range(3):
                    encoder(x, lens)
            seconds: Dict[str, List[float]] = {name: [] for name in encoders}
            for _ in range(rounds):
                for name, encoder in encoders.items():
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    encoder(x, lens)
                    torch.cuda.synchronize()
                    seconds[name].append(time.perf_counter() - start)
    except (RuntimeError, NotImplementedError) as error:
        found = " ".join(str(error).split())[:200]
        raise UserError("torch's 2:4 kernels", found, "a GPU and sizes that they take") from None
    pairs = {name: [first / other for first, other in zip(seconds["dense"], times)] for name, times in seconds.items()}
    return [
        {
            "kind": name,
            "size": size,
            "batch": batch,
            "frames": frames,
            "seconds": median(times),
            "low": min(times),
            "high": max(times),
            "faster": median(pairs[name]),
        }
        for name, times in seconds.items()
    ]

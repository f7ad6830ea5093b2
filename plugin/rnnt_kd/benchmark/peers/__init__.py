"""Whom the loss is compared with.  A peer named ``x`` is the file ``x_peer.py``, with

    VARIANTS                the variants it can do: some of "none", "online", "cache"
    LATTICE                 "pruned"; "full" where it walks every (t, s): another, smaller loss; "" for no loss
    why_not(device)         None, or a phrase: why it cannot run here
    estimated_bytes(B, T, S, s_range, C, J)   rough peak, in float32, so as not to start what cannot fit
    prepare(inputs, variant) -> function      () -> loss to differentiate, or None

Listed are only those that a user names: ``matmul`` belongs to every run.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import List

from rnnt_kd.errors import UserError


def available_peers() -> List[str]:
    """Names of the peers, installed or not."""
    return sorted(path.name[: -len("_peer.py")] for path in Path(__file__).parent.glob("*_peer.py"))


def get_peer(name: str) -> ModuleType:
    """The module of a peer; UserError, with the right names, for others."""
    if name not in available_peers():
        raise UserError("--peers", f"there is no {name!r}", "some of: " + ", ".join(available_peers()))
    return importlib.import_module(f"rnnt_kd.benchmark.peers.{name}_peer")

"""Whom the loss is compared with.  A peer named ``x`` is the file ``x_peer.py``, with

    VARIANTS                the variants it can do: some of "none", "online", "cache"
    LATTICE                 "pruned"; "full" where it walks every (t, s): another, smaller loss; "" for no loss
    why_not(device)         None, or a phrase: why it cannot run here
    estimated_bytes(B, T, S, s_range, C, J)   rough peak, in float32, so as not to start what cannot fit
    prepare(inputs, variant) -> function      () -> loss to differentiate, or None

``ours`` and ``matmul`` are such files, too; they belong to every run.
"""

import importlib
from types import ModuleType
from typing import List, Optional

from rnnt_kd import choices

ALWAYS = ("matmul", "ours")


def available_peers() -> List[str]:
    """Names of the peers that a user chooses from, installed or not."""
    return [name for name in choices.names(__name__, "_peer") if name not in ALWAYS]


def get_peer(name: str) -> ModuleType:
    """The module of a peer; UserError, with the right names, for others."""
    return choices.load(__name__, name, "_peer", "--peers")


def import_problem(package: str) -> Optional[str]:
    """Why ``package`` cannot be imported here, as a phrase; None where it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"not installed ({error})"
    except OSError as error:
        return f"made for another torch ({error})"
    return None

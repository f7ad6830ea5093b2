"""One pass: how long it takes, and how much memory it needs above what is there before it.

A pass is a forward and, where there is a loss, a backward.  Its result is thrown away afterwards,
outside of the clock.  Memory is the growth of the resident set at its highest (CUDA: of the memory
in torch's tensors): gradients count, inputs do not.  What glibc would leave unused between the blocks
of its heap does not count either: that changes from run to run.
"""

import ctypes
import gc
import resource
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SMALL_BLOCK = 2**16
LARGE_BLOCK = 2**25  # where glibc ends up by itself once it has seen such a block; set, all subjects are alike


class Pass(NamedTuple):
    seconds: float
    peak_bytes: Optional[int]  # None: not asked for
    loss: Optional[float]  # None: the subject has none


def measure(function: Callable[[], Optional[Tensor]], leaves: Sequence[Tensor], with_memory: bool) -> Pass:
    """Run ``function`` and differentiate what it returns with respect to ``leaves``.

    Measuring memory costs time (every block is asked of the system): take the seconds of a pass
    ``with_memory`` False.  On a GPU that is a second pass, whose memory torch has at hand; it gives
    all of it back at the end, for the other processes.
    """
    device = leaves[0].device
    if device.type == "cpu":
        _map_blocks_from(SMALL_BLOCK if with_memory else LARGE_BLOCK)
    elif not with_memory:
        _run(function, leaves)
    gc.collect()
    before = _start_memory(device) if with_memory else 0
    _wait(device)
    start = time.perf_counter()
    loss = _run(function, leaves)
    _wait(device)
    seconds = time.perf_counter() - start
    peak = max(0, _peak_memory(device) - before) if with_memory else None
    value = None if loss is None else float(loss.detach())
    del loss
    for leaf in leaves:
        leaf.grad = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Pass(seconds, peak, value)


def _run(function: Callable[[], Optional[Tensor]], leaves: Sequence[Tensor]) -> Optional[Tensor]:
    for leaf in leaves:
        leaf.grad = None
    loss = function()
    if loss is not None:
        loss.backward()
    return loss


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_memory(device: torch.device) -> int:
    """Bytes in use now; forget any earlier peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _give_back()
    if CLEAR.exists():
        CLEAR.write_text("5")  # sets VmHWM to VmRSS
        return _status("VmRSS")
    return _max_rss()  # no way back: right where the pass is the largest thing so far


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") if CLEAR.exists() else _max_rss()


def _status(field: str) -> int:
    """Bytes, of a line ``VmRSS:   1234 kB``."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _max_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _give_back() -> None:
    """Freed memory that glibc keeps for later would hide what a pass needs."""
    function = _c_function("malloc_trim")
    if function is not None:
        function(0)


def _map_blocks_from(size: int) -> None:
    """Let glibc take blocks of this size straight from the system, and give them back at once when freed."""
    function = _c_function("mallopt")
    if function is not None:
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        function(M_MMAP_THRESHOLD, size)
        function(M_TRIM_THRESHOLD, 2 * size)


def _c_function(name: str) -> Optional[Callable]:
    """Of the C library; None in one that lacks it."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None

"""One pass: how long it takes, and how much memory it needs above what is there before it.

A pass is a forward and, where there is a loss, a backward.  Its result is thrown away afterwards,
outside of the clock.  Memory is the growth of the resident set at its highest (CUDA: of the memory
in torch's tensors): gradients count, inputs do not.  What glibc would leave unused between the blocks
of its heap does not count either: that changes from run to run.
"""

import ctypes
import gc
import time
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SMALL_BLOCK = 2**16
LARGE_BLOCK = 2**25  # where glibc ends up by itself once it has seen such a block; set, all subjects are alike

Result = Union[None, Tensor, Dict[str, float]]  # nothing, a loss, or the seconds of parts of the pass
Subject = Tuple[Callable[[], Result], Sequence[Tensor]]  # what to run, and what gets the gradients


class Pass(NamedTuple):
    seconds: float
    peak_bytes: Optional[int]  # None: not asked for
    loss: Optional[float]  # None: the subject has none
    parts: Dict[str, float]  # seconds of its parts, for subjects that time them


def measure(function: Callable[[], Result], leaves: Sequence[Tensor], with_memory: bool) -> Pass:
    """Run ``function`` and, if it returns a loss, differentiate that with respect to ``leaves``.

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
    result = _run(function, leaves)
    _wait(device)
    seconds = time.perf_counter() - start
    peak = max(0, _peak_memory(device) - before) if with_memory else None
    loss = float(result.detach()) if isinstance(result, Tensor) else None
    parts = result if isinstance(result, dict) else {}
    del result
    for leaf in leaves:
        leaf.grad = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Pass(seconds, peak, loss, parts)


def warm_up(subjects: Sequence[Subject], device: torch.device) -> None:
    """Passes of full size: kernels are chosen, and the allocator settles.

    On a CPU the longest batch, the last one, is enough; on a GPU kernels are compiled for each size.
    """
    for function, leaves in subjects if device.type == "cuda" else subjects[-1:]:
        measure(function, leaves, with_memory=False)


def _run(function: Callable[[], Result], leaves: Sequence[Tensor]) -> Result:
    for leaf in leaves:
        leaf.grad = None
    result = function()
    if isinstance(result, Tensor):
        result.backward()
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _start_memory(device: torch.device) -> int:
    """Bytes in use now; forget any earlier peak."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _call_c("malloc_trim", 0)  # freed memory that glibc keeps for later would hide what a pass needs
    CLEAR.write_text("5")  # sets VmHWM to VmRSS
    return _status("VmRSS")


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """Bytes, of a line ``VmRSS:   1234 kB``."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _map_blocks_from(size: int) -> None:
    """Let glibc take blocks of this size straight from the system, and give them back at once when freed."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    _call_c("mallopt", M_MMAP_THRESHOLD, size)
    _call_c("mallopt", M_TRIM_THRESHOLD, 2 * size)


def _call_c(name: str, *arguments: int) -> None:
    """A function of the C library; nothing in a library that lacks it."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)

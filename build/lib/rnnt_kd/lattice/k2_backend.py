"""The lattice by k2: one of the two files that know it.

Made for k2 1.23.4.  k2 does the recursion, in compiled code.  What surrounds it is the same
for all backends and equals k2's own Python, which needs two to nine times as long on a CPU
(it gathers from a (B, S, T, C) view) and refuses batches with S = 0 or T < S.
"""

import k2
import torch
from k2 import mutual_information_recursion as recursion

from rnnt_kd.lattice.pruned_recursion import pruned_recursion_with


def supports(device: torch.device) -> bool:
    """CPU, and CUDA where k2 was built with it."""
    return device.type == "cpu" or (device.type == "cuda" and bool(k2.with_cuda))


pruned_recursion = pruned_recursion_with(recursion)

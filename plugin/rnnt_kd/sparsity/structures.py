"""Which weights of a matrix stay, and the names of the structures.

    unstructured   any weight goes, those of least magnitude first
    RxC            whole blocks go: R outputs by C inputs, for example 16x1, 1x16, 4x4, 16x16
    N:M            of every M inputs of an output at most N stay, for example 2:4

All three are ``(weight, sparsity) -> weight_mask``:

  weight:      dense weights, floating point, any shape; the first dimension are the outputs (rows), all others
               together the inputs (columns).  A vector is one column.
  sparsity:    fraction in [0, 1) that becomes zero.
  weight_mask: bool, shape and device of ``weight``, True = keep.

They are deterministic (of equals, the first goes) and do not depend on masks of the past: a weight may come back.
A further structure without parameters is a further function of this shape; its name is the config's value.
"""

import functools
import inspect
import re
from typing import Callable, Dict, List

import torch
from torch import Tensor

from rnnt_kd.errors import UserError

Structure = Callable[[Tensor, float], Tensor]
COMMON = ("1x16", "16x1", "4x4", "16x16", "2:4")  # any RxC and N:M will do; these are named in messages


def find_structure(name: str, final_sparsity: float, scope: str = "per-layer") -> Structure:
    """The function that ``name`` stands for, bound to the numbers in the name.

    Raises:
      UserError: an unknown name, a block without rows or columns, N:M without 0 < N < M or with a final sparsity that
        is not 1 - N/M, or a structure that needs matrices in the "global" scope, which sees one flat vector.
    """
    if name in _functions():
        return _functions()[name]
    match = re.fullmatch(r"([1-9]\d{0,5})(x|:)([1-9]\d{0,5})", name)
    first, kind, second = match.groups() if match else ("0", "", "0")
    if not match or (kind == ":" and int(first) >= int(second)):
        expected = f"one of {', '.join(available_structures())}; RxC for any other block, N:M with N < M"
        raise UserError("sparsity.structure", f"unknown structure {name!r}", expected)
    if scope == "global":
        found = f"global, and {name} has rows and columns, which matrices laid end to end have not"
        raise UserError("sparsity.scope", found, "per-layer, or structure unstructured")
    if kind == "x":
        return functools.partial(blocks, rows=int(first), columns=int(second))
    theirs = 1.0 - int(first) / int(second)
    if abs(final_sparsity - theirs) > _ROUNDED:
        found, expected = f"{final_sparsity:g} with structure {name}", f"{theirs:g}: {first} of {second} weights stay"
        raise UserError("target sparsity", found, expected, f"ask for {theirs:g}, or for blocks such as 16x1")
    return functools.partial(groups, kept=int(first), size=int(second))


def available_structures() -> List[str]:
    """Names for messages: the functions of this file that need no numbers, and the common blocks and groups."""
    return [*_functions(), *COMMON]


def unstructured(weight: Tensor, sparsity: float) -> Tensor:
    """Drop exactly ``round(sparsity * weight.numel())`` weights, those of least magnitude."""
    weight_mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    dropped = int(round(sparsity * weight.numel()))
    if dropped:
        weight_mask[weight.detach().abs().flatten().topk(dropped, largest=False, sorted=False).indices] = False
    return weight_mask.view(weight.shape)


def blocks(weight: Tensor, sparsity: float, *, rows: int, columns: int) -> Tensor:
    """Drop whole blocks of ``rows`` x ``columns``, those of least mean magnitude first.

    Blocks at the lower and right edge may be smaller; their mean is over the entries that exist.  As many go as fit
    into the target, so the matrix is at most one block denser than asked for and never wholly zero.
    """
    magnitude = _matrix(weight)
    height, width = magnitude.shape
    down, across = -(-height // rows), -(-width // columns)

    def per_block(entries: Tensor) -> Tensor:
        padded = entries.new_zeros(down * rows, across * columns)
        padded[:height, :width] = entries
        return padded.view(down, rows, across, columns).sum((1, 3)).flatten()

    sizes = per_block(torch.ones_like(magnitude, dtype=torch.int64))
    dropped = _least(per_block(magnitude) / sizes, sizes, int(round(sparsity * weight.numel())))
    spread = (~dropped).view(down, 1, across, 1).expand(down, rows, across, columns)
    return spread.reshape(down * rows, across * columns)[:height, :width].reshape(weight.shape)


def groups(weight: Tensor, sparsity: float, *, kept: int, size: int) -> Tensor:
    """Keep the ``kept`` largest of every ``size`` neighbours in a row (N:M; Zhou et al. 2021, arXiv 2102.04010).

    Below the sparsity 1 - kept / size only some groups are thinned, those that lose the least mean magnitude first; a
    group is thinned wholly or not at all.  A shorter group at the end of a row keeps ``kept`` weights as well.
    """
    magnitude = _matrix(weight)
    height, width = magnitude.shape
    across = -(-width // size)
    padded = magnitude.new_full((height, across * size), float("inf"))  # what is not there is never dropped
    padded[:, :width] = magnitude
    ordered, order = padded.view(height * across, size).sort(dim=1, stable=True)
    existing = ordered.isfinite() if width % size else torch.ones_like(ordered, dtype=torch.bool)
    goes = torch.arange(size, device=weight.device) < (existing.sum(1, keepdim=True) - kept)
    losses = goes.sum(1)
    score = ordered.masked_fill(~goes, 0.0).sum(1) / losses.clamp(min=1)
    everything = sparsity >= 1.0 - kept / size - _ROUNDED
    thinned = _least(score, losses, int(losses.sum()) if everything else int(round(sparsity * weight.numel())))
    weight_mask = torch.ones_like(goes).scatter_(1, order, ~(goes & thinned[:, None]))
    return weight_mask.view(height, across * size)[:, :width].reshape(weight.shape)


_ROUNDED = 1e-6  # 1 - 1/3 may be written 0.666667


def _matrix(weight: Tensor) -> Tensor:
    """Magnitudes as (outputs, inputs), in float32 at least."""
    magnitude = weight.detach().abs().to(torch.promote_types(weight.dtype, torch.float32))
    return magnitude.flatten(1) if magnitude.dim() > 1 else magnitude.reshape(-1, 1)


def _least(score: Tensor, weights: Tensor, target: int) -> Tensor:
    """True for the members of least score, as long as their weights together do not pass ``target``."""
    order = score.argsort(stable=True)
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen[order[weights[order].cumsum(0) <= target]] = True
    return chosen


def _functions() -> Dict[str, Structure]:
    public = {n: f for n, f in globals().items() if inspect.isfunction(f) and f.__module__ == __name__ and n[0] != "_"}
    return {n: f for n, f in public.items() if list(inspect.signature(f).parameters) == ["weight", "sparsity"]}

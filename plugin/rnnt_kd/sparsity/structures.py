"""Which weights of a matrix stay, and the names of the structures.

    unstructured   any weight goes, those of least magnitude first
    RxC            whole blocks go: R outputs by C inputs, for example 16x1, 1x16, 4x4, 16x16
    N:M            of every M inputs of an output at most N stay, for example 2:4
    heads+ffn ...  whole units go, and leave a smaller dense network: units.py

The first three are ``(weights, sparsity) -> weight_masks``:

  weights:      dense weights that compete with each other, floating point, any shapes; the first dimension are the
                outputs (rows), all others together the inputs (columns).  A vector is one column.
  sparsity:     fraction in [0, 1) of them all that becomes zero.
  weight_masks: bool, shapes and devices of ``weights``, True = keep.

They are deterministic and do not depend on masks of the past: a weight may come back.
A further structure without parameters is a further function of this shape; its name is the config's value.
"""

import functools
import inspect
import re
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd import choices
from rnnt_kd.errors import UserError

Structure = Callable[[Sequence[Tensor], float], List[Tensor]]
UNITS = ("layers", "heads", "ffn", "channels", "joiner", "predictor")  # units.py says what each is
COMMON = ("1x16", "16x1", "4x4", "16x16", "2:4")  # any RxC and N:M will do; these are named in messages


def get_structure(name: str) -> Structure:
    """The function that ``name`` stands for, bound to the numbers in the name.

    Raises:
      UserError: an unknown name, a block without rows or columns, N:M without 0 < N < M.
    """
    first, kind, second = _parts(name)
    if kind == "x":
        return functools.partial(blocks, rows=first, columns=second)
    if kind == ":":
        return functools.partial(groups, kept=first, size=second)
    return _functions()[name]


def unit_kinds(name: str) -> Tuple[str, ...]:
    """The kinds of units that ``name`` stands for, ("heads", "ffn") for heads+ffn; () for another structure.

    Raises UserError: one that is unknown, or named twice."""
    kinds = tuple(name.split("+"))
    if not set(kinds) & set(UNITS):
        return ()
    for kind in kinds:
        choices.check(kind, UNITS, "sparsity.structure")
    if len(set(kinds)) < len(kinds):
        raise UserError("sparsity.structure", f"{name} names one twice", "each once")
    return kinds


def check_structure(name: str, *, final_sparsity: float, nested: Sequence[float] = ()) -> None:
    """Raises UserError: an unknown name, an N:M whose sparsity is not 1 - N/M, a family that cannot be."""
    only = None if unit_kinds(name) else only_sparsity(name)
    sparsities = [*nested, final_sparsity]
    if nested and (
        sorted({0.0, *sparsities}) != [0.0, *sorted(nested), final_sparsity]
        or any(float(f"{one:g}") != one for one in sparsities)  # members are called by it
    ):
        problem = f"{list(nested)} beside a target of {final_sparsity}"
        raise UserError("sparsity.nested", problem, "different numbers between 0 and that, of at most six digits")
    if nested and only is not None:
        raise UserError("sparsity.nested", f"{list(nested)} with {name}", "a structure of any sparsity")
    if only is not None and final_sparsity > 0.0 and abs(final_sparsity - only) > _ROUNDED:
        problem = f"{name} with a target sparsity of {final_sparsity:g}"
        raise UserError("sparsity.structure", problem, f"{only:g}, which is what {name} leaves")


def only_sparsity(name: str) -> Optional[float]:
    """The one sparsity that N:M can have, 1 - N/M; None for structures that can have any.  UserError: unknown."""
    first, kind, second = _parts(name)
    return 1.0 - first / second if kind == ":" else None


def available_structures() -> List[str]:
    """Names for messages: the functions of this file that need no numbers, and the common blocks and groups."""
    return [*_functions(), *COMMON]


def unstructured(weights: Sequence[Tensor], sparsity: float) -> List[Tensor]:
    """Drop exactly ``round(sparsity * N)`` of all N weights, those of least magnitude."""
    magnitude = torch.cat([_matrix(weight).flatten() for weight in weights])
    kept = torch.ones_like(magnitude, dtype=torch.bool)
    dropped = int(round(sparsity * magnitude.numel()))
    if dropped:
        kept[magnitude.topk(dropped, largest=False, sorted=False).indices] = False
    pieces = kept.split([weight.numel() for weight in weights])
    return [piece.view(weight.shape).clone() for piece, weight in zip(pieces, weights)]


def blocks(weights: Sequence[Tensor], sparsity: float, *, rows: int, columns: int) -> List[Tensor]:
    """Drop whole blocks of ``rows`` x ``columns``, those of least mean magnitude first.

    Blocks at the lower and right edge may be smaller; their mean is over the entries that exist.  As many go as fit
    into the target: the weights are less than one block denser than asked for, and never sparser.
    """
    tiled = [_Tiles(weight, rows, columns) for weight in weights]
    sizes = torch.cat([tiles.sizes for tiles in tiled])
    score = torch.cat([tiles.magnitudes for tiles in tiled]) / sizes
    kept = ~_least(score, sizes, int(round(sparsity * int(sizes.sum()))))
    return [tiles.spread(piece) for tiles, piece in zip(tiled, kept.split([len(tiles.sizes) for tiles in tiled]))]


class _Tiles:
    """The blocks of one matrix, in one row: how many entries each has, and the sum of their magnitudes."""

    def __init__(self, weight: Tensor, rows: int, columns: int):
        magnitude = _matrix(weight)
        self.shape, (self.height, self.width) = weight.shape, magnitude.shape
        self.rows, self.columns = min(rows, max(self.height, 1)), min(columns, max(self.width, 1))
        self.down, self.across = -(-self.height // self.rows), -(-self.width // self.columns)
        self.sizes = self._sums(torch.ones_like(magnitude, dtype=torch.int64))
        self.magnitudes = self._sums(magnitude)

    def _sums(self, entries: Tensor) -> Tensor:
        padded = entries.new_zeros(self.down * self.rows, self.across * self.columns)
        padded[: self.height, : self.width] = entries
        return padded.view(self.down, self.rows, self.across, self.columns).sum((1, 3)).flatten()

    def spread(self, values: Tensor) -> Tensor:
        """One value a block -> one an entry, in the shape of the weight."""
        each = values.view(self.down, 1, self.across, 1).expand(self.down, self.rows, self.across, self.columns)
        whole = each.reshape(self.down * self.rows, self.across * self.columns)
        return whole[: self.height, : self.width].reshape(self.shape)


def groups(weights: Sequence[Tensor], sparsity: float, *, kept: int, size: int) -> List[Tensor]:
    """Keep the ``kept`` largest of every ``size`` neighbours in a row (N:M; Zhou et al. 2021, arXiv 2102.04010).

    Matrices do not compete.  Below the sparsity 1 - kept / size only some groups are thinned, those that lose the
    least mean magnitude first; a group is thinned wholly or not at all.  A shorter group at the end of a row keeps
    ``kept`` weights as well.
    """
    share = min(1.0, sparsity / (1.0 - kept / size) * (1.0 + _ROUNDED))
    return [_thinned(weight, share, kept, size) for weight in weights]


def _thinned(weight: Tensor, share: float, kept: int, size: int) -> Tensor:
    """One matrix, of which a ``share`` of the groups is thinned."""
    magnitude = _matrix(weight)
    height, width = magnitude.shape
    size = min(size, max(width, 1))
    across = -(-width // size)
    padded = magnitude.new_full((height, across * size), -1.0)  # what is not there is sorted last
    padded[:, :width] = magnitude
    ordered, order = padded.view(height * across, size).sort(dim=1, descending=True, stable=True)
    goes = (torch.arange(size, device=weight.device) >= kept) & (ordered >= 0.0)
    score = ordered.masked_fill(~goes, 0.0).sum(1) / goes.sum(1)  # nothing to lose: nan, sorted last
    thinned = torch.zeros_like(score, dtype=torch.bool)
    thinned[score.argsort(stable=True)[: int(round(share * len(score)))]] = True
    weight_mask = torch.ones_like(goes).scatter_(1, order, ~(goes & thinned[:, None]))
    return weight_mask.view(height, across * size)[:, :width].reshape(weight.shape)


_ROUNDED = 1e-6  # the sparsity of 1:3 may be written 0.666667


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


def _parts(name: str) -> Tuple[int, str, int]:
    """16x1 -> (16, "x", 1), 2:4 -> (2, ":", 4), a function's name -> (0, "", 0)."""
    if name in _functions():
        return 0, "", 0
    match = re.fullmatch(r"([1-9]\d{0,5})([x:])([1-9]\d{0,5})", name)
    first, kind, second = match.groups() if match else ("0", "", "0")
    if not match or (kind == ":" and int(first) >= int(second)):
        units = f"units, joined by +, of {', '.join(UNITS)}"
        expected = f"one of {', '.join(available_structures())}; any other block RxC, or N:M with N < M; {units}"
        raise UserError("sparsity.structure", f"unknown structure {name!r}", expected)
    return int(first), kind, int(second)


def _functions() -> Dict[str, Structure]:
    public = {n: f for n, f in globals().items() if inspect.isfunction(f) and f.__module__ == __name__ and n[0] != "_"}
    return {n: f for n, f in public.items() if list(inspect.signature(f).parameters) == ["weights", "sparsity"]}

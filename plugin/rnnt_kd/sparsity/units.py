"""Zeros that leave a smaller dense network: layers, heads, feed-forward units, channels, widths of the label side.

    layers     whole ones of the encoder, but their last LayerNorm
    heads      of each self-attention: their rows of queries, keys and values, and their columns of the output map
    ffn        inner units of each feed-forward module
    channels   of each convolution module
    joiner     its dimensions
    predictor  its dimensions, of embedding and output alike

A structure of these is their names joined by +, ``heads+ffn+channels``.  Which weights make up a unit is said by
``units()`` of the module that has it (``models.interfaces.UnitPlaces``).  While a model is trained the units that go
are hidden by masks, as other zeros are; ``cut`` then takes them out: the smaller model computes what the masked did.
No gradient reaches a hidden unit, whose other end is hidden, too: it comes back only where others become worth less.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd import choices
from rnnt_kd.errors import UserError

SCORES = ("magnitude", "taylor")
MEMORY = 0.98  # of Taylor scores, a step

Masks = Dict[str, Tensor]


@dataclass
class Family:
    """The units of one kind in one module; ``parts`` as in ``models.interfaces.UnitPlaces``, names in full."""

    kind: str
    parts: List[Tuple[str, int, Tensor]]

    def __len__(self) -> int:
        return len(self.parts[0][2])

    def per_unit(self, tensors: Dict[str, Tensor]) -> Tensor:
        """Sum over the entries of each unit: (units,), in the tensors' type."""
        sums = []
        for name, dim, places in self.parts:
            there = places[:, 0] >= 0
            of_part = _rows(tensors[name], dim)[places[there].to(tensors[name].device)].flatten(1).sum(1)
            sums.append(of_part.new_zeros(len(self)).masked_scatter(there.to(of_part.device), of_part))
        return torch.stack(sums).sum(0)

    def kept(self, masks: Masks) -> Tensor:
        """(units,) bool: which of them the masks leave."""
        return self.per_unit({name: masks[name].long() for name, _, _ in self.parts}).cpu() > 0


def find_families(model: nn.Module, kinds: Sequence[str]) -> List[Family]:
    """Raises UserError: a kind that the model has no units of."""
    found = []
    for path, module in model.named_modules():
        for kind, parts in module.units().items() if callable(getattr(type(module), "units", None)) else ():
            named = [(f"{path}.{name}" if path else name, dim, places) for name, dim, places in parts]
            found.append(Family(kind, named))
    consumers = {"predictor": ("joiner.predictor_proj.weight", "simple_lm_proj.weight")}  # of a module's output
    named_parameters = dict(model.named_parameters())
    for family in found:
        each = torch.arange(len(family)).unsqueeze(1)
        family.parts += [(name, 1, each) for name in consumers.get(family.kind, ()) if name in named_parameters]
    for kind in kinds:
        if not any(family.kind == kind for family in found):
            raise UserError("sparsity.structure", f"this model has no {kind} to cut out", "a structure without units")
    return [family for family in found if family.kind in kinds]


class Units:
    """All units of ``kinds`` in a model, and what each is worth.

    Args:
      scope: "per-layer": every family loses about the same share; "global": all compete, by their worth a weight.
      score: "magnitude": a unit is worth its squared weights, each relative to its matrix's; "taylor": the squared
             change of the loss, to first order, if it went (Molchanov et al. 2019), a mean over past steps, of
             gradients as the optimizer sees them (clipped).
    Attributes: ``weights``, name -> parameter, all that are in units; ``most``, the sparsity when one unit of each
      family is left.
    Raises: UserError: a kind that the model has no units of, another score.
    """

    def __init__(self, model: nn.Module, kinds: Sequence[str], scope: str, score: str):
        self.families, self.scope = find_families(model, kinds), scope
        self.score = choices.check(score, SCORES, "sparsity.score")
        parameters = dict(model.named_parameters())
        names = {name for family in self.families for name, _, _ in family.parts}
        self.weights = {name: weight for name, weight in parameters.items() if name in names}
        if "channels" in kinds:
            norms: List[Any] = [module for module in model.modules() if hasattr(type(module), "skips_zeros")]
            for norm in norms:
                norm.skips_zeros = True
        ones = {name: torch.ones_like(weight.data, device="cpu") for name, weight in self.weights.items()}
        self._costs = [family.per_unit(ones) for family in self.families]
        zeros = [cost.new_zeros(cost.shape) for cost in self._costs]
        device = next(iter(self.weights.values())).device
        self.changes = torch.cat(zeros).to(device) if score == "taylor" else torch.empty(0)  # families end to end
        self._total = self._hidden(torch.cat([torch.ones_like(zero, dtype=torch.bool) for zero in zeros]))
        everything = self._mask_of(self._in_order(), sum(len(family) for family in self.families))
        self.most = self._hidden(everything) / self._total

    def see_gradients(self) -> None:
        """Call with the gradients of a step there, finite ones; for Taylor scores."""
        if self.score == "taylor":
            products = {name: _product(weight) for name, weight in self.weights.items()}
            seen = torch.cat([family.per_unit(products).square() for family in self.families])
            self.changes = MEMORY * self.changes + (1.0 - MEMORY) * seen

    def masks(self, sparsity: float) -> Masks:
        """Hide the units that are worth least, as many as fit: never sparser, less than a unit denser than asked."""
        order = self._in_order()
        low, high = 0, len(order)  # how many go
        while low < high:
            middle = (low + high + 1) // 2
            fits = self._hidden(self._mask_of(order, middle)) <= sparsity * self._total + 1e-6
            low, high = (middle, high) if fits else (low, middle - 1)
        return self._masks(self._mask_of(order, low))

    def cut(self, tensors: Dict[str, Tensor], masks: Masks) -> Dict[str, Tensor]:
        """``tensors``, a state dict, without the units that the masks hide."""
        smaller = dict(tensors)
        for family in self.families:
            kept = family.kept(masks)
            for name, dim, places in family.parts:
                if not kept[places[:, 0] >= 0].all():
                    rest = _those(places[kept]).sort().values
                    smaller[name] = smaller[name].index_select(dim, rest.to(smaller[name].device))
        return {name: tensor for name, tensor in smaller.items() if tensor.numel() or not tensors[name].numel()}

    def _worth(self) -> List[Tensor]:
        if self.score == "taylor":
            return list(self.changes.split([len(family) for family in self.families]))
        squares = {name: weight.data.square() for name, weight in self.weights.items()}
        return [family.per_unit(_relative(squares, family)) for family in self.families]

    def _in_order(self) -> Tensor:
        """All units, families end to end, those that go first in front; the best of each family are last."""
        keys = []
        for worth, cost in zip((worth.cpu() for worth in self._worth()), self._costs, strict=True):
            rank = worth.argsort(stable=True).argsort()
            by_rank = (rank + 0.5) / len(worth)
            key = by_rank if self.scope == "per-layer" else worth / cost
            keys.append(torch.where(rank == len(worth) - 1, torch.inf, key.double()))
        return torch.cat(keys).argsort(stable=True)

    def _mask_of(self, order: Tensor, number: int) -> Tensor:
        """(all units,) bool, True = goes: the first ``number`` of ``order``, but the best of a family."""
        goes = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        goes[order[: min(number, len(order) - len(self.families))]] = True
        return goes

    def _left(self, goes: Tensor) -> Dict[str, Dict[int, Tensor]]:
        """Weight -> dimension -> (its size,) bool: what stays along it."""
        left: Dict[str, Dict[int, Tensor]] = {name: {} for name in self.weights}
        for family, own in zip(self.families, goes.split([len(family) for family in self.families]), strict=True):
            for name, dim, places in family.parts:
                stays = torch.ones(self.weights[name].size(dim), dtype=torch.bool)
                left[name].setdefault(dim, stays)[_those(places[own])] = False
        return left

    def _masks(self, goes: Tensor) -> Masks:
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        for name, dims in self._left(goes).items():
            for dim, stays in dims.items():
                masks[name].index_fill_(dim, (~stays).nonzero().flatten().to(masks[name].device), False)
        return masks

    def _hidden(self, goes: Tensor) -> int:
        """How many weights, without making masks."""
        hidden = 0
        for name, dims in self._left(goes).items():
            kept = self.weights[name].numel()
            for stays in dims.values():
                kept = kept // len(stays) * int(stays.sum())
            hidden += self.weights[name].numel() - kept
        return hidden


def _relative(squares: Dict[str, Tensor], family: Family) -> Dict[str, Tensor]:
    """Of a family, relative to the mean of the weight; for layers to its mean in all layers."""
    alike: Dict[str, List[Tensor]] = {}
    tails = {name: name.split(f"{family.kind}.")[-1].lstrip("0123456789") for name, _, _ in family.parts}
    for name, tail in tails.items():
        alike.setdefault(tail, []).append(squares[name].mean())
    means = {tail: torch.stack(values).mean().clamp(min=1e-20) for tail, values in alike.items()}
    return {name: squares[name] / means[tail] for name, tail in tails.items()}


def _those(places: Tensor) -> Tensor:
    return places[places >= 0]


def _product(weight: Tensor) -> Tensor:
    return weight.data * weight.grad if weight.grad is not None else torch.zeros_like(weight.data)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    return tensor if dim == 0 else tensor.transpose(0, dim)

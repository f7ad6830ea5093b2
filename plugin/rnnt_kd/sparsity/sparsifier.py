"""Gradual magnitude sparsification of a model's weights while it is trained (Zhu & Gupta 2017).

Use: ``sparsifier.see_gradients(); optimizer.step(); sparsifier.step(global_step)`` in every update,
``sparsifier.finalize()`` at the end.

How it works.  The model stays a plain nn.Module whose matched weights hold ``dense * weight_mask`` at any
moment outside ``optimizer.step()``; so evaluation, checkpoints and averages see the sparse model, and the
gradient, taken at the sparse weights, reaches every entry (straight-through).  What the mask hides is kept
beside the model:

    dense = weight + hidden          (of the two, one is exactly 0 in every entry)

After an optimizer step the update of a hidden entry is in ``weight``; adding ``hidden`` gives the updated
dense weights without rounding of what is kept.  On the ramp the masks are computed anew from the dense
weights every ``update_every_steps`` steps, so a weight that grows comes back.  At ``end_step`` the last masks
are computed, ``hidden`` is dropped, and from then on the masks are frozen.

Two consequences worth knowing: decoupled weight decay does not act on hidden entries, and after the ramp
gradients of dropped weights still count in a gradient norm unless ``mask_gradients()`` is called before it.
With units (``units.py``) there are none on the ramp either.

A family (``nested``) has several sparsities in one set of weights: what a sparser member keeps, a denser one keeps.
The model is the densest of them; under ``shown`` it is another one in each step, and learns as such.

What is sparsified by default (config.py): linear and pointwise maps of the encoder, the predictor's
projection, the joiner with its output layer; never norms, biases, depthwise kernels, embeddings, or the heads
that only training uses.  ``final_sparsity`` counts these weights alone.
"""

import contextlib
import math
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd import choices
from rnnt_kd.errors import UserError
from rnnt_kd.sparsity import schedules
from rnnt_kd.sparsity.report import select_parameters, sparsity_report
from rnnt_kd.sparsity.structures import check_structure, get_structure, unit_kinds, unstructured
from rnnt_kd.sparsity.units import Units

SCOPES = ("global", "per-layer")
LEAST_SHARE = 0.1  # of the weights that a matrix would keep by itself: else it may vanish, with what it computes


class Sparsifier:
    """Args:
      model:              the model in training; its matched parameters are changed in place.
      final_sparsity:     fraction in [0, 1) of the matched weights.
      begin_step:         the ramp starts after this optimizer step ...
      end_step:           ... and ends with this one; masks are frozen then.
      update_every_steps: steps between two mask updates on the ramp.
      structure:          a name of ``structures.py``: unstructured, 16x1, 2:4, heads+ffn ...
      scope:              "global": all matched weights compete, or their blocks, and a matrix keeps at least a tenth
                          of what it would keep by itself; "per-layer": every matrix gets the target.  Groups N:M are
                          the same with both.
      include, exclude:   regular expressions for whole parameter names; units have weights of their own.
      score:              of units: ``units.Units``.
      schedule:           shape of the ramp, a function of ``schedules.py``.
      initial_sparsity:   what the ramp begins with, at once; at most the final one.
      nested:             lower sparsities, of the denser members of a family; the final one is that of the sparsest.

    Attributes: ``names`` of the matched parameters; ``frozen``; ``current_target``, the sparsity asked for
    at the last mask update.

    Raises:
      UserError: a value out of range, an unknown structure, scope or schedule, a pattern that matches nothing,
        a structure that does not go with the scope, the final sparsity or a matched weight.
    """

    def __init__(
        self,
        model: nn.Module,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        update_every_steps: int = 10,
        structure: str = "unstructured",
        scope: str = "global",
        include: Iterable[str] = (r".*\.weight",),
        exclude: Iterable[str] = (),
        schedule: str = "cubic",
        score: str = "magnitude",
        initial_sparsity: float = 0.0,
        nested: Sequence[float] = (),
    ):
        if not 0.0 <= final_sparsity < 1.0:
            raise UserError("target sparsity", str(final_sparsity), "a fraction in [0, 1)", "write 0.9 for 90 %")
        if not 0.0 <= initial_sparsity <= final_sparsity:
            raise UserError("initial sparsity", str(initial_sparsity), f"from 0 to the final one, {final_sparsity:g}")
        if not 0 <= begin_step <= end_step:
            raise UserError("sparsity ramp", f"from step {begin_step} to step {end_step}", "0 <= begin <= end")
        if update_every_steps < 1:
            raise UserError("sparsity.update_every_steps", str(update_every_steps), "at least 1")
        if scope not in SCOPES:
            raise UserError("sparsity.scope", f"unknown scope {scope!r}", f"one of {', '.join(SCOPES)}")
        self.sparsities = [*sorted(map(float, nested)), float(final_sparsity)]  # of the members, the densest first
        self.final_sparsity, self.initial_sparsity = float(final_sparsity), float(initial_sparsity)
        self.begin_step, self.end_step = int(begin_step), int(end_step)
        self.update_every_steps, self.scope = int(update_every_steps), scope
        check_structure(structure, final_sparsity=self.final_sparsity, nested=nested)
        kinds = unit_kinds(structure)
        self._units = Units(model, kinds, scope, score) if kinds else None
        if self._units is not None and self.final_sparsity > self._units.most:
            problem = f"{self.final_sparsity:g} with {structure}, of which one a module stays"
            raise UserError(
                "target sparsity", problem, f"at most {math.floor(1000 * self._units.most) / 1000:.3f} here"
            )
        self._structure = unstructured if kinds else get_structure(structure)
        self._schedule = choices.function(schedules, schedule, "sparsity.schedule")
        self._weights = select_parameters(model, include, exclude) if self._units is None else self._units.weights
        vectors = [name for name, weight in self._weights.items() if weight.dim() < 2]
        if vectors and structure != "unstructured" and not kinds:
            problem = f"{structure}, and {vectors[0]} is a vector"
            raise UserError("sparsity.structure", problem, "matrices", "name it in sparsity.exclude")
        self._members = [
            {n: torch.ones_like(w, dtype=torch.bool) for n, w in self._weights.items()} for _ in self.sparsities
        ]
        self._hidden: Dict[str, Tensor] = {n: torch.zeros_like(w.data) for n, w in self._weights.items()}
        self.current_target, self.frozen = 0.0, False

    @property
    def names(self) -> List[str]:
        return list(self._weights)

    @property
    def _masks(self) -> Dict[str, Tensor]:
        """Of the densest member: those of the model."""
        return self._members[0]

    def turn(self, step: int) -> int:
        """Whose turn update number ``step`` is: the sparsest member's, the densest's (0), then those between."""
        last = len(self.sparsities) - 1
        return [last, 0, *range(1, last)][step % (last + 1)] if last else 0

    @contextlib.contextmanager
    def shown(
        self, step: int, on_grid: Callable[[Dict[str, Tensor]], Dict[str, Tensor]] = lambda tensors: tensors
    ) -> Iterator[None]:
        """For forward and backward pass of update number ``step``: the model is the member whose turn it is.

        What that member does not keep and the densest does gets no gradient.  ``on_grid``: rounds weights, by name; a
        member has fewer, so other scales.
        """
        number = self.turn(step)
        if number == 0:
            yield
            return
        masks, kept = self._members[number], {name: weight.detach().clone() for name, weight in self._weights.items()}
        with torch.no_grad():
            masked = {name: weight.masked_fill(~masks[name], 0.0) for name, weight in self._weights.items()}
            for name, value in on_grid(masked).items():
                self._weights[name].copy_(value)
        yield
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(kept[name])
                if weight.grad is not None:
                    weight.grad.masked_fill_(self._masks[name] & ~masks[name], 0.0)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Call once after optimizer step number ``step`` (the first is 1); hides what the masks hide."""
        if self.frozen:
            self.apply_masks()
            return
        ending = step >= self.end_step
        updating = step > self.begin_step and (step - self.begin_step) % self.update_every_steps == 0
        for name, weight in self._weights.items():
            weight.add_(self._hidden[name])  # dense weights
        if ending or updating:
            begin = self.initial_sparsity / self.final_sparsity if self.final_sparsity else 0.0
            ramps = [(self.begin_step, self.end_step, final, begin * final) for final in self.sparsities[:-1]]
            ramps += [(self.begin_step, self.end_step, self.final_sparsity, self.initial_sparsity)]
            targets = [self._schedule(step, *ramp) for ramp in ramps]
            self.current_target = targets[-1]
            self._members = self._compute_members(targets)
        for name, weight in self._weights.items():
            self._hidden[name] = weight.masked_fill(self._masks[name], 0.0)
            weight.masked_fill_(~self._masks[name], 0.0)
        if ending:
            self._freeze()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """After the ramp, zero the gradients of dropped weights (call before clipping); on the ramp, nothing."""
        if self.frozen:
            for name, weight in self._weights.items():
                if weight.grad is not None:
                    weight.grad.masked_fill_(~self._masks[name], 0.0)

    @torch.no_grad()
    def see_gradients(self) -> None:
        """Call before each optimizer step, with its gradients there: scores of units may be made of them."""
        if not self.frozen and self._units is not None:
            self._units.see_gradients()

    @torch.no_grad()
    def apply_masks(self, model: Optional[nn.Module] = None) -> None:
        """Set dropped weights to exactly 0, in the model in training or another one of the same architecture."""
        weights = self._weights if model is None else dict(model.named_parameters())
        for name, weight_mask in self._masks.items():
            weights[name].masked_fill_(~weight_mask.to(weights[name].device), 0.0)

    def finalize(self) -> None:
        """End with the present masks: dropped weights are exactly 0 and nothing is kept to bring them back."""
        self._freeze()
        self.apply_masks()

    def sparsity_report(self, model: nn.Module, member: int = 0) -> Dict[str, Tuple[int, int]]:
        """Name -> (non-zero weights, weights) of the matched parameters, counted in ``model``; or in what of it a
        sparser member has."""
        masks, weights = self._members[member], dict(model.named_parameters())
        if member == 0:
            return sparsity_report(model, self.names)
        return {n: (int(torch.count_nonzero(weights[n] * masks[n])), masks[n].numel()) for n in self.names}

    def cut(self, tensors: Dict[str, Tensor], member: int = 0) -> Dict[str, Tensor]:
        """A state dict of the model without the units that are hidden; as it is where zeros have another structure.

        ``member``: number in ``sparsities``; of a sparser one than the model, its zeros are put in first.
        """
        masks = self._members[member]
        if member:
            zeros = {name: ~mask.to(tensors[name].device) for name, mask in masks.items()}
            tensors = {**tensors, **{name: tensors[name].masked_fill(zeros[name], 0.0) for name in zeros}}
        return self._units.cut(tensors, masks) if self._units is not None else tensors

    def state_dict(self) -> Dict[str, Tensor]:
        """All that a resumed run needs beside the model's own weights: a flat dict of CPU or device tensors."""
        state = {
            f"{n}.weight_mask{_of(k)}": m.clone() for k, masks in enumerate(self._members) for n, m in masks.items()
        }
        state.update({f"{n}.hidden": h.clone() for n, h in self._hidden.items()})
        state["frozen"] = torch.tensor(self.frozen)
        state["current_target"] = torch.tensor(self.current_target, dtype=torch.float64)
        state["settings"] = self._settings()
        if self._units is not None:
            state["changes"] = self._units.changes.clone()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Continue from ``state_dict()``; the model must already hold the weights saved at the same time.

        Raises:
          UserError: the state belongs to other matrices, shapes, or another ramp; nothing is changed then.
        """
        frozen = bool(state["frozen"]) if "frozen" in state else False
        members = range(len(self._members))
        expected = {f"{n}.weight_mask{_of(k)}": w.shape for k in members for n, w in self._weights.items()}
        if not frozen:
            expected.update({f"{n}.hidden": w.shape for n, w in self._weights.items()})
        expected.update({"frozen": torch.Size(), "current_target": torch.Size(), "settings": self._settings().shape})
        if self._units is not None:
            expected["changes"] = self._units.changes.shape
        wrong = sorted(k for k in expected.keys() | state.keys() if k not in state or state[k].shape != expected.get(k))
        remedy = "use the settings of the interrupted run, or start afresh"
        if wrong:
            problem = f"{len(wrong)} entries missing, foreign or of another shape, e.g. {wrong[0]}"
            raise UserError("sparsifier state", problem, "a checkpoint of this system", remedy)
        if not torch.equal(state["settings"].cpu(), self._settings()):
            problem = f"final sparsity, begin, end, interval = {state['settings'].tolist()}"
            raise UserError("sparsifier state", problem, f"{self._settings().tolist()}", remedy)
        self._members = [
            {n: state[f"{n}.weight_mask{_of(k)}"].to(w.device, torch.bool).clone() for n, w in self._weights.items()}
            for k in members
        ]
        self._hidden = {} if frozen else {n: state[f"{n}.hidden"].to(w).clone() for n, w in self._weights.items()}
        self.current_target, self.frozen = float(state["current_target"]), frozen
        if self._units is not None:
            self._units.changes = state["changes"].to(self._units.changes)

    def _settings(self) -> Tensor:
        ramp = [self.final_sparsity, self.begin_step, self.end_step, self.update_every_steps]
        return torch.tensor([*ramp, *self.sparsities[:-1]], dtype=torch.float64)

    def _compute_members(self, sparsities: Sequence[float]) -> List[Dict[str, Tensor]]:
        """Masks of all members, the densest first; each sparser one of what the one before it keeps."""
        dense = {name: weight.clone() for name, weight in self._weights.items()} if len(sparsities) > 1 else {}
        members: List[Dict[str, Tensor]] = []
        for sparsity in sparsities:
            members.append(self._compute_masks(sparsity))
            if dense and self._units is None:  # units have an order, of which each member takes the first
                for name, weight in self._weights.items():
                    weight.masked_fill_(~members[-1][name], 0.0)
        for name, values in dense.items():
            self._weights[name].copy_(values)
        return members

    def _compute_masks(self, sparsity: float) -> Dict[str, Tensor]:
        """Masks from the dense weights, which the model holds at this moment."""
        if self._units is not None:
            return self._units.masks(sparsity)
        weights = [weight.data for weight in self._weights.values()]
        if self.scope == "per-layer":
            return {name: self._structure([weight], sparsity)[0] for name, weight in zip(self.names, weights)}
        share = LEAST_SHARE * (1.0 - sparsity)
        least = [self._structure([weight], 1.0 - max(share, 1.0 / weight.numel()))[0] for weight in weights]
        competing = [weight.masked_fill(mask, math.inf) for weight, mask in zip(weights, least)]
        return dict(zip(self.names, self._structure(competing, sparsity)))

    def _freeze(self) -> None:
        self.frozen, self._hidden = True, {}


def _of(member: int) -> str:
    """What the names of its masks end with; of the model's own, nothing."""
    return f".{member}" if member else ""

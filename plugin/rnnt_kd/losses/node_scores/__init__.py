"""Posteriors of blank, label and rest on the kept nodes, straight from the joiner's inputs.

    scores = node_scores(JoinerParts(am, lm, weight, bias), nodes)

The logits of the joiner, (B, T, s_range, C), never exist as a whole: three numbers of each node are
all that the transducer loss and the collapsed distillation term read, so a block of logits is
made, reduced and dropped, and made again in the backward pass, or kept for it while there is
memory.  Padded nodes are not computed at all.  Student (with gradient) and teacher (under
``torch.no_grad``) use the same function.

An implementation is a module ``<name>_impl.py`` of this package with two functions:

    why_not(joiner) -> None, or the reason why it cannot run on these tensors
    split_logits(am, lm, weight, bias, labels, am_rows, lm_rows, blank, activation, memory)
        -> (blank, label, log_rest), see ``torch_impl.py``

B = batch, T = frames, S = symbols, C = classes with blank, J = joiner dimension,
s_range = kept symbol positions a frame.
"""

import importlib
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Callable, List, NamedTuple, Optional

import torch
from torch import Tensor

from rnnt_kd import choices
from rnnt_kd.errors import UserError
from rnnt_kd.lattice.node_log_probs import hat_as_softmax, node_log_probs, normalised
from rnnt_kd.losses.kept_nodes import KeptNodes, check_classes
from rnnt_kd.losses.precision import no_autocast

AUTO_ORDER = ("triton", "torch")  # the last one runs on anything


class NodeScores(NamedTuple):
    """Log-probabilities on the kept nodes, each (B, T, s_range); 0 on padded nodes.

    The three sum to 1.  Where no symbol arc leaves a node (s = S_b), ``log_label`` is that of
    nothing, about -1e30, and everything but blank is the rest.
    """

    log_blank: Tensor
    log_label: Tensor
    log_rest: Tensor


class JoinerParts(NamedTuple):
    """A joiner ``linear(activation(am + lm))`` and its inputs.

    am:          (B, T, J), the encoder's side, projected; or pruned, (B, T, s_range, J).
    lm:          (B, S + 1, J), the predictor's side, projected; or pruned, (B, T, s_range, J).
    weight:      (C, J), of the output layer.
    bias:        (C,), or None.
    activation:  any differentiable function that works elementwise, without parameters to train; the
                 backward pass calls it again, and it must give the same.
    memory:      bytes of logits and activations that a forward pass may keep for its backward pass, which then has
                 a matrix product less; what does not fit is made again, and nothing changes but the time.  None:
                 half a gigabyte on a CPU, nothing elsewhere.  Triton keeps nothing.  A loss with a temperature other
                 than 1 has two passes.
    """

    am: Tensor
    lm: Tensor
    weight: Tensor
    bias: Optional[Tensor] = None
    activation: Callable[[Tensor], Tensor] = torch.tanh
    memory: Optional[int] = None

    def scores(self, nodes: KeptNodes, temperature: float = 1.0, impl: str = "auto") -> NodeScores:
        """See ``node_scores``."""
        return node_scores(self, nodes, temperature=temperature, impl=impl)

    def logits(self, nodes: KeptNodes) -> Tensor:
        """See ``joiner_logits``."""
        return joiner_logits(self, nodes)


@dataclass(frozen=True)
class Logits:
    """Whole logits on the kept nodes, (B, T, s_range, C) in float32 or float64; padded nodes may hold anything (in
    backward, as in k2: any number)."""

    values: Tensor

    def scores(self, nodes: KeptNodes, temperature: float = 1.0, impl: str = "auto") -> NodeScores:
        """What ``node_scores`` computes, but for padded nodes, which hold anything."""
        check_classes(nodes, self.values.shape[-1])
        values = self.values if temperature == 1.0 else self.values / temperature
        return NodeScores(*node_log_probs(values, nodes.labels, nodes.termination_symbol, nodes.use_hat_loss))

    def logits(self, nodes: KeptNodes) -> Tensor:
        return self.values

    def comparable(self, nodes: KeptNodes, temperature: float) -> Tensor:
        """(B, T, s_range, C), logits whose softmax is the distribution over all classes at ``temperature``."""
        values = self.values if temperature == 1.0 else self.values / temperature
        return hat_as_softmax(values, nodes.termination_symbol) if nodes.use_hat_loss else values


@dataclass(frozen=True)
class Posteriors:
    """Scores computed before: at temperature 1 and, where it is another, at that of the distillation."""

    at_one: NodeScores
    tempered: Optional[NodeScores] = None

    def scores(self, nodes: KeptNodes, temperature: float = 1.0, impl: str = "auto") -> NodeScores:
        """As they were given.  Raises UserError where those at ``temperature`` were not."""
        if temperature == 1.0:
            return self.at_one
        if self.tempered is None:
            raise UserError(
                "kd temperature",
                f"{temperature}, and a teacher given by its posteriors at temperature 1",
                "its posteriors at that temperature, too",
                "make the cache with this temperature, or give tempered_teacher",
            )
        return self.tempered


def node_scores(joiner: JoinerParts, nodes: KeptNodes, *, temperature: float = 1.0, impl: str = "auto") -> NodeScores:
    """Score every valid node (t < T_b, s <= S_b).

    Args:
      joiner:       any floating dtypes; the work is in float32 (float64 where am or weight is),
                    and gradients come back in the dtypes of the inputs.
      nodes:        ``losses.kept_nodes.kept_nodes(...)``.
      temperature:  divides the logits.
      impl:         "auto", or one of ``available_impls()``.

    Two runs on the same inputs and the same number of threads agree bit for bit on a CPU; see
    the implementations for other devices.

    Raises:
      UserError: shapes or devices that do not fit, labels that are no classes, an implementation
        that cannot run here.
    """
    _check(joiner, nodes)
    module = choose_impl(impl, joiner)
    am, lm = _once_per_frame(joiner.am), joiner.lm
    weight, bias = joiner.weight, joiner.bias
    if temperature != 1.0:
        weight = weight.to(_work_dtype(joiner)) / temperature
        bias = None if bias is None else bias.to(weight.dtype) / temperature

    mask = nodes.node_mask
    B, T, s_range = mask.shape
    utterance, frame, _ = mask.nonzero(as_tuple=True)
    flat = mask.reshape(-1).nonzero().squeeze(1)  # (N,), place of each valid node
    labels = nodes.labels[mask]
    am_rows = flat if am.ndim == 4 else utterance * T + frame
    lm_rows = flat if lm.ndim == 4 else utterance * lm.shape[1] + nodes.ranges[mask]
    J = weight.shape[1]
    with no_autocast(am):
        rows = (labels, am_rows, lm_rows, nodes.termination_symbol)
        blank, label, rest = module.split_logits(
            am.reshape(-1, J), lm.reshape(-1, J), weight, bias, *rows, joiner.activation, joiner.memory
        )
        three = normalised(blank, label, rest, labels, nodes.termination_symbol, nodes.use_hat_loss)

        def on_nodes(values: Tensor) -> Tensor:
            return values.new_zeros(B * T * s_range).index_put((flat,), values).reshape(B, T, s_range)

        return NodeScores(*map(on_nodes, three))


def available_impls() -> List[str]:
    """Names of the implementations of this package, installed or not: ["torch", "triton"]."""
    return choices.names(__name__, "_impl")


def choose_impl(name: str, joiner: JoinerParts) -> ModuleType:
    """The implementation called ``name``; "auto" is the fastest that can run on these tensors.

    Raises:
      UserError: no such implementation, or it cannot run on these tensors.
    """
    if name == "auto":
        for candidate in AUTO_ORDER:
            module = _import(candidate)
            reason = _why_not_by_itself(candidate, module, joiner)
            if reason is None:
                logging.getLogger(__name__).debug("node scores: %s, on %s", candidate, joiner.am.device)
                return module
            logging.getLogger(__name__).debug("node scores: not %s (%s)", candidate, reason)
        raise AssertionError("torch runs on anything")
    choices.check(name, ["auto", *available_impls()], "impl")
    module = _import(name)
    reason = module.why_not(joiner)
    if reason is not None:
        raise UserError("impl", f"{name!r} cannot run: {reason}", "an implementation that can", "choose auto or torch")
    return module


def joiner_logits(joiner: JoinerParts, nodes: KeptNodes) -> Tensor:
    """(B, T, s_range, C): whole logits, for comparisons that need every class.  Memory grows with C."""
    _check(joiner, nodes)
    B, T, s_range = nodes.ranges.shape
    am = joiner.am if joiner.am.ndim == 4 else joiner.am.unsqueeze(2)
    lm = joiner.lm
    if lm.ndim == 3:
        lm = lm[torch.arange(B, device=lm.device).reshape(B, 1, 1), nodes.ranges]
    dtype = _work_dtype(joiner)
    with no_autocast(am):
        inputs = (am.to(dtype) + lm.to(dtype)).masked_fill(~nodes.node_mask.unsqueeze(3), 0.0)  # padding may hold NaN
        hidden = joiner.activation(inputs)
        bias = None if joiner.bias is None else joiner.bias.to(dtype)
        return torch.nn.functional.linear(hidden, joiner.weight.to(dtype), bias)


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"rnnt_kd.losses.node_scores.{name}_impl")


def _why_not_by_itself(candidate: str, module: ModuleType, joiner: JoinerParts) -> Optional[str]:
    if candidate == "triton" and joiner.am.device.type == "cpu":  # asked first: importing Triton takes a second
        return "on a CPU Triton only interprets its kernels, for tests"
    return module.why_not(joiner)


def _once_per_frame(am: Tensor) -> Tensor:
    """k2's pruning repeats the encoder's side along s_range without copying it: take one of them."""
    return am[:, :, 0] if am.ndim == 4 and am.stride(2) == 0 else am


def _work_dtype(joiner: JoinerParts) -> torch.dtype:
    return torch.float64 if torch.float64 in (joiner.am.dtype, joiner.weight.dtype) else torch.float32


def _check(joiner: JoinerParts, nodes: KeptNodes) -> None:
    """Everything about the inputs that can be told from their shapes, dtypes and labels."""
    am, lm, weight, bias = joiner.am, joiner.lm, joiner.weight, joiner.bias
    B, T, s_range = nodes.ranges.shape
    S = nodes.symbols.shape[1]
    if joiner.memory is not None and joiner.memory < 0:
        raise UserError("memory", str(joiner.memory), "a number of bytes, at least 0", "or None for the default")
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        bias_shape = None if bias is None else tuple(bias.shape)
        raise UserError("output layer", f"weight {tuple(weight.shape)}, bias {bias_shape}", "(C, J) and (C,)")
    C, J = weight.shape
    pruned = (B, T, s_range, J)
    if am.shape not in ((B, T, J), pruned) or lm.shape not in ((B, S + 1, J), pruned):
        raise UserError(
            "joiner inputs",
            f"am {tuple(am.shape)}, lm {tuple(lm.shape)}",
            f"(B, T, J) = {(B, T, J)} and (B, S + 1, J) = {(B, S + 1, J)}, or both pruned, {pruned}",
            "give them projected to the width of the output layer, and of the same batch as the ranges",
        )
    given = [tensor for tensor in (am, lm, weight, bias) if tensor is not None]
    if not all(tensor.is_floating_point() for tensor in given):
        dtypes = ", ".join(str(tensor.dtype) for tensor in given)
        raise UserError("joiner inputs", f"dtypes {dtypes}", "floating point tensors")
    if torch.is_grad_enabled() and isinstance(joiner.activation, torch.nn.Module):
        if any(parameter.requires_grad for parameter in joiner.activation.parameters()):
            name = type(joiner.activation).__name__
            raise UserError("activation", f"{name} has parameters to train", "a function without any, such as tanh")
    probe = joiner.activation(torch.zeros(1, J, device=weight.device))
    if not isinstance(probe, Tensor) or probe.shape != (1, J):
        found = f"makes {tuple(probe.shape)}" if isinstance(probe, Tensor) else f"returns a {type(probe).__name__}"
        raise UserError("activation", f"{found} of (1, {J})", "an elementwise function")
    devices = {str(tensor.device) for tensor in (*given, nodes.ranges)}
    if len(devices) > 1:
        raise UserError("joiner inputs", "tensors on " + " and ".join(sorted(devices)), "one device")
    check_classes(nodes, C)

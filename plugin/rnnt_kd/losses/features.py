"""Feature distillation: layers of the student's encoder imitate those of a teacher that hears the same batch.

    L = T * mean over layers of ||h - t||^2 / ||t||^2

h, t: what a layer of the student and of the teacher gives, over the T valid frames of the batch (SquareHead, Kurtic et
al., arXiv 2310.06927).  Where the widths differ, h W stands for h: W maps h to t best in this batch, by least squares,
so it is neither learned nor stored; the batch needs many more frames than h is wide.  Where the student has fewer
layers, its k-th of n is compared with the teacher's round(k m / n)-th of m.

B batch, T' encoder frames, D and E widths of student and teacher.
"""

import contextlib
import re
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.losses.precision import at_least_float32, no_autocast

RIDGE = 1e-9  # of the mean of the diagonal: W of widths that say the same twice


def layer_names(model: nn.Module, patterns: Sequence[str], whose: str) -> List[str]:
    """The modules of ``model`` whose names match one of the regular expressions, in its order.

    Raises:
      UserError: a pattern that is none, or matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        try:
            found = any(re.fullmatch(pattern, name) for name in names)
        except re.error as error:
            raise UserError("kd.feature_layers", f"{pattern}: {error}", "a regular expression") from None
        if not found:
            lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
            expected = f"names as {lists[0]}.0" if lists else "names of modules"
            raise UserError("kd.feature_layers", f"{pattern} is no module of the {whose}", expected)
    return [name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)]


def paired_layers(student: nn.Module, teacher: nn.Module, patterns: Sequence[str]) -> Tuple[List[str], List[str]]:
    """The student's layers, and for each the teacher's that it imitates.

    Raises:
      UserError: as ``layer_names``; or the teacher has fewer.
    """
    own, theirs = layer_names(student, patterns, "student"), layer_names(teacher, patterns, "teacher")
    if len(own) > len(theirs):
        problem = f"{len(own)} of the student, {len(theirs)} of the teacher"
        raise UserError("kd.feature_layers", problem, "no more than the teacher has")
    return own, [theirs[(2 * k * len(theirs) + len(own)) // (2 * len(own)) - 1] for k in range(1, len(own) + 1)]


@contextlib.contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[List[Tensor]]:
    """What the layers ``names`` give while the block runs, in the order of ``names`` once it has ended."""
    given: Dict[str, Any] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: given.__setitem__(name, output)
        )
        for name in names
    ]
    outputs: List[Tensor] = []
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if not isinstance(given.get(name), Tensor) or given[name].dim() != 3:
            raise UserError("kd.feature_layers", f"{name} gives no (B, T', D)", "layers of which each gives one tensor")
        outputs.append(given[name])


def feature_loss(own: Sequence[Tensor], theirs: Sequence[Tensor], num_frames: Tensor, T: int) -> Tensor:
    """The sum over the batch, 0-dim float32; 0 of no layers.

    Args:
      own, theirs: (B, T', D) and (B, T', E) of each layer.
      num_frames:  (B,) integers, how many of the T' are valid.
      T:           T', to how many frames the student's encoder pads.
    Raises:
      UserError: layers of other shapes.
    """
    total = torch.zeros((), device=num_frames.device)
    for h, t in zip(own, theirs, strict=True):
        if not h.shape[:2] == t.shape[:2] == (len(num_frames), T):
            problem = f"gives {tuple(h.shape)} in the student and {tuple(t.shape)} in the teacher"
            expected = f"({len(num_frames)}, {T}, width) in both: utterances, frames of the encoder's output"
            raise UserError(
                "kd.feature_layers", problem, expected, "name layers of that form, or leave out kd.features"
            )
        with no_autocast(h):
            valid = torch.arange(h.shape[1], device=h.device) < num_frames.unsqueeze(1)
            h, t = at_least_float32(h)[valid], at_least_float32(t.detach())[valid]
            if h.shape[1] != t.shape[1]:
                h = h @ _best_map(h.detach(), t).to(h.dtype)
            total = total + (h - t).square().sum() / t.square().sum().clamp(min=1e-20)
    return total * num_frames.sum() / max(len(own), 1)


def _best_map(h: Tensor, t: Tensor) -> Tensor:
    """(D, E): the W of least ||h W - t||^2; its own gradient would be zero there."""
    h, t = h.double(), t.double()
    products = h.t() @ h
    products.diagonal().add_(RIDGE * products.diagonal().mean() + 1e-20)
    # Not finite where h is not: the batch is skipped then.
    return torch.linalg.solve_ex(products, h.t() @ t)[0]

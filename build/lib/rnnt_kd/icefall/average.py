"""``rnnt_kd.icefall average``: the averaged model as a checkpoint, which decode.py and export.py read."""

import io
from pathlib import Path
from typing import Callable, Optional

import torch

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.icefall.recipe import averaged, masks_of


def write_average(
    exp_dir: Path, epoch: Optional[int], avg: int, iter: Optional[int], use_averaged_model: bool, out: Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Write ``out``: called epoch-99.pt, decode.py takes it by --epoch 99 --avg 1 --use-averaged-model 0.

    Raises UserError as ``recipe.averaged``, or: ``out`` is there already.
    """
    if out.exists():
        raise UserError(out, "is there already", "the name of a new file", "name another, such as exp-avg/epoch-99.pt")
    state, saved, where = averaged(Path(exp_dir), epoch, avg, iter=iter, use_averaged_model=use_averaged_model)
    masks = masks_of(saved)
    content = io.BytesIO()
    torch.save({"model": state, **saved}, content)
    atomic.write_bytes(out, content.getvalue())
    zeros, all_weights = (sum(int(f(state[name])) for name in masks) for f in (_zeros, torch.numel))
    share = f"; {zeros / all_weights:.2%} of its sparsified weights are 0" if masks else ""
    say(f"{out}: {where}{share}")


def _zeros(weight: torch.Tensor) -> int:
    return weight.numel() - int(torch.count_nonzero(weight))

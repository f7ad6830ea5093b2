"""Zeros among the weights while icefall's train.py runs, whatever its optimizer, and after its averaging.

icefall averages by the difference of two running averages, whose rounding leaves few zeros.  So a checkpoint holds the
masks, and ``recipe.averaged`` applies them after the averaging.
"""

import contextlib
import logging
import re
import types
from typing import Any, Dict, Iterator, List, Optional

import torch
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.sparsifier import Sparsifier

MATCHED = r"(encoder|encoder_embed|joiner)\..*weight[^.]*"  # an LSTM's are weight_ih_l0, weight_hh_l0 ...
DENSE = r".*(norm|bias|depthwise|embedding|simple_|ctc_|attention_decoder|weight_scale).*"


def sparsified(model: nn.Module) -> List[str]:
    """Names of the matrices of a model of icefall's that are sparsified: of the encoder, its front end, the joiner."""
    kernels = {f"{name}.weight" for name, module in model.named_modules() if getattr(module, "groups", 1) > 1}
    names = [name for name, weight in model.named_parameters() if weight.dim() >= 2 and name not in kernels]
    return [name for name in names if re.fullmatch(MATCHED, name) and not re.fullmatch(DENSE, name)]


class SparseTraining:
    """Args: as of ``Sparsifier``; begin and end are counted in steps of the optimizer.

    Attributes:
      model:  in training, set by whoever builds it, before there is an optimizer.
      saved:  ``state_dict()`` of the checkpoint that training goes on from, or None.
    """

    def __init__(
        self,
        target: float,
        begin: int,
        end: int,
        structure: str = "unstructured",
        scope: str = "per-layer",
        update_every: int = 10,
    ):
        self._settings = (target, begin, end, update_every, structure, scope)
        self.model: Optional[nn.Module] = None
        self.saved: Optional[Dict[str, Any]] = None
        self.steps = 0
        self._sparsifier: Optional[Sparsifier] = None

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside, the first optimizer that is made works on the model, and its steps are followed by ours."""
        original = torch.optim.Optimizer.__init__

        def init(optimizer, *args: Any, **kwargs: Any) -> None:
            original(optimizer, *args, **kwargs)
            if self._sparsifier is None and self.model is not None:
                self._begin()
                step = optimizer.step

                def stepping(_: Any, *args: Any, **kwargs: Any) -> Any:
                    result = step(*args, **kwargs)
                    self.steps += 1
                    assert self._sparsifier is not None
                    self._sparsifier.step(self.steps)
                    return result

                optimizer.step = types.MethodType(stepping, optimizer)  # torch's schedulers want a method

        torch.optim.Optimizer.__init__ = init  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.optim.Optimizer.__init__ = original  # type: ignore[method-assign]

    def _begin(self) -> None:
        """The model is on its device now, and has the weights of its checkpoint."""
        assert self.model is not None
        names = sparsified(self.model)
        if not names:
            raise UserError("--sparsity", "no weight of this model has a name of icefall's", f"such as {MATCHED}")
        self._sparsifier = Sparsifier(self.model, *self._settings, include=[re.escape(name) for name in names])
        if self.saved is not None:
            state = dict(self.saved)
            self.steps = int(state.pop("steps"))
            self._sparsifier.load_state_dict(state)
        logging.info(f"rnnt-kd: {len(names)} matrices become sparse, from step {self.steps} on")

    def state_dict(self) -> Optional[Dict[str, Any]]:
        if self._sparsifier is None:
            return None
        return {**self._sparsifier.state_dict(), "steps": self.steps}

    def finish(self) -> None:
        """Say how far it came."""
        if self._sparsifier is None or self.model is None:
            raise UserError("--sparsity", "train.py made no optimizer", "a training")
        counts = self._sparsifier.sparsity_report(self.model).values()
        zeros = 1.0 - sum(n for n, _ in counts) / sum(n for _, n in counts)
        more = "" if self._sparsifier.frozen else f": it ended in step {self.steps}, before the ramp did"
        logging.log(logging.INFO if not more else logging.WARNING, f"rnnt-kd: {zeros:.2%} of the weights are 0{more}")

"""The options of a search, and the one way in which every search is called.

    search(model, encoder_out, encoder_out_lens, beam=4, nbest=2, ...)   -> List[List[Hypothesis]]

  model:            a ``Transducer`` in eval mode.
  encoder_out:      (N, T, D), what ``model.encode`` gave, padding included.
  encoder_out_lens: (N,) int64, frames that are not padding; 0 is allowed.
  more:             the options below, by name.

It returns a list for each utterance: its best hypotheses, at most ``nbest`` and at least one, best first, no two with
the same tokens.  It raises UserError for options that it cannot honour, and where the model's output is not a number.
"""

import functools
from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence

from torch import Tensor

from rnnt_kd.decoding.graphs import Graph
from rnnt_kd.decoding.hypotheses import Hypothesis
from rnnt_kd.errors import UserError


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
      beam:     hypotheses kept after each frame (before merging); greedy search keeps one whatever is said here.
      blank_id: no token.
      unk_id:   counts as blank (see ``is_emitted``); None: a token like others.
      nbest:    hypotheses returned at most; there are never more than the search keeps.
      scorers:  language models and hot words (see ``scorers.py``); they add to the model's log-probabilities.
      graph:    what may be said (see ``graphs.py``); None: any tokens.
    Raises:
      UserError: ``beam`` or ``nbest`` < 1.
    """

    beam: int = 4
    blank_id: int = 0
    unk_id: Optional[int] = 1
    nbest: int = 1
    scorers: Sequence = ()
    graph: Optional[Graph] = None

    def __post_init__(self) -> None:
        for name, value in (("beam", self.beam), ("nbest", self.nbest)):
            if value < 1:
                raise UserError(name, str(value), "1 or more hypotheses")

    def refuse(self, option: str, search: str, reason: str, next_step: str) -> None:
        """UserError where an ``option`` is given that ``search`` cannot honour, for this reason."""
        if getattr(self, option):
            raise UserError(search, reason, "", next_step)


Search = Callable[..., List[List[Hypothesis]]]


def takes_options(search: Callable[[object, Tensor, Tensor, SearchOptions], List[List[Hypothesis]]]) -> Search:
    """``search`` with its options by name in place of one ``SearchOptions``."""

    @functools.wraps(search)
    def call(model, encoder_out: Tensor, encoder_out_lens: Tensor, **options) -> List[List[Hypothesis]]:
        return search(model, encoder_out, encoder_out_lens, SearchOptions(**options))

    return call

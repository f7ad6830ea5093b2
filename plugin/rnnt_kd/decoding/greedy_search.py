"""Greedy search: the most probable token of each frame, at most one a frame."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor

from rnnt_kd.decoding.hypotheses import Hypothesis, HypothesisTable, is_emitted
from rnnt_kd.errors import UserError


@torch.no_grad()
def search(
    model,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    *,
    beam: int = 1,
    blank_id: int = 0,
    unk_id: Optional[int] = 1,
    nbest: int = 1,
    scorers: Sequence = (),
) -> List[List[Hypothesis]]:
    """Recognise a batch.

    Args:
      model:            a ``Transducer`` in eval mode.
      encoder_out:      (N, T, D), what ``model.encode`` gave.
      encoder_out_lens: (N,) int64.
      beam:             not used; every search is called alike.
      blank_id:         no token.
      unk_id:           counts as blank (see ``is_emitted``); None: a token like others.
      nbest:            not used: there is one hypothesis.
      scorers:          none; a language model has no say where one path is followed.

    Returns:
      N lists of one hypothesis; of equally probable tokens the lowest id wins.  ``score`` is the
      log-probability of the one path that was followed.

    Raises:
      UserError: scorers were given, or the model's output is not a number.
    """
    if scorers:
        found = "follows one path, where a language model or hot words have nothing to choose from"
        raise UserError("greedy_search", found, "a search with several hypotheses", "take modified_beam_search")
    table = HypothesisTable(model, encoder_out, encoder_out_lens, 1)
    for frame in range(table.num_frames):
        log_probs = table.log_probs(frame)  # (n, 1, C)
        tokens = log_probs.argmax(-1)  # the first maximum
        chosen = log_probs.gather(2, tokens[:, :, None])[:, :, 0]
        scores = table.scores[: len(tokens)] + chosen
        table.extend(frame, torch.zeros_like(tokens), tokens, is_emitted(tokens, blank_id, unk_id), chosen, scores)
    return table.n_best()

"""Greedy search: the most probable token of each frame, at most one a frame."""

from typing import List, Optional

import torch
from torch import Tensor

from rnnt_kd.decoding.hypotheses import Hypothesis, HypothesisTable, is_emitted


@torch.no_grad()
def search(
    model, encoder_out: Tensor, encoder_out_lens: Tensor, *, beam: int = 1, blank_id: int = 0, unk_id: Optional[int] = 1
) -> List[Hypothesis]:
    """Recognise a batch.

    Args:
      model:            a ``Transducer`` in eval mode.
      encoder_out:      (N, T, D), what ``model.encode`` gave.
      encoder_out_lens: (N,) int64.
      beam:             not used; every search is called alike.
      blank_id:         no token.
      unk_id:           counts as blank (see ``is_emitted``); None: a token like others.

    Returns:
      N hypotheses; of equally probable tokens the lowest id wins.  ``score`` is the
      log-probability of the one path that was followed.
    """
    table = HypothesisTable(model, encoder_out, encoder_out_lens, 1)
    for frame in range(table.num_frames):
        log_probs = table.log_probs(frame)  # (n, 1, C)
        tokens = log_probs.argmax(-1)  # the first maximum
        scores = table.scores[: len(tokens)] + log_probs.gather(2, tokens[:, :, None])[:, :, 0]
        table.extend(frame, torch.zeros_like(tokens), tokens, is_emitted(tokens, blank_id, unk_id), scores)
    return table.best()

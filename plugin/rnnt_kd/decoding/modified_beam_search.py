"""Modified beam search: the best K hypotheses, at most one symbol a frame.

The search of icefall and sherpa-onnx (arXiv 2211.00484, section 2.4): in each frame every
hypothesis may go on with blank or with one symbol; the best K of all continuations
stay, and those that now have the same tokens become one, probabilities added.
"""

from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.hypotheses import Hypothesis, HypothesisTable, is_emitted


@torch.inference_mode()
def search(
    model,
    encoder_out: Tensor,
    encoder_out_lens: Tensor,
    *,
    beam: int = 4,
    blank_id: int = 0,
    unk_id: Optional[int] = 1,
    nbest: int = 1,
    scorers: Sequence = (),
) -> List[List[Hypothesis]]:
    """Recognise a batch; all hypotheses of all utterances share one joiner call a frame.

    Args:
      model:            a ``Transducer`` in eval mode.
      encoder_out:      (N, T, D), what ``model.encode`` gave.
      encoder_out_lens: (N,) int64.
      beam:             K, hypotheses kept after each frame (before merging).
      blank_id:         no token.
      unk_id:           counts as blank (see ``is_emitted``); None: a token like others.
      nbest:            hypotheses returned at most; there are never more than ``beam``.
      scorers:          language models and hot words (see ``scorers.py``); they add to the model's log-probabilities.

    Returns:
      N lists, best first by log-probability divided by length (``HypothesisTable.n_best``).
      Of equal continuations that of the better hypothesis wins, then the lowest token id.

    Raises:
      UserError: ``beam`` or ``nbest`` < 1, or the model's output is not a number.
    """
    table = HypothesisTable(model, encoder_out, encoder_out_lens, beam, scorers)
    for frame in range(table.num_frames):
        log_probs = table.log_probs(frame)  # (n, K, C)
        n, _, C = log_probs.shape
        totals = table.scores[:n, :, None] + log_probs
        if scorers:
            totals += table.added(frame, blank_id, unk_id)
        scores, choice = _first_maxima(totals.flatten(1), beam)
        parents, tokens = choice // C, choice % C
        chosen = log_probs.flatten(1).gather(1, choice)
        table.extend(frame, parents, tokens, is_emitted(tokens, blank_id, unk_id), chosen, scores)
        table.merge(frame)
    return table.n_best(nbest)


def _first_maxima(values: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    """The ``count`` largest of each row, and where: (n, count) twice; ``values`` is overwritten.

    Unlike ``torch.topk`` it orders equals by their index, on any device.  A row with too few
    values is filled up with -inf.
    """
    largest, places = [], []
    for _ in range(count):
        place = values.argmax(-1, keepdim=True)  # the first maximum
        largest.append(values.gather(1, place))
        places.append(place)
        values.scatter_(1, place, -torch.inf)
    return torch.cat(largest, 1), torch.cat(places, 1)

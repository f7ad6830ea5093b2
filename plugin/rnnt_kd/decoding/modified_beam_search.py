"""Modified beam search: the best K hypotheses, at most one symbol a frame.

The search of icefall and sherpa-onnx (arXiv 2211.00484, section 2.4): in each frame every
hypothesis may go on with blank or with one symbol; the best K of all continuations
stay, and those that now have the same tokens become one, probabilities added.
"""

from typing import List, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding import compiled
from rnnt_kd.decoding.hypotheses import Hypothesis, HypothesisTable, is_emitted
from rnnt_kd.decoding.options import SearchOptions, takes_options


@takes_options
@torch.inference_mode()
def search(model, encoder_out: Tensor, encoder_out_lens: Tensor, options: SearchOptions) -> List[List[Hypothesis]]:
    """The best hypotheses of a batch; all hypotheses of all utterances share one joiner call a frame.

    Best is the highest log-probability divided by length (``HypothesisTable.n_best``).
    Of equal continuations that of the better hypothesis wins, then the lowest token id.
    Raises UserError: see ``options.py``; a graph was given.
    """
    options.refuse("graph", "modified_beam_search", "knows no graph", "take fast_beam_search")
    if loop := compiled.loop_for(model, encoder_out, options):
        return compiled.search(loop, model, encoder_out, encoder_out_lens, options, options.beam)
    beam, scorers, blank_id, unk_id = options.beam, options.scorers, options.blank_id, options.unk_id
    table = HypothesisTable(model, encoder_out, encoder_out_lens, beam, scorers)
    for frame in range(table.num_frames):
        log_probs = table.log_probs(frame)  # (n, K, C)
        n, _, C = log_probs.shape
        totals = table.scores[:n, :, None] + log_probs
        if scorers:
            totals += table.added(frame, blank_id, unk_id)
        scores, choice = first_maxima(totals.flatten(1), beam)
        parents, tokens = choice // C, choice % C
        chosen = log_probs.flatten(1).gather(1, choice)
        table.extend(frame, parents, tokens, is_emitted(tokens, blank_id, unk_id), chosen, scores)
        table.merge(frame)
    return table.n_best(options.nbest)


def first_maxima(values: Tensor, count: int) -> Tuple[Tensor, Tensor]:
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

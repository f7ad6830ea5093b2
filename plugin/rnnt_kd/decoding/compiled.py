"""Greedy and modified beam search of the plain case in compiled code, one utterance after the other.

The plain case: on the CPU, float32 or float64, without scorers, with the stateless predictor and the tanh joiner, of at
most ``MOST_WEIGHTS`` output weights (beyond, products of all hypotheses of a batch at once gain more), and numba there.
Everything else runs as tensors; the results are the same to rounding.
"""

from types import ModuleType
from typing import List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.decoding.hypotheses import Hypothesis, not_a_number
from rnnt_kd.decoding.options import SearchOptions
from rnnt_kd.models.joiners.tanh import TanhJoiner
from rnnt_kd.models.predictors.stateless import StatelessPredictor

MOST_WEIGHTS = 2**18  # joiner_dim * vocabulary
CONTEXTS = 1024  # whose predictor outputs are kept


def loop_for(model, encoder_out: Tensor, options: SearchOptions) -> Optional[ModuleType]:
    """The module of the compiled loop, if this is the plain case and numba can be used."""
    predictor, joiner = model.predictor, model.joiner
    plain = (
        encoder_out.device.type == "cpu"
        and encoder_out.dtype in (torch.float32, torch.float64)
        and not options.scorers
        and type(predictor) is StatelessPredictor
        and type(joiner) is TanhJoiner
        and all(type(linear) is nn.Linear for linear in _maps(model))
        and joiner.output_linear.weight.numel() <= MOST_WEIGHTS
    )
    if not plain:
        return None
    try:
        import rnnt_kd.decoding.compiled_loop as loop
    except ImportError:
        return None
    return loop


def search(
    loop: ModuleType, model, encoder_out: Tensor, encoder_out_lens: Tensor, options: SearchOptions, beam: int
) -> List[List[Hypothesis]]:
    """As ``modified_beam_search.search``; greedy search is a ``beam`` of 1.  UserError: the model gave NaN."""
    lens = encoder_out_lens.tolist()
    am = model.joiner.encoder_proj(encoder_out[:, : max(lens, default=0)]).numpy()
    weights = [model.predictor.embedding.weight.numpy()]
    for linear in _maps(model):
        weights += [linear.weight.t().contiguous().numpy(), linear.bias.numpy()]
    start = np.array(model.predictor.start_context())
    silent = options.blank_id, -1 if options.unk_id is None else options.unk_id
    known, projected = np.full((CONTEXTS, len(start)), -2), np.empty((CONTEXTS, am.shape[2]), am.dtype)
    found: List[List[Hypothesis]] = []
    for place, length in enumerate(lens):
        scores, lengths, *said = loop.search(am[place, :length], *weights, start, *silent, beam, known, projected)
        if not len(scores):
            raise not_a_number(place)
        best = np.argsort(-scores / (lengths + len(start)), kind="stable")[: options.nbest].tolist()
        tokens, frames, log_probs = ([part[slot, : lengths[slot]].tolist() for slot in best] for part in said)
        parts = zip(tokens, frames, scores[best].tolist(), log_probs, strict=True)
        found.append([Hypothesis(*hypothesis) for hypothesis in parts])
    return found


def _maps(model) -> Tuple[nn.Linear, ...]:
    return model.predictor.context_proj, model.joiner.predictor_proj, model.joiner.output_linear

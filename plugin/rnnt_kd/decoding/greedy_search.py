"""Greedy search: the most probable token of each frame, at most one a frame.

Most frames say nothing, and until the next token the predictor's context stays.  So an utterance is not read frame by
frame but token by token (Bataev et al., arXiv 2406.06220): the joiner looks at the next few frames together, the
utterance goes on behind the first of them that has a token, or behind all.  Every utterance of the batch is read
at its own pace; what the joiner saw of frames behind a token is thrown away.
"""

from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnt_kd.decoding import compiled
from rnnt_kd.decoding.hypotheses import Hypothesis, is_emitted, not_a_number
from rnnt_kd.decoding.options import SearchOptions, takes_options

AHEAD = 8  # frames that the joiner looks at together: fewer need more steps, more are thrown away


@takes_options
@torch.inference_mode()
def search(model, encoder_out: Tensor, encoder_out_lens: Tensor, options: SearchOptions) -> List[List[Hypothesis]]:
    """One hypothesis for each utterance of a batch, for any ``beam`` and ``nbest``.

    Of equally probable tokens the lowest id wins.  ``score`` is the log-probability of the one path that was followed.
    Raises UserError: see ``options.py``; scorers or a graph were given.
    """
    choice = "follows one path, where a language model or hot words have nothing to choose from"
    options.refuse("scorers", "greedy_search", choice, "take modified_beam_search")
    options.refuse("graph", "greedy_search", "follows one path, which a graph may cut off", "take fast_beam_search")
    if loop := compiled.loop_for(model, encoder_out, options):
        return compiled.search(loop, model, encoder_out, encoder_out_lens, options, beam=1)
    blank_id, unk_id = options.blank_id, options.unk_id
    N, device, lens = len(encoder_out), encoder_out.device, encoder_out_lens.tolist()
    T = max(lens, default=0)
    if T == 0:
        return [[Hypothesis([], [], 0.0)] for _ in lens]
    joiner, project, predict = model.joiner, model.joiner.predictor_proj, model.predictor.tabulated()
    am = joiner.encoder_proj(encoder_out[:, :T]).flatten(0, 1)  # (N T, J), frame t of utterance i in row i T + t
    context = torch.tensor(model.predictor.start_context(), device=device).expand(N, -1)
    row = torch.arange(N, device=device) * T  # to be read next
    ends = row + torch.tensor(lens, device=device)
    ahead = torch.arange(AHEAD, device=device)
    seen, rows, firsts = [], [row], []
    while True:
        window = (row[:, None] + ahead).clamp(max=N * T - 1)  # behind an utterance's end: read, and not used
        logits = joiner(F.embedding(window, am), project(predict(context))[:, None])  # (N, AHEAD, C)
        tokens = logits.argmax(-1)  # the first maximum
        emitted = is_emitted(tokens, blank_id, unk_id)
        place = emitted.view(torch.uint8).argmax(-1, keepdim=True)  # of the first token, 0 where there is none
        hit, first = emitted.gather(1, place), tokens.gather(1, place)  # (N, 1)
        context = torch.where(hit, torch.cat((context[:, 1:], first), 1), context)
        row = row + torch.where(hit, place + 1, AHEAD)[:, 0]
        seen.append(logits)
        rows.append(row)
        firsts.append(first)
        if not (row < ends).any():
            break
    starts = torch.stack(rows, 1)  # (N, K + 1), K steps
    used = starts[:, :-1, None] + ahead < torch.minimum(starts[:, 1:], ends[:, None])[:, :, None]  # (N, K, AHEAD)
    log_probs = torch.stack(seen, 1)[used].log_softmax(-1).amax(-1)  # of each frame's token, all utterances in a row
    said = torch.cat(firsts, 1)
    said = said.masked_fill(~is_emitted(said, blank_id, unk_id), -1)
    return _hypotheses(said.tolist(), starts[:, 1:].tolist(), log_probs.double().tolist(), lens, T)


def _hypotheses(
    firsts: List[List[int]], starts: List[List[int]], log_probs: List[float], lens: List[int], T: int
) -> List[List[Hypothesis]]:
    """Put together what the steps gave.

    Args:
      firsts:    of each utterance, the token of each step, -1 for none.
      starts:    of each utterance, the row behind each step: a token was said in the frame before.
      log_probs: of each frame in turn.
    """
    found, begin = [], 0
    for place, length in enumerate(lens):
        mine, begin = log_probs[begin : begin + length], begin + length
        score = float(sum(mine))
        if score != score:
            raise not_a_number(place)
        steps = [(token, start - place * T - 1) for token, start in zip(firsts[place], starts[place]) if token >= 0]
        steps = [(token, time) for token, time in steps if time < length]
        tokens, times = [token for token, _ in steps], [time for _, time in steps]
        found.append([Hypothesis(tokens, times, score, [mine[time] for time in times])])
    return found

"""The table of hypotheses that frame-by-frame searches share, and its one model call a frame.

A search reads the frames in order.  In each frame it asks for the log-probabilities of
all hypotheses of all utterances at once, picks tokens, and writes them to the table:

    table = HypothesisTable(model, encoder_out, encoder_out_lens, beam)
    for frame in range(table.num_frames):
        log_probs = table.log_probs(frame)         # (n, K, C)
        ...
        table.extend(frame, parents, tokens, emitted, token_log_probs, scores)
    return table.n_best(nbest)

N utterances, n <= N of them still have the frame, K hypotheses an utterance ("slots"),
T frames, C vocabulary, L context of the predictor.  Inside, utterances are sorted by
length, so that those that have a frame are the first n rows: an utterance that ended
is not touched again, whatever it is batched with.
"""

import math
from dataclasses import dataclass, field
from typing import List, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rnnt_kd.errors import UserError

_WIDTH_EVERY = 16  # frames
_EMPTY = -1  # fills rows of tokens behind their last one; no token has this id


@dataclass(frozen=True)
class Hypothesis:
    """One utterance, recognised."""

    tokens: List[int]  # without blank
    timestamps: List[int]  # encoder frame in which each token was emitted
    score: float  # natural log of the probability, all merged paths together, and what the scorers added
    token_log_probs: List[float] = field(default_factory=list)  # the model's, of each token in its frame


class HypothesisTable:
    """All hypotheses of a batch, as tensors.

    Args:
      model:            a ``Transducer`` in eval mode; its predictor and joiner are used.
      encoder_out:      (N, T, D), the encoder's output, padding included.
      encoder_out_lens: (N,) int64, frames that are not padding; 0 is allowed.
      beam:             K, hypotheses an utterance.
      scorers:          what adds to the model's log-probabilities, see ``scorers.py``.

    Attributes:
      scores: (N, K) float64, log-probability; -inf marks a slot that is not in use.
    """

    def __init__(self, model, encoder_out: Tensor, encoder_out_lens: Tensor, beam: int, scorers: Sequence = ()):
        device, N = encoder_out.device, encoder_out.shape[0]
        lens, self._order = encoder_out_lens.to(device).sort(descending=True, stable=True)
        assert encoder_out_lens.shape == (N,), (encoder_out.shape, encoder_out_lens.shape)
        sorted_lens = lens.tolist()
        self.num_frames = sorted_lens[0] if sorted_lens else 0
        assert self.num_frames <= encoder_out.shape[1], (encoder_out.shape, sorted_lens)
        self._active = [sum(length > t for length in sorted_lens) for t in range(self.num_frames)]

        self._model = model
        self._am = model.joiner.encoder_proj(encoder_out[self._order])  # (N, T, J)
        self._predict = model.predictor.tabulated()
        start = model.predictor.start_context()  # [-1, blank] for a context of 2
        self._context = len(start)
        self._tokens = torch.full((N, beam, self._context + self.num_frames), _EMPTY, device=device)
        self._tokens[:, :, : self._context] = torch.tensor(start, device=device)
        self._width = self._context  # columns of tokens that may be in use
        self._past: List[Tuple[Tensor, Tensor, Tensor]] = []  # of each frame: parents, emitted, token_log_probs
        self._lengths = torch.zeros(N, beam, dtype=torch.int64, device=device)
        self._scorers = [scorer.to(device) for scorer in scorers]
        self._states = [torch.full((N, beam), scorer.start, device=device) for scorer in scorers]
        self.scores = torch.full((N, beam), -torch.inf, dtype=torch.float64, device=device)
        self.scores[:, 0] = 0.0

    def log_probs(self, frame: int) -> Tensor:
        """(n, K, C) float64: log p(token | frame, tokens so far), one joiner call."""
        n = self._active[frame]
        last = self._lengths[:n, :, None] + torch.arange(self._context, device=self._lengths.device)
        contexts = self._tokens[:n].gather(2, last)  # (n, K, L)
        lm = self._model.joiner.predictor_proj(self._predict(contexts.flatten(0, 1)))
        lm = lm.reshape(n, -1, lm.shape[-1])
        logits = self._model.joiner(self._am[:n, frame, None].expand_as(lm), lm)
        return logits.double().log_softmax(-1)

    def added(self, frame: int, blank_id: int, unk_id) -> Tensor:
        """(n, K, C) float64: what the scorers, one at least, add for each token; nothing for what is not said."""
        n = self._active[frame]
        total = sum(scorer.scores(states[:n]) for scorer, states in zip(self._scorers, self._states, strict=True))
        said = is_emitted(torch.arange(total.shape[-1], device=total.device), blank_id, unk_id)
        return torch.where(said, total, 0.0)

    def extend(
        self, frame: int, parents: Tensor, tokens: Tensor, emitted: Tensor, token_log_probs: Tensor, scores: Tensor
    ) -> None:
        """Replace the hypotheses of the utterances that have this frame.

        Args:
          frame:   index of the frame, kept as the timestamp.
          parents: (n, K) int64, the slot each new hypothesis continues.
          tokens:  (n, K) int64, what it says in this frame.
          emitted: (n, K) bool; False: nothing is appended (blank, or what counts as blank).
          token_log_probs: (n, K) float64, the model's log-probability of that token in this frame.
          scores:  (n, K) float64, log-probability of the new hypothesis.
        """
        n = self._active[frame]
        assert parents.shape == tokens.shape == emitted.shape == scores.shape == self.scores[:n].shape
        lengths = self._lengths[:n]
        if self._lengths.shape[1] > 1:
            rows = parents[:, :, None].expand(-1, -1, self._width)
            self._tokens[:n, :, : self._width] = self._tokens[:n, :, : self._width].gather(1, rows)
            lengths = lengths.gather(1, parents)
        said = torch.where(emitted, tokens, _EMPTY)
        self._tokens[:n].scatter_(2, (self._context + lengths)[:, :, None], said[:, :, None])
        self._lengths[:n] = lengths + emitted
        self._past.append((parents, emitted, token_log_probs))
        self._width += 1
        if frame % _WIDTH_EVERY == 0:  # a look at the device makes it wait, and spares it much
            self._width = self._context + int(self._lengths.max())
        for scorer, states in zip(self._scorers, self._states, strict=True):
            before = states[:n].gather(1, parents)
            states[:n] = torch.where(emitted, scorer.advance(before, tokens), before)
        self.scores[:n] = scores

    def merge(self, frame: int) -> None:
        """Add up the probabilities of slots that hold the same tokens.

        The first of them keeps the sum (and its timestamps and token log-probabilities), the others
        are freed.  Rows are compared whole: no hash that could collide.
        """
        n = self._active[frame]
        rows = self._tokens[:n, :, : self._width]
        same = (rows[:, :, None] == rows[:, None, :]).all(-1)  # (n, K, K)
        together = self.scores[:n, None, :].expand_as(same).masked_fill(~same, -torch.inf).logsumexp(-1)
        repeats = same.tril(-1).any(-1)  # an earlier slot has these tokens
        self.scores[:n] = together.masked_fill(repeats, -torch.inf)

    def n_best(self, nbest: int = 1) -> List[List[Hypothesis]]:
        """The best hypotheses of each utterance, best first, in the order the utterances were given.

        Best is the highest log-probability divided by the number of tokens, the start context
        counted too, as in icefall and sherpa-onnx; of equals, the first slot.

        Raises UserError: the model gave NaN.
        """
        if not self.scores.numel():
            return []
        totals = self.scores
        for scorer, states in zip(self._scorers, self._states, strict=True):
            totals = totals + scorer.finals(states)
        ranks = totals / (self._lengths + self._context)
        slots = ranks.sort(dim=-1, descending=True, stable=True).indices[:, :nbest]  # (N, nbest or K), NaN first
        rows = slots[:, :, None].expand(-1, -1, self._width - self._context)
        tokens = self._tokens[:, :, self._context : self._width].gather(1, rows).tolist()
        times, token_log_probs = self._trace(slots)
        lengths, scores = self._lengths.gather(1, slots).tolist(), totals.gather(1, slots).tolist()
        found: List[List[Hypothesis]] = [[] for _ in lengths]
        for row, place in enumerate(self._order.tolist()):
            if scores[row][0] != scores[row][0]:
                raise not_a_number(place)
            columns = zip(tokens[row], times[row], token_log_probs[row], lengths[row], scores[row])
            for rank, (*texts, length, score) in enumerate(columns):
                if rank == 0 or score > -math.inf:  # slots that are not in use come last
                    said, when, how_sure = (text[:length] for text in texts)
                    found[place].append(Hypothesis(said, when, score, how_sure))
        return found

    def _trace(self, slots: Tensor) -> Tuple[List, List]:
        """Frames and log-probabilities of the tokens of some slots (N, n): nested lists, longer than the tokens.

        ``extend`` only noted which slot each hypothesis continues; the frames come from one walk back through it.
        """
        if not self._past:
            return [[[]] * slots.shape[1]] * len(slots), [[[]] * slots.shape[1]] * len(slots)
        parents, emitted, log_probs = (
            pad_sequence(list(part), batch_first=True) for part in zip(*self._past, strict=True)
        )
        last, walked = slots[: parents.shape[1]], []  # utterances without a frame are left out
        # Backwards from the last frame: `last` (n, slots) is where the path of each slot stands after a frame.  An
        # utterance that ended earlier, in rows behind the first n, waits until the walk reaches its own last frame.
        for n, before in zip(reversed(self._active), reversed(parents)):
            walked.append(last)
            last = before.gather(1, last) if n == len(last) else torch.cat((before[:n].gather(1, last[:n]), last[n:]))
        path = torch.stack(walked[::-1])  # (T, n, slots)
        # A stable sort by "a token came here" puts the frames with a token first, in their order.
        times = emitted.gather(2, path).permute(1, 2, 0).to(torch.uint8)
        times = times.sort(dim=2, descending=True, stable=True).indices
        sure = log_probs.gather(2, path).permute(1, 2, 0).gather(2, times)
        nothing: List[List[List]] = [[[]] * slots.shape[1]] * (len(slots) - parents.shape[1])
        return times.tolist() + nothing, sure.tolist() + nothing


def not_a_number(place: int) -> UserError:
    """What to raise about an utterance of the batch."""
    what, next_step = "the model's output is not a number", "the weights are broken: train again"
    return UserError(f"utterance {place} of the batch", what, "finite logits", next_step)


def is_emitted(tokens: Tensor, blank_id: int, unk_id) -> Tensor:
    """True where a token is written down.

    ``<unk>`` counts as blank, as in sherpa-onnx: its log-probability is added to the score, the
    tokens and with them the predictor's context stay, and so it merges with the blank path.
    """
    emitted = tokens != blank_id
    return emitted if unk_id is None else emitted & (tokens != unk_id)

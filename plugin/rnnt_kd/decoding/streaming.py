"""Recognise while listening: features in, chunk by chunk; tokens so far out.

What sherpa-onnx's OnlineRecognizer does with the same model, step for step (version 2.0.1):
  * A chunk is decoded when one feature frame more than it needs is there.
  * One symbol a frame; ``<unk>`` counts as blank; best is the log-probability divided by the number
    of tokens, the context counted too.  Greedy and modified beam search.
  * After ``reset`` (at an endpoint) the encoder's caches stay, and times count from 0 again.  Beam search goes
    on from the start (log-probability 0) and, if the segment had labels, beside it from the last labels
    of every hypothesis, with its log-probability.  Greedy search goes on from the last labels; if
    the segment had none, those before it still serve the predictor until the next label, which it then
    sees as the first one.

    recognizer = StreamingRecognizer(model, search="greedy_search")
    for features in microphone:                  # (any number, 80)
        partial = recognizer.accept(features)    # a Hypothesis
        if recognizer.is_endpoint():
            recognizer.reset()
    recognizer.finish()                          # what is left, with silence behind it

Many streams in one process: ``accept_together`` puts those that have a chunk into one call of the encoder and, frame
by frame, of the joiner.
"""

import math
from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from rnnt_kd.data.audio_format import FRAME_SECONDS
from rnnt_kd.decoding.hypotheses import Hypothesis
from rnnt_kd.decoding.modified_beam_search import first_maxima
from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders.streaming_conformer import SILENCE
from rnnt_kd.models.interfaces import StreamingEncoder
from rnnt_kd.models.transducer import Transducer

SEARCHES = ("greedy_search", "modified_beam_search")
MOST_CONTEXTS = 10_000  # predictor outputs that are kept
# Endpoints, in seconds: (there must be speech, silence at the end at least, length at least); sherpa-onnx's defaults.
ENDPOINT_RULES = ((False, 2.4, 0.0), (True, 1.2, 0.0), (False, 0.0, 20.0))


class _Path(NamedTuple):
    """One hypothesis of a segment."""

    labels: Tuple[int, ...]  # the context first
    times: Tuple[int, ...] = ()  # encoder frames since the segment's start
    score: float = 0.0
    label_scores: Tuple[float, ...] = ()  # log-probability of each label that has a time
    trailing_blanks: int = 0
    heard: Optional[Tuple[int, ...]] = None  # context of the predictor, where it is not the last labels

    def context(self, size: int) -> Tuple[int, ...]:
        return self.labels[-size:] if self.heard is None else self.heard


@dataclass
class StreamingRecognizer:
    """One stream.

    Args:
      model:    a ``Transducer`` with a streaming encoder, in eval mode.
      search:   "greedy_search" or "modified_beam_search".
      beam:     hypotheses, for the latter.
      blank_id, unk_id: as the searches take them.
      chunk_frames: encoder frames a chunk; the model's own by default.

    Attributes:
      start_frame: feature frame (10 ms) in which the segment began.
      processed:   feature frames of the segment that are decoded.
    Raises:
      UserError: an encoder that cannot stream, an unknown search, no hypotheses, no frames.
    """

    model: Transducer
    search: str = "modified_beam_search"
    beam: int = 4
    blank_id: int = 0
    unk_id: Optional[int] = 1
    chunk_frames: Optional[int] = None
    start_frame: int = field(default=0, init=False)
    processed: int = field(default=0, init=False)

    def __post_init__(self):
        encoder = self.model.encoder
        if not isinstance(encoder, StreamingEncoder):
            problem = f"a {type(encoder).__name__}, which needs the whole utterance"
            raise UserError("encoder", problem, "a streaming encoder", "train with --role streaming_student")
        if self.search not in SEARCHES:
            raise UserError("search", f"'{self.search}' for a stream", f"one of: {', '.join(SEARCHES)}")
        chunk = self.chunk_frames = encoder.chunk_frames if self.chunk_frames is None else self.chunk_frames
        for name, value in (("beam", self.beam), ("chunk_frames", chunk)):
            if value < 1:
                raise UserError(name, str(value), "1 or more")
        self._encoder, self._needed = encoder, encoder.feature_frames(chunk)
        self._step = encoder.subsampling_factor * chunk
        self._start = tuple(self.model.predictor.start_context())
        self._width = 1 if self.search == "greedy_search" else self.beam
        self._caches = encoder.init_state(1)
        self._features = self._caches[0].new_zeros(0, 0)
        self._paths: List[_Path] = [_Path(self._start)]
        self._frames = 0  # encoder frames of the segment
        self._known: Dict[Tuple[int, ...], Tensor] = {}  # context -> projected predictor output

    def accept(self, features: Tensor) -> Hypothesis:
        """Decode the chunks that (T, 80) float32 log-mel frames complete; T may be 0.  Returns ``result()``."""
        return accept_together([self], [features])[0]

    def finish(self) -> Hypothesis:
        """Decode what is left, followed by as much silence as it takes.

        It is the silence that sherpa-onnx's user must append, but in features: those of audio with
        silence behind it differ in the last frame or two of the audio, whose windows reach into it.
        """
        left = self._features
        return self.accept(left.new_full((self._needed + 1, left.size(1)), SILENCE)) if left.size(1) else self.result()

    def result(self) -> Hypothesis:
        """The best hypothesis of the segment so far; times in encoder frames (40 ms) since the segment's start."""
        best = self._best()
        labels = list(best.labels[len(self._start) :])
        return Hypothesis(labels, list(best.times), best.score, list(best.label_scores))

    def is_endpoint(self) -> bool:
        """Has the speaker come to an end?  By ``ENDPOINT_RULES``, as sherpa-onnx has them."""
        blank_frames = self._best().trailing_blanks * self._encoder.subsampling_factor
        length, silence = (np.float32(frames) * np.float32(FRAME_SECONDS) for frames in (self.processed, blank_frames))
        return any(
            (length > silence or not speech) and silence >= np.float32(enough) and length >= np.float32(long)
            for speech, enough, long in ENDPOINT_RULES  # in float32, as there: 120 frames are not yet 1.2 s
        )

    def reset(self) -> None:
        """Begin a new segment; see the top of this file for what stays."""
        best, context = self._best(), len(self._start)
        has_labels = len(best.labels) > context
        if self.search == "greedy_search":
            self._paths = [_Path(best.labels[-context:] if has_labels else self._start, heard=best.context(context))]
        else:
            kept = [_Path(path.labels[-context:], score=path.score) for path in self._paths if has_labels]
            self._paths = _merged([_Path(self._start), *kept])
        self.start_frame += self.processed
        self.processed = self._frames = 0

    def _with(self, path: _Path, label: int, log_prob: float) -> _Path:
        if label in (self.blank_id, self.unk_id):
            return path._replace(score=path.score + log_prob, trailing_blanks=path.trailing_blanks + 1)
        times, label_scores = (*path.times, self._frames), (*path.label_scores, log_prob)
        return _Path((*path.labels, label), times, path.score + log_prob, label_scores)

    def _predicted(self, contexts: List[Tuple[int, ...]]) -> Tensor:
        if len(self._known) > MOST_CONTEXTS:
            self._known.clear()
        new = list({context: None for context in contexts if context not in self._known})
        if new:
            y = torch.tensor(new, device=self._features.device)
            self._known.update(
                zip(new, self.model.joiner.predictor_proj(self.model.predictor(y, need_pad=False))[:, 0])
            )
        return torch.stack([self._known[context] for context in contexts])

    def _best(self) -> _Path:
        return max(self._paths, key=lambda path: path.score / len(path.labels))  # the first of equals


def accept_together(streams: Sequence[StreamingRecognizer], features: Sequence[Tensor]) -> List[Hypothesis]:
    """``accept`` of each stream with its features: the same results, to rounding, in less time.

    The streams may begin, end and be reset when they like; they share the model and ``chunk_frames``.
    """
    for stream, more in zip(streams, features, strict=True):
        assert stream.model is streams[0].model and stream.chunk_frames == streams[0].chunk_frames
        more = more.to(stream._caches[0])
        stream._features = torch.cat((stream._features.view(-1, more.size(1)), more))
    while ready := [stream for stream in streams if stream._features.size(0) > stream._needed]:
        _decode(ready)
    return [stream.result() for stream in streams]


@torch.no_grad()
def _decode(streams: Sequence[StreamingRecognizer]) -> None:
    """The next chunk of each."""
    first, size = streams[0], len(streams[0]._start)
    features = torch.stack([stream._features[: stream._needed] for stream in streams])
    processed = torch.tensor([stream.processed for stream in streams], device=features.device)
    caches = [torch.cat(parts, dim=2) for parts in zip(*(stream._caches for stream in streams), strict=True)]
    out, *caches = first._encoder.streaming_forward(features, *caches, processed)
    for place, stream in enumerate(streams):
        stream._caches = tuple(cache[:, :, place : place + 1] for cache in caches)
        stream._features = stream._features[stream._step :]
        stream.processed += stream._step
    for am in first.model.joiner.encoder_proj(out).transpose(0, 1):  # (N, J)
        most = max(len(stream._paths) for stream in streams)
        paths = [stream._paths + [stream._paths[0]] * (most - len(stream._paths)) for stream in streams]
        lm = first._predicted([path.context(size) for row in paths for path in row]).view(len(streams), most, -1)
        log_probs = first.model.joiner(am[:, None].expand_as(lm), lm).double().log_softmax(-1)  # (N, K, C)
        if not torch.isfinite(log_probs).all():
            raise UserError("the model's output", "not a number", "finite logits", "train the system again")
        so_far = [[path.score for path in stream._paths] for stream in streams]
        scores = log_probs.new_tensor([row + [-math.inf] * (most - len(row)) for row in so_far])
        totals, choices = first_maxima((log_probs + scores[:, :, None]).flatten(1), max(s._width for s in streams))
        sure, parents, labels = (
            log_probs.flatten(1).gather(1, choices),
            choices // log_probs.size(2),
            choices % log_probs.size(2),
        )
        for stream, *columns in zip(streams, *(part.tolist() for part in (parents, labels, sure, totals))):
            found = [(parent, label, value) for parent, label, value, total in zip(*columns) if total > -math.inf]
            stream._paths = _merged([stream._with(stream._paths[p], *rest) for p, *rest in found[: stream._width]])
            stream._frames += 1


def _merged(paths: List[_Path]) -> List[_Path]:
    """Paths of the same labels become the first of them, with the sum of their probabilities."""
    together: Dict[Tuple[int, ...], List[_Path]] = {}
    for path in paths:
        together.setdefault(path.labels, []).append(path)
    return [
        same[0] if len(same) == 1 else same[0]._replace(score=_log_sum([path.score for path in same]))
        for same in together.values()
    ]


def _log_sum(values: List[float]) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))

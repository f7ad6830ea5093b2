"""Promises of the streaming recogniser, against the searches on whole utterances and against sherpa-onnx's steps."""

import math

import pytest
import torch
from model_cases import transducer

from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.decoding.streaming import SEARCHES, StreamingRecognizer, accept_together
from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders.streaming_conformer import SILENCE

CHUNK, NEEDED, STEP = 4, 19, 16  # encoder frames; feature frames a chunk needs, and goes on by
OPTIONS = dict(num_layers=2, dim=16, feedforward_dim=16, num_heads=2, depthwise_kernel=5, subsampling_channels=2)


def make_model(seed=0, vocab_size=7, encoder="streaming_conformer", **options):
    model = transducer(
        seed, encoder=encoder, encoder_options={**OPTIONS, **options}, ctc_head=False, vocab_size=vocab_size
    )
    model.double().eval()  # so that no rounding decides
    with torch.no_grad():  # frames of noise are much alike: spread what the joiner sees of them
        seen = model.joiner.encoder_proj(model.encode(log_mel(800, seed=99)[None], torch.tensor([800]))[0][0])
        model.joiner.encoder_proj.weight.div_(seen.std(0).unsqueeze(1))
        model.joiner.encoder_proj.bias.copy_(-seen.mean(0) / seen.std(0))
        model.joiner.output_linear.bias[0] += 1.0
    return model


def streaming_model(seed=0):
    return make_model(seed, chunk_frames=CHUNK, left_frames=6)


def log_mel(frames, seed=0):
    return torch.randn(frames, 80, generator=torch.Generator().manual_seed(seed)).double() * 3.5 - 7.5


def encoder_frames(model, features):
    """What the encoder gives for the chunks that are decoded, in one masked pass."""
    chunks = len([start for start in range(0, len(features), STEP) if start + NEEDED < len(features)])
    with torch.no_grad():
        return model.encode(features[None], torch.tensor([len(features)]))[0][0, : chunks * CHUNK]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("piece", [1, 7, 10, 16, 19, 40, 500])
def test_pieces_of_any_length_give_what_the_whole_gives(search, piece):
    model = streaming_model()
    features = log_mel(500)
    recognizer = StreamingRecognizer(model, search=search, beam=3)
    assert recognizer.accept(features[:0]).tokens == []
    partial = [recognizer.accept(features[i : i + piece]) for i in range(0, len(features), piece)]
    out = encoder_frames(model, features)
    assert recognizer.processed == 4 * len(out) == 16 * 31
    whole = get_search(search)(model, out[None], torch.tensor([len(out)]), beam=3)[0][0]
    found = recognizer.result()
    assert found.tokens == whole.tokens and found.timestamps == whole.timestamps and len(found.tokens) > 20
    assert found.token_log_probs == pytest.approx(whole.token_log_probs, abs=1e-4)
    if search == "modified_beam_search":
        assert found.score == pytest.approx(whole.score)
    if search == "greedy_search":  # what was said stays said
        assert all(found.tokens[: len(earlier.tokens)] == earlier.tokens for earlier in partial)


@pytest.mark.parametrize("frames", [0, 1, 5, 16, 18, 19, 20, 35, 36])
def test_finish_decodes_every_frame_of_the_audio(frames):
    model = streaming_model()
    recognizer = StreamingRecognizer(model, search="greedy_search")
    features = log_mel(frames)
    recognizer.accept(features)
    found = recognizer.finish()
    assert recognizer.processed >= frames  # and the look-ahead behind them
    padded = torch.cat((features, features.new_full((NEEDED + 1, 80), SILENCE)))
    out = encoder_frames(model, padded)
    whole = get_search("greedy_search")(model, out[None], torch.tensor([len(out)]))[0][0]
    assert found.tokens == whole.tokens and found.timestamps == whole.timestamps


class Sherpa:
    """sherpa-onnx's decoders and its reset, its data and its steps, for one stream."""

    def __init__(self, model, search, beam):
        self.model, self.search, self.beam = model, search, beam
        self.decoder_out = None  # greedy search's; a reset does not clear it
        self.empty_result()

    def empty_result(self):
        self.tokens, self.timestamps, self.offset = [-1, 0], [], 0
        self.hyps = {(-1, 0): ([], 0.0)}

    def predictor(self, tokens):
        return self.model.joiner.predictor_proj(self.model.predictor(torch.tensor([tokens[-2:]]), need_pad=False))[0, 0]

    def decode(self, chunk):
        with torch.no_grad():
            frames = self.model.joiner.encoder_proj(chunk)
            (self.greedy if self.search == "greedy_search" else self.beam_search)(frames)
        self.offset += len(frames)

    def greedy(self, frames):
        if self.decoder_out is None:
            self.decoder_out = self.predictor(self.tokens)
        for t, frame in enumerate(frames):
            token = int(self.model.joiner(frame, self.decoder_out).argmax())
            if token not in (0, 1):
                self.tokens.append(token)
                self.timestamps.append(t + self.offset)
                self.decoder_out = self.predictor(self.tokens)

    def beam_search(self, frames):
        for t, frame in enumerate(frames):
            found = []
            for ys, (times, score) in self.hyps.items():
                log_probs = self.model.joiner(frame, self.predictor(list(ys))).log_softmax(-1)
                found += [(score + float(value), token, ys, times) for token, value in enumerate(log_probs)]
            self.hyps = {}
            for score, token, ys, times in sorted(found, key=lambda row: -row[0])[: self.beam]:
                self.add((*ys, token) if token > 1 else ys, [*times, t + self.offset] if token > 1 else times, score)
        best = max(self.hyps, key=lambda ys: self.hyps[ys][1] / len(ys))
        self.tokens, self.timestamps = list(best), self.hyps[best][0]

    def add(self, ys, times, score):
        if ys in self.hyps:
            times, other = self.hyps[ys]
            score = math.log(math.exp(score) + math.exp(other))
        self.hyps[ys] = (times, score)

    def reset(self):
        tokens, hyps = self.tokens, self.hyps
        self.empty_result()
        if len(tokens) > 2:
            for ys, (_, score) in hyps.items():
                self.add(ys[-2:], [], score)
            self.tokens = tokens[-2:]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("seed", range(12))
def test_resets_go_on_as_sherpa_onnx_does(search, seed):
    model = streaming_model(seed)
    with torch.no_grad():
        model.joiner.output_linear.bias[0] += 0.5  # some segments stay empty
    features = log_mel(STEP * 40 + 4, seed)
    frames = encoder_frames(model, features).split(CHUNK)
    resets = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:12].tolist()
    ours, theirs = StreamingRecognizer(model, search=search, beam=3), Sherpa(model, search, beam=3)
    segments = begins = 0
    for index, chunk in enumerate(frames):
        ours.accept(features[NEEDED + 1 + STEP * (index - 1) :][:STEP] if index else features[: NEEDED + 1])
        theirs.decode(chunk)
        found = ours.result()
        assert found.tokens == theirs.tokens[2:] and found.timestamps == theirs.timestamps
        assert ours.start_frame == begins and ours.processed == STEP * (index + 1) - begins
        if index in resets or index - 1 in resets:  # twice in a row, too: a segment that has no time to say much
            segments += bool(found.tokens)
            ours.reset(), theirs.reset()
            begins = STEP * (index + 1)
            assert ours.result().tokens == [] and ours.processed == 0
    assert segments > 3


@pytest.mark.parametrize("seed", range(4))
def test_streams_together_are_the_streams_alone(seed):
    """Whatever their lengths, searches and beams; some begin late, end early, are reset or have nothing to say now."""
    model, draw = streaming_model(seed), torch.Generator().manual_seed(seed)
    options = [dict(search=SEARCHES[place % 2], beam=1 + place) for place in range(5)]
    alone, together = ([StreamingRecognizer(model, **chosen) for chosen in options] for _ in range(2))
    tokens = 0
    for step in range(30):
        here = [place for place in range(5) if step >= 3 * place and not (place == 1 and step > 15)]
        sizes = torch.randint(0, 60, (5,), generator=draw).tolist()
        pieces = [log_mel(sizes[place], 100 * step + place) for place in here]
        expected = [alone[place].accept(piece) for place, piece in zip(here, pieces, strict=True)]
        found = accept_together([together[place] for place in here], pieces)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.tokens, ours.timestamps) == (theirs.tokens, theirs.timestamps)
            assert ours.score == pytest.approx(theirs.score) and len(ours.token_log_probs) == len(theirs.tokens)
            assert ours.token_log_probs == pytest.approx(theirs.token_log_probs)
        tokens += sum(len(hypothesis.tokens) for hypothesis in found)
        if step % 7 == 6:
            alone[step % 5].reset(), together[step % 5].reset()
    assert tokens > 100
    assert [stream.finish().tokens for stream in together] == [stream.finish().tokens for stream in alone]
    assert accept_together([], []) == []


def test_endpoints_are_sherpa_onnxs():
    recognizer = StreamingRecognizer(streaming_model(), search="greedy_search")

    def at(frames, blanks):
        recognizer.processed = frames
        recognizer._paths = [type(recognizer._paths[0])((-1, 0), trailing_blanks=blanks)]
        return recognizer.is_endpoint()

    assert not at(0, 0)
    assert not at(200, 30)  # 1.2 s of silence after speech; in float32, as there, a hair less
    assert at(200, 31)
    assert not at(140, 35) and not at(236, 59)  # nothing was said: 2.4 s of silence it takes
    assert at(244, 61)
    assert not at(1996, 0) and at(2004, 0)  # 20 s


@pytest.mark.parametrize(
    "options, message",
    [({"search": "fast"}, "'fast' for a stream"), ({"beam": 0}, "beam: 0"), ({"chunk_frames": 0}, "chunk_frames: 0")],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        StreamingRecognizer(streaming_model(), **options)


def test_a_system_of_whole_utterances_and_numbers_that_are_none_are_refused():
    with pytest.raises(UserError, match="a Conformer, which needs the whole utterance"):
        StreamingRecognizer(make_model(encoder="conformer"))
    model = streaming_model()
    with torch.no_grad():
        model.joiner.output_linear.bias[3] = float("nan")
    with pytest.raises(UserError, match="not a number"):
        StreamingRecognizer(model).accept(log_mel(40))

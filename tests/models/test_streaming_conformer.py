"""Promises of the streaming conformer: chunk by chunk equals the masked full pass, looks ahead, padding, weights."""

import math

import numpy as np
import pytest
import torch
from model_cases import assert_batched_equals_alone, log_mel, transducer

from rnnt_kd import choices
from rnnt_kd.data.speech import filter_banks
from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders.conformer import Conformer
from rnnt_kd.models.encoders.streaming_conformer import SILENCE, StreamingConformer

EVERYTHING = 0  # eval_chunk_frames
SMALL = dict(dim=32, num_layers=3, num_heads=4, feedforward_dim=48, depthwise_kernel=7, subsampling_channels=6)


def make_encoder(dropout=0.0, **options):
    torch.manual_seed(1)
    encoder = StreamingConformer(dropout=dropout, **{**SMALL, "chunk_frames": 4, "left_frames": 10, **options}).eval()
    for name, parameter in encoder.named_parameters():  # biases and norms too: nothing may hide at its initial value
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return encoder


def chunk_by_chunk(encoder, x, caches=None):
    """(N, T, 80), T a multiple of 4 C, in chunks with the look-ahead the front end needs."""
    step = 4 * encoder.chunk_frames
    x = torch.cat((x, x.new_full((x.size(0), 3, x.size(2)), SILENCE)), dim=1)
    caches, outputs = encoder.init_state(x.size(0)) if caches is None else caches, []
    for start in range(0, x.size(1) - 3, step):
        processed = torch.full((x.size(0),), start)
        chunk = x[:, start : start + encoder.feature_frames(encoder.chunk_frames)]
        out, *caches = encoder.streaming_forward(chunk, *caches, processed)
        assert out.shape[1] == encoder.chunk_frames
        outputs.append(out)
    return torch.cat(outputs, dim=1), caches


@pytest.mark.parametrize("chunk, left", [(4, 10), (1, 1), (16, 64), (3, 2), (5, 5)])
def test_chunk_by_chunk_equals_the_masked_full_pass(chunk, left):
    encoder = make_encoder(chunk_frames=chunk, left_frames=left)
    frames = 4 * chunk * 7
    x = log_mel(2, frames, 80)
    whole, lens = encoder(x, torch.tensor([frames, frames]))
    pieces, _ = chunk_by_chunk(encoder, x)
    assert lens.tolist() == [frames // 4] * 2
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


def test_the_caches_are_all_that_a_chunk_knows_of_the_past():
    encoder = make_encoder()
    x = log_mel(3, 160, 80)
    whole, _ = chunk_by_chunk(encoder, x)
    with_look_ahead = x[:, :83]  # the last chunk of the first half needs three frames of the second
    first, caches = [], encoder.init_state(3)
    for start in range(0, 80, 16):
        out, *caches = encoder.streaming_forward(with_look_ahead[:, start : start + 19], *caches, torch.zeros(3).long())
        first.append(out)
    second, _ = chunk_by_chunk(encoder, x[:, 80:], caches)  # processed_lens from 0 again, as after an endpoint
    torch.testing.assert_close(torch.cat((*first, second), dim=1), whole, atol=1e-5, rtol=0)


def test_left_context_ends_where_it_is_said_to():
    encoder = make_encoder(num_layers=1, chunk_frames=2, left_frames=4, depthwise_kernel=3)
    x = log_mel(1, 160, 80)
    other = x.clone()
    other[:, :7] += 2.0  # output frames 0 and 1
    differs = (encoder(other, torch.tensor([160]))[0] - encoder(x, torch.tensor([160]))[0]).abs().amax(-1)[0] > 0
    # Chunks of frames 0-1, 2-3, 4-5 see frame 0 or 1 (4 - 4 = 0); the convolution's three taps reach two frames on.
    assert differs[:8].all() and not differs[8:].any()


def test_full_context_sees_everything_but_through_causal_convolutions():
    encoder = make_encoder()
    encoder.eval_chunk_frames = EVERYTHING
    x = log_mel(1, 120, 80)
    other = x.clone()
    other[:, -1] += 2.0
    lens = torch.tensor([120])
    assert ((encoder(other, lens)[0] - encoder(x, lens)[0]).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("eval_chunk", [4, EVERYTHING])
def test_batched_equals_alone_whatever_the_padding_holds(eval_chunk):
    encoder = make_encoder()
    encoder.eval_chunk_frames = eval_chunk
    assert_batched_equals_alone(encoder)


def test_training_draws_its_chunks_and_the_seed_decides():
    encoder = make_encoder().train()
    x, lens = log_mel(1, 400, 80), torch.tensor([400])
    outputs = []
    for seed in (1, 2, 3, 4, 5, 6, 1):
        torch.manual_seed(seed)
        outputs.append(encoder(x, lens)[0])
    assert torch.equal(outputs[0], outputs[-1])
    assert len({round(float(out.detach().sum()), 3) for out in outputs[:-1]}) > 2
    outputs[0].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_a_full_context_teachers_weights_fit():
    assert {"conformer", "streaming_conformer"} <= set(choices.names("rnnt_kd.models.encoders"))
    teacher = Conformer(**SMALL)
    student = make_encoder()
    student.load_state_dict(teacher.state_dict())  # strict
    built = transducer(encoder="streaming_conformer", encoder_options={"chunk_frames": 8})
    assert built.encoder.eval_chunk_frames == 8 and built.encoder.subsampling_factor == 4


@pytest.mark.parametrize("option", [{"input_norm": "utterance"}, {"chunk_frames": 0}, {"left_frames": 0}])
def test_impossible_options_are_named(option):
    with pytest.raises(UserError, match=next(iter(option))):
        make_encoder(**option)


def test_silence_is_what_the_features_of_zeros_are():
    features = filter_banks(np.zeros(16000, dtype=np.float32))
    assert features.min() == features.max() == pytest.approx(SILENCE, abs=1e-5)


def test_behind_an_utterance_the_front_end_sees_silence():
    front_end = make_encoder().subsampling
    for frames in range(1, 14):
        x = log_mel(1, frames, 80)
        out, lens = front_end(x, torch.tensor([frames]))
        assert lens.tolist() == [math.ceil(frames / 4)]
        stream = torch.cat((x, x.new_full((1, 40, 80), SILENCE)), dim=1)
        torch.testing.assert_close(out[:, : lens[0]], front_end.chunk(stream)[:, : lens[0]], atol=1e-6, rtol=0)


def test_a_teachers_past_taps_act_as_before():
    teacher = Conformer(**SMALL).eval()
    student = make_encoder()
    student.load_state_dict(StreamingConformer.weights_from_full_context(teacher.state_dict()))
    theirs, ours = teacher.layers[1].convolution, student.layers[1].convolution
    with torch.no_grad():
        theirs.depthwise.weight[..., 4:] = 0.0  # of 7 taps: those that see the future
    x, nothing = torch.randn(2, 20, 32), torch.zeros(2, 20, 1, dtype=torch.bool)
    torch.testing.assert_close(ours(x, nothing), theirs(x, nothing), atol=1e-6, rtol=0)

"""Promises of the conformer encoder: padding, short inputs, lengths, relative positions, plain-loop references."""

import itertools
import math

import pytest
import torch
from model_cases import assert_batched_equals_alone, log_mel

from rnnt_kd.models.encoders.conformer import Conformer, ConvolutionModule, SelfAttention, rotary_tables

SMALL = dict(dim=32, num_layers=2, num_heads=4, feedforward_dim=48, depthwise_kernel=7, subsampling_channels=6)


def make_encoder(dropout=0.0, **options):
    torch.manual_seed(1)
    return Conformer(dropout=dropout, **{**SMALL, **options})


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("input_norm", ["utterance", "fixed"])
def test_batched_equals_alone_whatever_the_padding_holds(training, input_norm):
    assert_batched_equals_alone(make_encoder(input_norm=input_norm).train(training))


def test_padding_has_no_gradient():
    encoder = make_encoder()
    x = log_mel(3, 41, 80).requires_grad_()
    lens = torch.tensor([41, 18, 7])
    encoder(x, lens)[0].square().sum().backward()
    for n, length in enumerate(lens):
        assert (x.grad[n, length:] == 0).all()
        assert (x.grad[n, :length].abs().sum(1) > 0).all()  # and every frame counts


@pytest.mark.parametrize("frames", range(1, 21))
def test_short_inputs_give_at_least_one_frame(frames):
    encoder = make_encoder().train()
    out, lens = encoder(log_mel(2, frames, 80), torch.tensor([frames, 1]))
    assert out.shape == (2, math.ceil(frames / 4), 32) and lens.tolist() == [math.ceil(frames / 4), 1]
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_output_lengths_is_what_forward_returns():
    lens = torch.arange(1, 60)
    _, out_lens = make_encoder()(log_mel(len(lens), 59, 80), lens)
    assert torch.equal(Conformer.output_lengths(lens), out_lens) and out_lens.dtype == torch.int64


def test_loudness_makes_no_difference():
    encoder, x, lens = make_encoder(), log_mel(1, 50, 80), torch.tensor([50])
    torch.testing.assert_close(encoder(x + 4.6, lens)[0], encoder(x, lens)[0], atol=1e-5, rtol=0)


def test_every_parameter_gets_a_gradient():
    encoder = make_encoder(dropout=0.1).train()
    out, _ = encoder(log_mel(2, 60, 80), torch.tensor([60, 33]))
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_only():
    encoder, x, lens = make_encoder(dropout=0.5), log_mel(1, 40, 80), torch.tensor([40])
    encoder.train()
    assert not torch.equal(encoder(x, lens)[0], encoder(x, lens)[0])
    encoder.eval()
    assert torch.equal(encoder(x, lens)[0], encoder(x, lens)[0])


def test_attention_equals_plain_loops_with_complex_rotation():
    torch.manual_seed(2)
    dim, heads, frames, valid = 12, 2, 6, 5
    attention = SelfAttention(dim, heads, dim // heads).double()
    x = torch.randn(1, frames, dim, dtype=torch.float64)
    bias = torch.where(torch.arange(frames) >= valid, -1e4, 0.0).double().view(1, 1, frames)
    got = attention(x, bias, *rotary_tables(frames, dim // heads, x))[0]

    size = dim // heads
    qkv = attention.qkv_proj(attention.norm(x[0])).view(frames, 3, heads, size)
    rates = torch.tensor([10000.0 ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)
    contexts = []
    for t in range(frames):
        row = []
        for h in range(heads):
            scores = []
            for u in range(valid):  # a relative rotation: only t - u enters
                q = torch.complex(qkv[t, 0, h, : size // 2], qkv[t, 0, h, size // 2 :])
                k = torch.complex(qkv[u, 1, h, : size // 2], qkv[u, 1, h, size // 2 :])
                turn = torch.polar(torch.ones_like(rates), (t - u) * rates)
                scores.append((q * turn * k.conj()).real.sum() / math.sqrt(size))
            weights = torch.stack(scores).softmax(0)
            row.append(sum(weights[u] * qkv[u, 2, h] for u in range(valid)))
        contexts.append(torch.cat(row))
    expected = attention.out_proj(torch.stack(contexts))
    torch.testing.assert_close(got[:valid], expected[:valid], atol=1e-6, rtol=0)  # angles are computed in float32


def test_convolution_module_equals_plain_loops():
    torch.manual_seed(3)
    dim, kernel, frames, valid = 4, 5, 7, 6
    module = ConvolutionModule(dim, kernel, dim).double()
    x = torch.randn(1, frames, dim, dtype=torch.float64)
    got = module(x, (torch.arange(frames) >= valid).view(1, frames, 1))[0, :valid]
    inner = module.pointwise_in(module.norm(x[0]))
    gated = inner[:, :dim] * torch.sigmoid(inner[:, dim:])
    mixed = module.depthwise.bias.expand(valid, dim).clone()
    for t, d, j in itertools.product(range(valid), range(dim), range(kernel)):
        if 0 <= t + j - kernel // 2 < valid:
            mixed[t, d] += module.depthwise.weight[d, 0, j] * gated[t + j - kernel // 2, d]
    normed = module.depthwise_norm(mixed)
    torch.testing.assert_close(got, module.pointwise_out(normed * torch.sigmoid(normed)))

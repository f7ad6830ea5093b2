"""Small transducers and features for tests."""

import math

import torch

from rnnt_kd.models import build_transducer


def transducer(seed=0, **changes):
    """The weights of a seed; ``changes`` are arguments of ``build_transducer``."""
    given = dict(encoder="conformer", size="tiny", encoder_options={}, predictor_dim=8, joiner_dim=8, dropout=0.1)
    given.update(ctc_head=True, vocab_size=5, blank_id=0)
    torch.manual_seed(seed)
    return build_transducer(**{**given, **changes})


def log_mel(*shape):
    """Noise as loud as speech in the logarithm."""
    return torch.randn(*shape) * 3.5 - 7.5


def assert_batched_equals_alone(encoder):
    """Whatever the padding holds; and behind an utterance the output is zero."""
    lens = torch.tensor([37, 101, 1, 64, 98, 4])
    x = log_mel(len(lens), 101, 80)
    for garbage in (0.0, -23.0, 1e4, 3e38):
        padded = x.clone()
        for n, length in enumerate(lens):
            padded[n, length:] = garbage
        out, out_lens = encoder(padded, lens)
        assert torch.isfinite(out).all()
        for n, length in enumerate(lens):
            alone, alone_lens = encoder(x[n : n + 1, :length], lens[n : n + 1])
            assert out_lens[n] == alone_lens[0] == alone.size(1) == math.ceil(int(length) / 4)
            torch.testing.assert_close(out[n, : out_lens[n]], alone[0], atol=1e-5, rtol=0)
            assert (out[n, out_lens[n] :] == 0).all()

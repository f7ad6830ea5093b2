"""The compiled conformer equals the module in torch, for any length, size and pattern of zeros."""

import numpy as np
import pytest
import torch

from rnnt_kd.errors import UserError
from rnnt_kd.models.encoders.conformer import SIZES, Conformer
from rnnt_kd_engine import Batches, available_engines, compile_encoder
from rnnt_kd_engine import operations as op
from rnnt_kd_engine.kernels import ADD, GATE, SILU, STORE
from rnnt_kd_engine.numba_engine import NumbaEncoder
from rnnt_kd_engine.packing import Packed

SMALL = dict(dim=32, num_layers=2, num_heads=4, feedforward_dim=48, depthwise_kernel=7, subsampling_channels=8)
SPARSE = ("linear", "proj", "pointwise")


def make_encoder(**options):
    """With norms and biases that are not 1 and 0."""
    torch.manual_seed(1)
    encoder = Conformer(dropout=0.0, **{**SMALL, **options}).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn_like(parameter)
    return encoder


def sparsified(encoder, height, width, kept=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, weight in encoder.named_parameters():
        if weight.dim() == 2 and any(part in name for part in SPARSE):
            outputs, inputs = weight.shape
            mask = torch.rand(-(-outputs // height), -(-inputs // width), generator=generator) < kept
            weight *= mask.repeat_interleave(height, 0).repeat_interleave(width, 1)[:outputs, :inputs]
    return encoder


def log_mel(frames, bins=80):
    return torch.randn(frames, bins, generator=torch.Generator().manual_seed(frames)) * 3.5 - 7.5


def by_torch(encoder, x):
    return encoder(x[None], torch.tensor([len(x)]))[0][0]


def assert_equal(encoder, compiled, lengths, bins=80):
    for x in (log_mel(frames, bins) for frames in lengths):
        torch.testing.assert_close(compiled(x), by_torch(encoder, x), atol=1e-4, rtol=0, msg=f"{len(x)} frames")


@pytest.mark.parametrize(
    "block, kept, rows",
    [((1, 1), 0.5, rows) for rows in (8, 4, 1)]
    + [(block, 0.1, None) for block in ((1, 1), (16, 1), (1, 16), (4, 4), (16, 16))]
    + [((16, 16), 0.0, None)],
)
def test_every_structure_of_zeros_and_kind_of_group(block, kept, rows):
    encoder = sparsified(make_encoder(), *block, kept=kept)
    assert_equal(encoder, NumbaEncoder(encoder, rows), [1, 7, 50, 130, 259, 401, 515])


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        *(SIZES[size] for size in ("tiny", "S")),  # of the recipes
        *(dict(feature_dim=bins) for bins in (1, 2, 3, 5, 78, 79)),
        dict(input_norm="fixed"),
        dict(dim=24, num_heads=2),  # rows of a head: 8 + 4
        dict(dim=20, num_heads=2, feedforward_dim=37),  # no multiple of any tile
        dict(dim=12, num_heads=6),
        dict(subsampling_channels=6),
        dict(subsampling_channels=4, depthwise_kernel=1),
        dict(depthwise_kernel=31),
        dict(num_layers=1),
        dict(layer_widths=[[1, 5, 9, 47], [3, 40, 32, 3]]),  # what is left when units are cut out
        dict(layer_widths=[[0] * 4, [3, 40, 32, 3]]),  # and a layer
    ],
    ids=str,
)
def test_every_size_and_length(options):
    encoder, bins = make_encoder(**options), options.get("feature_dim", 80)
    lengths = [1, 6, 63, 130, 200, 231, 259]
    if not options:
        lengths = [*range(1, 10), 63, 64, 65, 121, 127, 128, 129, 250, 255, 256, 257, 258, 333, 700]
    assert_equal(encoder, NumbaEncoder(encoder, feature_dim=bins), lengths, bins)


def test_results_depend_on_the_utterance_and_the_weights_of_the_compilation_alone():
    encoder = make_encoder()
    used, x = NumbaEncoder(encoder), log_mel(90)
    alone = NumbaEncoder(encoder)(x)
    kept = alone.clone()
    used(log_mel(900) * 50.0)
    found = used(x)
    assert torch.equal(found, alone)
    used(log_mel(60))
    assert torch.equal(found, kept)  # not overwritten by the next utterance
    for parameter in encoder.parameters():
        parameter.zero_()
    assert torch.equal(used(x), kept)


def test_float64_strided_loud_and_constant_features():
    encoder, x = make_encoder(), log_mel(120)
    compiled = NumbaEncoder(encoder)
    assert torch.equal(compiled(x.double()), compiled(x.t().contiguous().t()))
    for odd in (torch.full((120, 80), -23.026), torch.full((120, 80), 1e4), x + 100.0):
        torch.testing.assert_close(compiled(odd), by_torch(encoder, odd), atol=1e-4, rtol=0)


def test_engines_by_name():
    class Other(Conformer):
        pass

    assert {"numba", "torch", "torch_bsr"} <= set(available_engines())
    with pytest.raises(UserError, match="'nunba'.*numba.*torch"):
        compile_encoder(make_encoder(), "nunba")
    with pytest.raises(UserError, match="Other"):
        compile_encoder(Other(dropout=0.0, **SMALL), "numba")
    encoder, x = make_encoder(), log_mel(99)
    compiled = compile_encoder(encoder, "torch")  # the module itself
    assert torch.equal(compiled(x), by_torch(encoder, x))
    assert compiled.num_bytes == sum(4 * p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("block", [4, 16])
def test_torch_with_square_blocks(block):
    encoder = sparsified(make_encoder(dim=40), block, block, kept=0.3)
    compiled = compile_encoder(encoder, "torch_bsr")
    assert_equal(encoder, compiled, [1, 50])
    assert compiled.num_bytes < 0.8 * compile_encoder(encoder, "torch").num_bytes


@pytest.mark.parametrize("kept, found", [(1.0, "dense"), (0.5, "unstructured")])
def test_torch_without_square_blocks(kept, found):
    with pytest.raises(UserError, match=f"{found}.*square blocks"):
        compile_encoder(sparsified(make_encoder(), 1, 1, kept), "torch_bsr")


@pytest.mark.parametrize("mode", [STORE, SILU, ADD, GATE])
@pytest.mark.parametrize("rows", [8, 4, 1])
@pytest.mark.parametrize("outputs, inputs, vectors", [(8, 5, 2), (19, 33, 7), (16, 1, 3)])
def test_products_equal_numpy(outputs, inputs, vectors, rows, mode):
    """One operation alone, in float64 as reference; what lies beside the sum is left alone."""
    rng, stride = np.random.default_rng(0), vectors * op.LANES
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), outputs))
    packed = Packed()
    parts = packed.add_matrix(weight, bias, inputs, rows)
    steps = np.array([(op.MULTIPLY, p.rows, p.first, p.last, 0, mode) for p in parts], np.int64)
    buffer = rng.standard_normal((inputs + outputs + 1, stride)).astype(np.float32)
    x, y, after = (part.astype(np.float64) for part in np.split(buffer, [inputs, inputs + outputs]))
    none = np.zeros(1, np.float32)
    more = dict(frames=stride, stride=stride, odd=False, cos=none, sin=none, scratch=none)
    op.run(steps, **packed.finish(), buffer=buffer.reshape(-1), **more)
    total = weight.astype(np.float64) @ x + bias[:, None]
    gate = 1.0 / (1.0 + np.exp(-total))
    wanted = {STORE: total, SILU: total * gate, ADD: y + total, GATE: y * gate}[mode]
    np.testing.assert_allclose(buffer[inputs : inputs + outputs], wanted, atol=3e-5)
    np.testing.assert_array_equal(buffer[:inputs], x.astype(np.float32))
    np.testing.assert_array_equal(buffer[inputs + outputs :], after.astype(np.float32))


@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_batches_are_encoded_as_the_encoder_does_and_nothing_is_of_no_frames(engine):
    encoder, lens = make_encoder(), torch.tensor([50, 0, 7, 130])
    batches, x = Batches(encoder, engine), torch.stack([log_mel(130)] * 4)
    out, out_lens = batches(x, lens)
    assert out_lens.tolist() == encoder.output_lengths(lens).tolist() and out.shape == (4, 33, encoder.output_dim)
    for row, frames, length in zip(out, lens.tolist(), out_lens.tolist()):
        if frames:
            torch.testing.assert_close(row[:length], by_torch(encoder, x[0, :frames]), atol=1e-4, rtol=0)
        assert not row[length:].any()

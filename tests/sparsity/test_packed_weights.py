"""Packed tensors come back bit for bit, whatever the bits are; sizes are what the format says."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.sparsity.packed_weights import is_smaller_packed, pack, pack_all, unpack

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(INTEGERS[tensor.element_size()]).numpy().tobytes()


def packed_by_hand(values, width):
    """Bits and values of a list of raw bytes of ``width`` each, by plain loops."""
    bits, kept = bytearray(-(-len(values) // 8)), b""
    for index, value in enumerate(values):
        if value != bytes(width):
            bits[index // 8] |= 128 >> index % 8
            kept += value
    return bytes(bits), kept


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
@given(st.lists(st.integers(0, 5), max_size=3), st.floats(0, 1), st.integers(0, 1000), st.booleans())
def test_every_dtype_and_shape_comes_back(dtype, shape, density, seed, is_view):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-100, 100, shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    tensor = values.to(dtype)
    if is_view and shape:  # not contiguous
        tensor, shape = tensor.permute(*reversed(range(len(shape)))), shape[::-1]
    bits, kept = pack(tensor)
    width, content = tensor.element_size(), raw(tensor)
    pieces = [content[start : start + width] for start in range(0, len(content), width)]
    assert (bits.numpy().tobytes(), raw(kept)) == packed_by_hand(pieces, width)
    again = unpack(bits, kept, tuple(shape))
    assert again.dtype == dtype and again.shape == tensor.shape and raw(again) == content


@given(st.lists(st.one_of(st.just(0), st.integers(0, 2**32 - 1)), min_size=1, max_size=70))
def test_every_float32_keeps_its_bits(patterns):
    """NaNs with any payload, both infinities, denormals, -0.0."""
    patterns += [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800000, 1, 0]
    tensor = torch.from_numpy(np.array(patterns, dtype=np.uint32).view(np.float32).copy())
    again = unpack(*pack(tensor), tuple(tensor.shape))
    assert again.numpy().tobytes() == struct.pack(f"<{len(patterns)}I", *patterns)


def test_what_does_not_shrink_is_left_alone():
    few, many = torch.zeros(64), torch.ones(64)
    few[3], many[3] = 1.0, 0.0
    others = {"many": many, "empty": torch.zeros(0), "flag": torch.zeros((), dtype=torch.bool)}
    assert set(pack_all({"few": few, **others})) == {"few"}
    for nonzero in range(0, 33):
        tensor = (torch.arange(32) < nonzero).float()
        assert is_smaller_packed(tensor) == (4 + 4 * nonzero < 128)


@pytest.mark.parametrize("bits, values, shape", [
    ([0b10000000], [1.0, 2.0], (8,)),  # a value too many
    ([0b11000000], [1.0], (8,)),  # one too few
    ([0b10000001], [1.0, 2.0], (7,)),  # a bit behind the end
    ([0b10000000], [1.0], (9,)),  # another shape
    ([0b10000000, 0], [1.0], (8,)),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(bits, values, shape):
    with pytest.raises(ValueError):
        unpack(torch.tensor(bits, dtype=torch.uint8), torch.tensor(values), shape)

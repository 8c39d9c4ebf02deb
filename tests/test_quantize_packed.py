"""The GPTQ tensor layout: packing is the identity there and back, and equals the published layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greenllm.errors import GreenError
from greenllm.quantize.grid import Grid
from greenllm.quantize.packed import BITS, Packed, from_gptq, pack_bits, to_gptq, unpack_bits
from greenllm.quantize.rtn import round_to_nearest


@settings(max_examples=40, deadline=None)
@given(bits=st.sampled_from(BITS), groups=st.integers(1, 4), columns=st.integers(1, 9), seed=st.integers(0, 999))
def test_unpacking_undoes_packing(bits, groups, columns, seed):
    codes = torch.randint(2**bits, (32 * groups, columns), generator=torch.Generator().manual_seed(seed))
    codes = codes.to(torch.uint8)
    words = pack_bits(codes, bits)
    assert words.shape == (groups * bits, columns)
    assert torch.equal(unpack_bits(words, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_one_little_endian_stream_of_bits(bits):
    """The oracle is Python's own big integer."""
    codes = torch.randint(2**bits, (32, 1)).to(torch.uint8)
    whole = sum(int(c) << (i * bits) for i, c in enumerate(codes[:, 0]))
    words = [(whole >> (32 * w)) & 0xFFFFFFFF for w in range(bits)]
    assert [int(w) & 0xFFFFFFFF for w in pack_bits(codes, bits)[:, 0]] == words


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("outputs", [64, 50])
def test_layout_comes_back_as_it_was(bits, symmetric, outputs):
    packed = round_to_nearest(torch.randn(outputs, 96), Grid(bits, 32, symmetric))
    back = from_gptq(to_gptq(packed), bits, 32, symmetric=symmetric)
    assert torch.equal(back.codes, packed.codes)
    assert torch.equal(back.zeros, packed.zeros)
    assert torch.equal(back.dequantize(), packed.dequantize())


def test_dequantizing_by_the_published_formula():
    """qweight and qzeros + 1, as AutoGPTQ's readers compute it."""
    packed = round_to_nearest(torch.randn(8, 64), Grid(4, 32, symmetric=False))
    t = to_gptq(packed)
    shifts = torch.arange(0, 32, 4)
    q = ((t["qweight"][:, None, :] >> shifts[None, :, None]) & 15).reshape(64, 8).float()
    z = (((t["qzeros"][:, :, None] >> shifts) & 15).reshape(2, -1)[:, :8] + 1).float()
    g = t["g_idx"].long()
    w = (q - z[g]) * t["scales"].float()[g]
    torch.testing.assert_close(w.T, packed.dequantize(), rtol=0, atol=0)


def test_codes_that_leave_a_word_half_full_are_refused():
    with pytest.raises(GreenError, match="whole 32-bit words"):
        pack_bits(torch.zeros(5, 2, dtype=torch.uint8), 4)


def test_scattered_groups_are_refused():
    t = to_gptq(round_to_nearest(torch.randn(8, 64), Grid(4, 32, symmetric=True)))
    t["g_idx"] = t["g_idx"].flip(0)
    with pytest.raises(GreenError, match="contiguous"):
        from_gptq(t, 4, 32, symmetric=True)


def test_bits_per_weight_counts_scales_and_zero_points():
    codes, params = torch.zeros(4, 64, dtype=torch.uint8), torch.zeros(4, 2)
    assert Packed(codes, params, params, 4, 32, symmetric=True).bits_per_weight() == 4.5
    assert Packed(codes, params, params, 4, 32, symmetric=False).bits_per_weight() == 4.625

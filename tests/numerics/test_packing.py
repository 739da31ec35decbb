"""Packing: an exact inverse, and the bit order of ONNX."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.numerics import pack, unpack
from qcompiler.numerics.packing import join, split


@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    signed=st.booleans(),
    rows=st.integers(0, 3),
    length=st.integers(0, 19),
    seed=st.integers(0, 99),
)
def test_unpack_inverts_pack(bits: int, signed: bool, rows: int, length: int, seed: int) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, low + 2**bits, (rows, length), generator=generator)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, -(-length * bits // 8))
    unpacked = unpack(packed, bits, length, signed=signed)
    assert unpacked.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(unpacked.long(), codes)


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([1, 2, 3], 4, [0x21, 0x03]),
        ([-1, -8, 7], 4, [0x8F, 0x07]),
        ([0, 1, 2, 3, 1], 2, [0b11100100, 0b01]),
        ([-1, -2, 1, 0], 2, [0b00011011]),
        ([-128, 127], 8, [0x80, 0x7F]),
    ],
)
def test_low_bits_come_first_and_the_tail_is_zero(codes: list[int], bits: int, expected: list[int]) -> None:
    assert pack(torch.tensor(codes), bits).tolist() == expected


@pytest.mark.parametrize(("codes", "bits"), [([16], 4), ([-9], 4), ([-1, 8], 4), ([2], 1), ([1], 3)])
def test_codes_that_do_not_fit_are_refused(codes: list[int], bits: int) -> None:
    with pytest.raises(InputError):
        pack(torch.tensor(codes), bits)


@given(bits=st.sampled_from([1, 2, 4, 8]), size=st.integers(0, 9))
def test_join_is_pack_without_a_check(bits: int, size: int) -> None:
    codes = torch.randint(0, 2**bits, (8 * size,)).to(torch.uint8)
    assert torch.equal(join(codes, bits), pack(codes, bits))
    assert torch.equal(split(join(codes, bits), bits), codes)


def test_a_wrong_length_is_refused() -> None:
    with pytest.raises(InputError):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 5, signed=True)

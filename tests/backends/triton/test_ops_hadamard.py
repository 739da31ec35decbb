"""Rows turned by the block Hadamard transform and quantized, on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.backends.triton.ops import hadamard_quantize, int8_linear, quantize_rows
from qcompiler.backends.triton.ops.hadamard import turned
from qcompiler.errors import InputError
from qcompiler.numerics.hadamard import hadamard


@pytest.mark.parametrize("block", [2, 8, 64, 1024])
def test_it_is_the_transform_of_the_project(block: int) -> None:
    """Each step rounds sums of at most all numbers of a block; then come a constant and a product."""
    x = torch.randn(3, 2 * block)
    blocks = x.double().reshape(-1, block)
    wanted = (blocks @ hadamard(block)).reshape(x.shape)
    size = (blocks.abs().sum(1, keepdim=True) / block**0.5).expand_as(blocks).reshape(x.shape)
    assert ((turned(x, block) - wanted).abs() <= (math.log2(block) + 2) * 2**-24 * (1 + 2**-10) * size).all()


def test_blocks_up_to_4096_are_turned_and_turned_back() -> None:
    """Powers of two are exact on the way, and so is the product by 1 / 64."""
    x = torch.zeros(2, 4096)
    x[0, 17], x[1, 5] = 64.0, -32.0
    there = turned(x, 4096)
    assert (there[0].abs() == 1).all() and (there[1].abs() == 0.5).all()
    assert torch.equal(turned(there, 4096), x)


def test_codes_are_those_of_what_is_turned() -> None:
    x = torch.randn(5, 96)
    for found, wanted in zip(
        hadamard_quantize(x, 32, "int8"), quantize_rows(turned(x, 32), "int8"), strict=True
    ):
        assert torch.equal(found, wanted)


def test_products_stay_and_an_outlier_no_longer_rules() -> None:
    """One number of 100 among 256 makes steps of 100 / 127; spread over its block it makes a 16th of that."""
    x, w = torch.randn(8, 256), torch.randn(16, 256)
    x[:, 3] = 100.0

    def error(block: int) -> float:
        pairs = [
            hadamard_quantize(one, block, "int8") if block > 1 else quantize_rows(one, "int8")
            for one in (x, w)
        ]
        y = int8_linear(*pairs[0], *pairs[1], None, None, "none", torch.float32)
        return float((y.double() - x.double() @ w.double().t()).norm())

    assert error(256) < error(1) / 4


def test_it_says_the_truth_about_itself() -> None:
    torch.library.opcheck(hadamard_quantize, (torch.randn(4, 24), 8, "int8"), test_utils=("test_schema",))
    torch.library.opcheck(hadamard_quantize, (torch.randn(4, 24), 8, "e4m3"), test_utils=("test_faketensor",))


@pytest.mark.parametrize(("columns", "block"), [(96, 64), (96, 3), (96, 1), (8192, 8192)])
def test_blocks_that_do_not_fit_are_refused(columns: int, block: int) -> None:
    with pytest.raises(InputError, match=f"Hadamard blocks of {block} in rows of {columns}; use a power"):
        hadamard_quantize(torch.ones(2, columns), block, "int8")


def test_rows_that_no_program_holds_are_refused() -> None:
    with pytest.raises(InputError, match="rows of 16448 numbers, because 16384 are held at once"):
        hadamard_quantize(torch.ones(2, 16448), 64, "int8")

"""Codes in both orders, on the CPU."""

from __future__ import annotations

import pytest
import torch

from qcompiler.backends.triton.ops import quantize_both
from qcompiler.errors import InputError
from qcompiler.numerics import Purpose, noise_key, uniform
from qcompiler.numerics.operands import OPERANDS


@pytest.mark.parametrize(("format", "largest"), [("int8", 127), ("e4m3", 448), ("e5m2", 57344)])
def test_each_order_has_scales_of_its_own_rows(format: str, largest: int) -> None:
    x = torch.randn(7, 33) * torch.logspace(-4, 4, 33) * torch.logspace(4, -4, 7)[:, None]
    codes, scales, turned, turned_scales = quantize_both(x, format)
    assert codes.shape == (7, 48) and turned.shape == (33, 16)
    steps = {"int8": 0.5 / 127, "e4m3": 2**-4, "e5m2": 2**-3}[format]  # of the largest of a row
    for y, q, s in ((x, codes, scales), (x.t(), turned, turned_scales)):
        assert (q.float().abs().amax(1) == largest).all() and not q.float()[:, y.shape[1] :].any()
        error = (q.float()[:, : y.shape[1]] * s[:, None] - y).abs().amax(1)
        assert (error <= y.abs().amax(1) * steps * (1 + 2**-20)).all()


def test_nan_stays_in_its_row_and_its_column() -> None:
    x = torch.randn(20, 16)
    x[3, 5] = torch.nan
    codes, scales, turned, turned_scales = quantize_both(x, "int8")
    assert scales.isnan().nonzero().tolist() == [[3]] and not codes[3].any()
    assert turned_scales.isnan().nonzero().tolist() == [[5]] and not turned[5].any()


def test_drawn_codes_are_those_of_low_bit_products() -> None:
    x, key = torch.randn(9, 14), noise_key(3, 4, 5)
    codes, _, turned, _ = quantize_both(x, "int8", key, 6)
    given = ((codes, x, Purpose.GRAD_INPUT), (turned, x.t(), Purpose.GRAD_WEIGHT))
    for found, y, purpose in given:
        wanted = OPERANDS["int8"](y, (-1,), uniform(y.numel(), key, tensor=6, purpose=purpose))
        assert torch.equal(found[:, : y.shape[1]], wanted.values)


@pytest.mark.parametrize(("format", "step"), [("int8", 1), ("e4m3", 32), ("e5m2", 8192)])
def test_drawn_codes_have_no_bias(format: str, step: int) -> None:
    """Of equal rows each draws anew; the variance of a draw is at most a quarter of a step squared."""
    x, count = torch.randn(1, 16).expand(400, 16).contiguous(), 400
    codes, scales, _, _ = quantize_both(x, format, noise_key(1))
    steps = codes.double()
    assert ((steps.mean(0) - x[0].double() / scales[0]).abs() <= 5 * step / 2 / count**0.5).all()
    assert (steps.std(0) > 0).sum() >= 15  # the largest is a code


def test_it_says_the_truth_about_itself() -> None:
    torch.library.opcheck(
        quantize_both, (torch.randn(4, 33), "int8", noise_key(1)), test_utils=("test_schema",)
    )
    torch.library.opcheck(quantize_both, (torch.randn(4, 33), "e4m3"), test_utils=("test_faketensor",))


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"columns of torch.float32 \[0, 4\]"):
        quantize_both(torch.ones(0, 4), "int8")
    with pytest.raises(InputError, match='rows in "int3"'):
        quantize_both(torch.ones(2, 2), "int3")
    with pytest.raises(InputError, match="side by side"):
        quantize_both(torch.ones(2, 3).t(), "int8")
    with pytest.raises(InputError, match=r"a noise key of torch.float32"):
        quantize_both(torch.ones(2, 2), "int8", torch.ones(3))

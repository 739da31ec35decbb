"""Rows normalised and quantized, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.backends.triton.ops import norm_quantize, quantize_rows
from qcompiler.backends.triton.ops.held import LONGEST
from qcompiler.backends.triton.ops.norm import total
from qcompiler.errors import InputError

EPS = 1e-6
U = 2.0**-24  # half a unit in the last place of float32, of 1


def test_neighbours_are_added_first() -> None:
    """One by one, each 1 would be lost to 2^24."""
    assert total(torch.tensor([[2.0**24, 1, 1, 1]])).item() == 2**24 + 2
    x = torch.randn(3, 37)
    assert torch.equal(total(x), total(torch.nn.functional.pad(x, (0, 100))))
    assert not total(torch.full((1, 4), -0.0)).signbit().item()


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_floats_are_near_the_exact_ones(norm: str) -> None:
    """A sum by neighbours is off by log2 n halves of a unit, of the sum of what is added without signs."""
    x, weight, bias = torch.randn(6, 100) + 3, torch.randn(100), torch.randn(100)
    given = bias if norm == "layer" else None
    *_, found = norm_quantize(x, None, weight, given, None, norm, EPS, "int8", True)
    h, levels = x.double(), 7
    centred = h - h.mean(1, keepdim=True) if norm == "layer" else h
    inverse = (centred.square().mean(1, keepdim=True) + EPS).rsqrt()
    product = centred * inverse * weight
    wanted = product + (bias if norm == "layer" else 0)
    # of squares, sum, quotient and eps, halved by the root; of root, inverse and two products
    error = (0.5 * (levels + 3) + 4) * U * product.abs()
    if norm == "layer":
        mean = (levels + 1) * U * h.abs().mean(1, keepdim=True)  # of the mean
        apart = mean + U * centred.abs()  # of a number less the mean, which the variance has in it too
        spread = (
            mean * centred.abs().mean(1, keepdim=True) + U * centred.square().mean(1, keepdim=True)
        ) * inverse**2
        error = error + apart * inverse * weight.abs() + spread * product.abs() + U * wanted.abs()
    assert ((found - wanted).abs() <= error * (1 + 2**-10)).all()  # and what is of second order


def test_codes_are_those_of_the_floats() -> None:
    x, weight = torch.randn(5, 48), torch.rand(48)
    codes, scales, _, floats = norm_quantize(x, None, weight, None, None, "rms", EPS, "e4m3", True)
    wanted, wanted_scales = quantize_rows(floats, "e4m3")
    assert torch.equal(codes.float(), wanted.float()) and torch.equal(scales, wanted_scales)


def test_the_stream_goes_on_rounded_and_is_what_is_normalised() -> None:
    x, residual = torch.randn(4, 32).bfloat16(), torch.randn(4, 32).bfloat16()
    weight = torch.ones(32)
    both = norm_quantize(x, residual, weight, None, None, "layer", EPS, "int8", False)
    assert torch.equal(both[2], x + residual) and both[3].numel() == 0
    alone = norm_quantize(x + residual, None, weight, None, None, "layer", EPS, "int8", False)
    assert torch.equal(both[0], alone[0]) and torch.equal(both[1], alone[1]) and alone[2].numel() == 0


def test_beyond_a_given_scale_codes_saturate() -> None:
    x = torch.tensor([[1.0, -1, 1, -1], [3, 0, 0, torch.inf]])
    scale = torch.tensor([1 / 100])
    codes, scales, _, _ = norm_quantize(
        x, None, torch.tensor([0.5, 1, 2, 9]), None, scale, "rms", 0.0, "int8", False
    )
    assert codes[:, :4].tolist() == [[50, -100, 127, -127], [0, 0, 0, 0]]
    assert scales[0] == scale and scales[1].isnan()


# ---------------------------------------------------------------- torch


def test_it_says_the_truth_about_itself() -> None:
    given = (torch.randn(4, 33), torch.randn(4, 33), torch.rand(33), torch.rand(33), None, "layer", EPS)
    torch.library.opcheck(norm_quantize, (*given, "int8", True), test_utils=("test_schema",))
    torch.library.opcheck(norm_quantize, (*given, "e4m3", False), test_utils=("test_faketensor",))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: torch.ones(4, LONGEST + 1)}, "rows of 16385 numbers, because 16384 are held at once"),
        ({1: torch.ones(4, 9)}, r"residual torch.float32 \[4, 9\]"),
        ({1: torch.ones(4, 8).half()}, r"residual torch.float16 .* torch.float32 \[4, 8\] on cpu is wanted"),
        ({2: torch.ones(9)}, r"weight torch.float32 \[9\]"),
        ({4: torch.ones(())}, r"scale torch.float32 \[\]"),
        ({5: "group"}, 'norm "group"; use one of rms, layer'),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, Any], sentence: str) -> None:
    given: list[Any] = [torch.ones(4, 8), None, torch.ones(8), None, None, "rms", EPS, "int8", False]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(InputError, match=sentence):
        norm_quantize(*given)

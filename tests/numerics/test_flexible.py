"""Learned formats: they contain the published ones, and their gradients are those of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics import FloatFormat, best_split, parse_format, round_flexible


@pytest.mark.parametrize(("name", "mantissa", "clip"), [("e4m3", 3, 480.0), ("e5m2", 2, 114688.0)])
def test_published_formats_are_two_points_of_the_family(name: str, mantissa: int, clip: float) -> None:
    format = parse_format(name)
    assert isinstance(format, FloatFormat)
    normal = torch.randn(100_000)
    x = torch.cat((normal * format.max / 4, normal * 2**-8, format.decode_table().float()))
    x = x[x.abs() < format.max]  # without the codes that the published formats give to NaN and infinity
    found = round_flexible(x, torch.tensor(float(mantissa)), torch.tensor(clip))
    assert torch.equal(found, format.round(x))


@pytest.mark.parametrize("mantissa", [1.0, 2.4, 3.0, 4.6, 6.0])
def test_the_clip_is_the_largest_number_and_the_codes_are_few(mantissa: float) -> None:
    clip = torch.tensor(3.7, dtype=torch.float64)
    x = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    found = round_flexible(x, torch.tensor(mantissa), clip)
    assert found.abs().max().item() == pytest.approx(3.7, rel=1e-12)
    assert len(torch.unique(found)) <= 2**8
    assert bool((found.diff() >= 0).all())
    inside = x.abs() <= 3.7
    # half a step of the mantissa; at the least magnitudes a step is a subnormal one
    relative = 2.0 ** -(round(mantissa) + 1)
    smallest = found[found > 0].min() / 2
    assert bool(
        ((found - x).abs()[inside] <= torch.clamp(relative * x.abs()[inside], min=smallest) + 1e-12).all()
    )


def gradients(x: Tensor, mantissa: float, clip: float) -> tuple[Tensor, ...]:
    """Of each element with respect to x, the mantissa and the clip."""
    inputs = [
        value.expand_as(x).clone().requires_grad_()
        for value in (x, torch.tensor(mantissa).double(), torch.tensor(clip).double())
    ]
    return torch.autograd.grad(round_flexible(inputs[0], inputs[1], inputs[2]).sum(), inputs)


def test_gradients_are_those_of_the_formula() -> None:
    m, c = 3.0, 2.5
    x = torch.randn(1000, dtype=torch.float64) * 2
    rounded = round_flexible(x, torch.tensor(m), torch.tensor(c, dtype=torch.float64))
    inside = x.abs() < c
    by_x, by_mantissa, by_clip = gradients(x, m, c)
    residual = rounded - x.clamp(-c, c)
    assert torch.allclose(by_x, inside.double())
    assert torch.allclose(by_clip, torch.where(inside, residual / c, x.sign()))
    slope = -math.log(2) * 2 ** (7 - m) + 2**-m / (2 - 2**-m)  # of the bias
    assert torch.allclose(by_mantissa, residual * math.log(2) * (-1 - slope), atol=1e-9)


def test_a_clip_per_channel() -> None:
    x, clips = torch.randn(3, 50), torch.tensor([0.5, 1.0, 2.0])
    whole = round_flexible(x, torch.tensor(3.0), clips[:, None])
    for row, clip, found in zip(x, clips, whole, strict=True):
        assert torch.equal(round_flexible(row, torch.tensor(3.0), clip), found)


@pytest.mark.parametrize(("mantissa", "clip"), [(0.0, 1.0), (7.0, 1.0), (3.0, 0.0), (3.0, -1.0)])
def test_parameters_that_left_their_range_are_refused(mantissa: float, clip: float) -> None:
    with pytest.raises(RecipeError, match="left its range"):
        round_flexible(torch.ones(2), torch.tensor(mantissa), torch.tensor(clip))


def test_heavier_tails_want_more_exponent() -> None:
    uniform = torch.rand(50_000) * 2 - 1
    heavy = torch.randn(50_000) * torch.exp(3 * torch.randn(50_000))
    normal = torch.randn(50_000)
    assert [best_split(x) for x in (uniform, normal, heavy)] == ["int8", "e2m5", "e3m4"]


@pytest.mark.parametrize("mantissa", range(1, 7))
def test_where_the_bias_is_an_integer_the_format_is_a_minifloat(mantissa: int) -> None:
    # the largest number (2 - 2^-M) 2^k makes the bias an integer, but for the rounding of two logarithms
    exponent_bits = 7 - mantissa
    for k in range(-12, 20):
        format = FloatFormat(
            exponent_bits=exponent_bits,
            mantissa_bits=mantissa,
            bias=2**exponent_bits - 1 - k,
            specials="none",
        )
        x = torch.cat((torch.randn(500).double() * format.max / 3, format.decode_table()))
        found = round_flexible(x, torch.tensor(float(mantissa)), torch.tensor(format.max))
        assert torch.equal(found, format.round(x).double())

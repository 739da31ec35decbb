"""MX and NVFP4: the scale rules, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import RecipeError
from qcompiler.numerics import (
    IntFormat,
    PerBlock,
    dequantize,
    e8m0_decode,
    e8m0_encode,
    fake_quantize,
    mx_params,
    nvfp4_params,
    parse_format,
    quantize,
)

# emax and the largest value: OCP Microscaling Formats 1.0, tables 2 to 5
ELEMENTS = {"e4m3": (8, 448), "e5m2": (15, 57344), "e3m2": (4, 28), "e2m3": (2, 7.5), "e2m1": (2, 6)}
amaxes = st.floats(2**-100, 2**100, width=32)


def block(amax: float) -> torch.Tensor:
    x = torch.linspace(-1, 1, 32, dtype=torch.float64) * amax
    return x.to(torch.float32)


@pytest.mark.parametrize("name", ELEMENTS)
@given(amax=amaxes)
def test_rules_for_float_elements(name: str, amax: float) -> None:
    emax, largest = ELEMENTS[name]
    x, element = block(amax), parse_format(name)
    floor, rceil, even = (
        mx_params(x, element, rule=rule).scale.item() for rule in ("floor", "rceil", "even")
    )
    assert floor == 2.0 ** (math.frexp(amax)[1] - 1 - emax)
    assert rceil / 2 * largest < amax <= rceil * largest
    assert even in (floor, 2 * floor)


@given(amax=amaxes)
def test_rules_for_int8_elements(amax: float) -> None:
    floor = mx_params(block(amax), parse_format("int8"), rule="floor").scale.item()
    rceil = mx_params(block(amax), parse_format("int8"), rule="rceil").scale.item()
    assert floor == 2.0 ** (math.frexp(amax)[1] - 1 - 6)
    assert rceil / 2 * 127 < amax <= rceil * 127


@pytest.mark.parametrize(
    ("amax", "exponent"),
    # e2m1 has one mantissa bit: 1.75 and above round to 2, the tie 1.25 rounds down to 1
    [(1.0, 0), (1.25, 0), (1.74, 0), (1.75, 1), (1.99, 1), (2.0, 1), (3.49, 1), (3.5, 2)],
)
def test_even_rounds_the_mantissa_first(amax: float, exponent: int) -> None:
    assert mx_params(block(amax), parse_format("e2m1"), rule="even").scale.item() == 2.0 ** (exponent - 2)


@pytest.mark.parametrize("name", [*ELEMENTS, "int8"])
def test_scales_are_e8m0(name: str) -> None:
    x = torch.randn(4, 100) * torch.logspace(-20, 20, 4)[:, None]
    params = mx_params(x, parse_format(name))
    assert params.scale.shape == (4, 4)
    assert torch.equal(e8m0_decode(e8m0_encode(params.scale)), params.scale)
    if isinstance(params.format, IntFormat):
        assert params.format.restricted


@pytest.mark.parametrize("rule", ["floor", "rceil", "even"])
def test_zero_blocks_and_tiny_blocks_have_valid_scales(rule: str) -> None:
    x = torch.stack([torch.zeros(32), torch.full((32,), 1e-44)])
    params = mx_params(x, parse_format("e4m3"), rule=rule)  # type: ignore[arg-type]
    assert params.scale[0].item() == 1.0
    assert not fake_quantize(x, params)[0].any()


def test_e8m0_table() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = torch.arange(256, dtype=torch.uint8)
    expected = torch.from_numpy(codes.numpy().view(ml_dtypes.float8_e8m0fnu).astype("float32"))
    assert torch.equal(e8m0_decode(codes).nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))
    assert torch.equal(e8m0_encode(e8m0_decode(codes)), codes)


def test_nvfp4_scales_are_the_formula() -> None:
    x = torch.randn(8, 64)
    nv = nvfp4_params(x)
    amax = x.abs().amax()
    assert nv.tensor_scale.item() == pytest.approx(amax.item() / (448 * 6), rel=1e-7)
    block_scale = nv.block_codes.view(torch.float8_e4m3fn).float()
    assert torch.equal(nv.params.scale, block_scale * nv.tensor_scale)
    wanted = x.reshape(8, 4, 16).abs().amax(2) / 6 / nv.tensor_scale
    assert bool(((block_scale - wanted).abs() <= wanted * 2**-4).all())  # half a step of a 3-bit mantissa
    assert block_scale.max() == 448


def test_square_blocks_commute_with_transposition() -> None:
    w = torch.randn(48, 80)
    square = PerBlock(sizes=(16, 16))
    direct, transposed = nvfp4_params(w, square), nvfp4_params(w.T, square)
    assert torch.equal(fake_quantize(w, direct.params).T, fake_quantize(w.T, transposed.params))


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1.0, 1e30])
def test_nvfp4_holds_at_any_magnitude(scale: float) -> None:
    x = torch.randn(4, 32) * scale
    x[0, :16] = 0
    params = nvfp4_params(x).params
    y = dequantize(quantize(x, params), params)
    assert bool(y.isfinite().all())
    assert not y[0, :16].any()


@pytest.mark.parametrize("name", ["uint8", "int16"])
def test_other_integers_are_no_mx_elements(name: str) -> None:
    with pytest.raises(RecipeError, match="no MX element"):
        mx_params(torch.ones(32), parse_format(name))


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(RecipeError, match="ceil"):
        mx_params(torch.ones(32), parse_format("e4m3"), rule="up")  # type: ignore[arg-type]

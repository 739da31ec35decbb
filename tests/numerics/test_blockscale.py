"""MX and NVFP4: the scale rules, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import RecipeError
from qcompiler.numerics import (
    MX_BLOCK,
    NVFP4_BLOCK,
    BlockRounding,
    FloatFormat,
    IntFormat,
    MXRule,
    PerBlock,
    dequantize,
    e8m0_decode,
    e8m0_encode,
    fake_quantize,
    measure_bias,
    mx_params,
    mx_scale,
    noise_key,
    nvfp4_params,
    nvfp4_scale,
    parse_format,
    quantize,
    round_scaled,
    uniform,
)

# emax and the largest value: OCP Microscaling Formats 1.0, tables 2 to 5
ELEMENTS = {"e4m3": (8, 448), "e5m2": (15, 57344), "e3m2": (4, 28), "e2m3": (2, 7.5), "e2m1": (2, 6)}
amaxes = st.floats(2**-100, 2**100, width=32)


def minifloat(name: str) -> FloatFormat:
    format = parse_format(name)
    assert isinstance(format, FloatFormat)
    return format


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
    assert 0 <= nv.tensor_scale.double().item() / (amax.item() / (448 * 6)) - 1 <= 2**-23  # outward
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


def spread_blocks(count: int, size: int) -> torch.Tensor:
    """Normal numbers, and magnitudes that differ between blocks."""
    return torch.randn(count, size) * torch.exp(torch.randn(count, 1))


# share of blocks that saturate, relative error: floor, even, ceil, rceil
MX_TABLE = {
    "e2m1": [(0.418, 0.116), (0.223, 0.112), (0, 0.143), (0, 0.117)],
    "e4m3": [(0.195, 0.0301), (0.149, 0.0282), (0, 0.0267), (0, 0.0267)],
    "e5m2": [(0.195, 0.0542), (0.102, 0.0528), (0, 0.0528), (0, 0.0528)],
}


@pytest.mark.parametrize("name", MX_TABLE)
def test_what_each_rule_costs(name: str) -> None:
    x, element = spread_blocks(20_000, 32), minifloat(name)
    for rule, (share, error) in zip(("floor", "even", "ceil", "rceil"), MX_TABLE[name], strict=True):
        scale = mx_scale(x, element, rule=rule)  # type: ignore[arg-type]
        saturates = (x.abs().amax(1, keepdim=True) > scale * element.max).float().mean().item()
        # four standard deviations between two samples of 20,000 blocks, one rounded to the table's digits
        assert abs(saturates - share) <= 4 * math.sqrt(2 * share * (1 - share) / 20_000) + 0.0005
        y = round_scaled(x, scale, element, MX_BLOCK)
        assert float((y - x).norm() / x.norm()) == pytest.approx(error, rel=0.02)


@given(amax=amaxes)
def test_the_rule_that_takes_the_next_power_of_two(amax: float) -> None:
    ceil = mx_params(block(amax), parse_format("e2m1"), rule="ceil").scale.item()
    assert ceil / 2 * 4 < amax <= ceil * 4


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_makes_its_scale_nan(poison: float) -> None:
    x = torch.randn(4, 64)
    x[1, 3] = poison
    scale = mx_scale(x, minifloat("e4m3"))
    assert scale.isnan().nonzero().tolist() == [[1, 0]]
    assert e8m0_encode(scale)[1, 0] == 255
    y = round_scaled(x, scale, minifloat("e4m3"), MX_BLOCK)
    assert bool(y[1, :32].isnan().all()) and bool(y[1, 32:].isfinite().all())
    found = nvfp4_scale(x)
    assert bool(round_scaled(x, found.scale, minifloat("e2m1"), NVFP4_BLOCK).isnan().all())
    with pytest.raises(RecipeError):
        mx_params(x, minifloat("e4m3"))
    with pytest.raises(RecipeError):
        nvfp4_params(x)


@given(seed=st.integers(0, 99), magnitude=st.floats(2.0**-90, 2.0**90))
def test_a_block_scale_rounded_up_is_the_least_that_holds_its_block(seed: int, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    spreads = torch.exp(2 * torch.randn(8, 1, generator=generator))
    x = torch.randn(8, 64, generator=generator) * spreads * magnitude
    found = nvfp4_scale(x, rounding="up")
    amax = x.reshape(8, 4, 16).abs().amax(2)
    block_scale = found.block_codes.view(torch.float8_e4m3fn).double() * found.tensor_scale.double()
    # the division by the tensor's scale is rounded, in float64
    assert bool((amax <= block_scale * 6 * (1 + 1e-15)).all())
    lower = (found.block_codes - 1).view(torch.float8_e4m3fn).double() * found.tensor_scale.double()
    assert bool(((lower * 6 < amax) | (found.block_codes == 1)).all())


def test_about_half_of_the_blocks_saturate_where_their_scale_is_rounded_to_nearest() -> None:
    x = spread_blocks(512, 16)
    share = (x.abs().amax(1, keepdim=True) > 6 * nvfp4_scale(x).scale).float().mean().item()
    assert share == pytest.approx(0.51, abs=4 * 0.5 / 512**0.5)


@pytest.mark.parametrize(("rounding", "noise", "biased"), [("nearest", 0.136, True), ("up", 0.147, False)])
def test_stochastic_elements_need_a_block_scale_that_is_rounded_up(
    rounding: BlockRounding, noise: float, biased: bool
) -> None:
    x, count = torch.randn(512, 16), 500
    scale = nvfp4_scale(x, rounding=rounding).scale
    draws = uniform(count * x.numel(), noise_key(7), tensor=0, purpose=1).view(count, *x.shape)
    many = (round_scaled(x, scale, minifloat("e2m1"), NVFP4_BLOCK, draw) for draw in draws)
    found = measure_bias(many, x)
    assert found.error == pytest.approx(noise, rel=0.03)
    # a standard normal number without bias: above 4 once in 30,000 such tests
    assert found.z > 8 if biased else found.z < 4


def test_elements_to_nearest_want_a_block_scale_to_nearest() -> None:
    x = torch.randn(4096, 16)

    def error(rounding: BlockRounding) -> float:
        y = fake_quantize(x, nvfp4_params(x, rounding=rounding).params)
        return float((y - x).norm() / x.norm())

    assert error("nearest") < 0.97 * error("up")


@pytest.mark.parametrize("name", ["e2m1", "e4m3"])
def test_mx_with_stochastic_rounding_has_the_right_mean_where_nothing_saturates(name: str) -> None:
    x, element = spread_blocks(32, 32), minifloat(name)
    draws = uniform(1000 * x.numel(), noise_key(7), tensor=1, purpose=1).view(1000, *x.shape)

    def z(rule: MXRule) -> float:
        params = mx_params(x, element, rule=rule)
        return measure_bias((fake_quantize(x, params, "stochastic", draw) for draw in draws), x).z

    assert z("rceil") < 4
    assert z("floor") > 8


def test_unknown_roundings_of_block_scales_are_refused() -> None:
    with pytest.raises(RecipeError, match="nearest or up"):
        nvfp4_scale(torch.ones(16), rounding="down")  # type: ignore[arg-type]

"""Quantize and dequantize: the laws of the definitions, at every format, scheme and granularity."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qcompiler.errors import CalibrationError, RecipeError
from qcompiler.numerics import (
    Format,
    IntFormat,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantParams,
    Scheme,
    dequantize,
    fake_quantize,
    noise_key,
    params_from_range,
    parse_format,
    quantize,
    reduce_range,
    uniform,
)

INTEGERS = ["int2", "uint2", "int4", "uint4", "int7", "int8", "uint8", "int16", "uint16"]
MINIFLOATS = ["e4m3", "e5m2", "e3m4", "e3m2", "e2m1"]
SCHEMES: list[Scheme] = ["asymmetric", "symmetric", "one_sided", "power_of_two"]

formats = st.sampled_from(INTEGERS + MINIFLOATS).map(parse_format)
integers = st.sampled_from(INTEGERS).map(parse_format)
schemes = st.sampled_from(SCHEMES)
finite = st.floats(-(2.0**100), 2.0**100, width=32)
moderate = st.floats(-1000, 1000, width=32)


def per_tensor(lo: float, hi: float, format: str, scheme: Scheme) -> QuantParams:
    return params_from_range(lo, hi, parse_format(format), PerTensor(), scheme=scheme)


def reach(params: QuantParams) -> tuple[Fraction, Fraction]:
    """The lowest and highest value that the parameters represent, as exact numbers."""
    scale = Fraction(params.scale.item())
    if not isinstance(params.format, IntFormat):
        return -scale * Fraction(params.format.max), scale * Fraction(params.format.max)
    zero = int(params.zero_point)
    return scale * (params.format.qmin - zero), scale * (params.format.qmax - zero)


@given(lo=finite, hi=finite, format=formats, scheme=schemes)
def test_zero_is_exact_and_the_scale_is_a_normal_float32(
    lo: float, hi: float, format: Format, scheme: Scheme
) -> None:
    params = params_from_range(lo, hi, format, PerTensor(), scheme=scheme)
    assert fake_quantize(torch.zeros(1), params).item() == 0
    assert params.scale.dtype == torch.float32
    assert params.scale >= torch.finfo(torch.float32).tiny
    assert torch.isfinite(1 / params.scale)


@given(lo=finite, hi=finite, format=formats, scheme=st.sampled_from(["symmetric", "power_of_two"]))
def test_symmetric_and_power_of_two_never_clip(lo: float, hi: float, format: Format, scheme: Scheme) -> None:
    lowest, highest = reach(params_from_range(lo, hi, format, PerTensor(), scheme=scheme))
    assert lowest <= min(lo, 0)
    assert max(hi, 0) <= highest


@given(lo=moderate, hi=moderate, format=integers)
def test_asymmetric_clips_less_than_half_a_step(lo: float, hi: float, format: Format) -> None:
    params = params_from_range(lo, hi, format, PerTensor(), scheme="asymmetric")
    lowest, highest = reach(params)
    # the zero point was rounded by at most 1/2, in double precision
    slack = Fraction(params.scale.item()) * Fraction(1, 2) * (1 + Fraction(1, 2**40))
    assert lowest - slack <= min(lo, 0)
    assert max(hi, 0) <= highest + slack


@given(hi=finite, format=integers)
def test_one_sided_never_clips_from_above_and_starts_at_zero(hi: float, format: Format) -> None:
    lowest, highest = reach(params_from_range(0.0, hi, format, PerTensor(), scheme="one_sided"))
    assert lowest == 0
    assert max(hi, 0) <= highest


@given(lo=finite, hi=finite, format=formats)
def test_powers_of_two_are_the_next_above_the_scale_that_would_fit(
    lo: float, hi: float, format: Format
) -> None:
    params = params_from_range(lo, hi, format, PerTensor(), scheme="power_of_two")
    mantissa, _ = math.frexp(params.scale.item())
    assert mantissa == 0.5
    assume(params.scale > torch.finfo(torch.float32).tiny and (lo < 0 or hi > 0))
    _, highest = reach(params)  # the shorter side where there is an odd code
    assert highest / 2 < max(-lo, hi)


@given(lo=finite, hi=finite, format=formats, scheme=st.sampled_from(["asymmetric", "symmetric", "one_sided"]))
def test_scales_are_the_formula_rounded_outward_once(
    lo: float, hi: float, format: Format, scheme: Scheme
) -> None:
    low, high = Fraction(min(lo, 0)), Fraction(max(hi, 0))
    scale = params_from_range(lo, hi, format, PerTensor(), scheme=scheme).scale.item()
    if not isinstance(format, IntFormat):
        exact = max(-low, high) / Fraction(format.max)
    elif scheme == "asymmetric":
        exact = (high - low) / (format.qmax - format.qmin)
    elif scheme == "one_sided":
        exact = high / (format.qmax - format.qmin)
    else:
        middle = 0 if format.signed else (format.qmax + 1) // 2
        exact = max(-low, high) / (format.qmax - middle)
    assume(exact >= Fraction(torch.finfo(torch.float32).tiny))
    below = float(np.nextafter(np.float32(scale), np.float32(0)))
    # float64 may round the formula by 2^-53 before the one outward rounding
    assert Fraction(below) < exact * (1 + Fraction(1, 2**51))
    assert exact * (1 - Fraction(1, 2**51)) <= Fraction(scale)


@pytest.mark.parametrize(
    ("format", "scheme", "zero_point"),
    [
        ("int8", "asymmetric", 0),
        ("uint8", "asymmetric", 128),
        ("int8", "symmetric", 0),
        ("uint8", "symmetric", 128),
        ("uint8", "one_sided", 0),
        ("int8", "one_sided", -128),
        ("uint8", "power_of_two", 0),
        ("e4m3", "symmetric", 0),
    ],
)
def test_all_zero_tensors_get_scale_one(format: str, scheme: Scheme, zero_point: int) -> None:
    params = per_tensor(0.0, 0.0, format, scheme)
    assert (params.scale.item(), params.zero_point.item()) == (1.0, zero_point)


def test_ranges_below_float32_are_widened_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    params = per_tensor(0.0, 1e-40, "uint8", "asymmetric")
    assert params.scale.item() == torch.finfo(torch.float32).tiny
    assert "widened" in caplog.text


@pytest.mark.parametrize(("lo", "hi"), [(math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.0)])
def test_ranges_that_are_not_finite_are_refused(lo: float, hi: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        per_tensor(lo, hi, "int8", "symmetric")


def test_symmetric_restricts_signed_formats() -> None:
    params = per_tensor(-1.0, 1.0, "int8", "symmetric")
    assert params.format == IntFormat(bits=8, signed=True, restricted=True)
    assert quantize(torch.tensor([-9.0, 9.0]), params).tolist() == [-127, 127]


@pytest.mark.parametrize("name", [*INTEGERS, "e4m3", "e5m2", "e2m1"])
@given(lo=moderate, hi=moderate, scheme=schemes)
def test_quantize_inverts_dequantize(name: str, lo: float, hi: float, scheme: Scheme) -> None:
    assume(max(-lo, hi) > 1e-20)
    params = per_tensor(lo, hi, name, scheme)
    format = params.format
    if isinstance(format, IntFormat):
        codes = torch.arange(format.qmin, format.qmax + 1, max(1, 2**format.bits // 997)).to(format.storage)
    else:
        codes = torch.arange(2**format.bits).to(format.storage)[format.decode_table().isfinite()]
    assert torch.equal(quantize(dequantize(codes, params), params), codes)


@given(values=st.lists(moderate, min_size=2), lo=moderate, hi=moderate, format=formats, scheme=schemes)
def test_fake_quantize_is_monotone_and_idempotent(
    values: list[float], lo: float, hi: float, format: Format, scheme: Scheme
) -> None:
    params = params_from_range(lo, hi, format, PerTensor(), scheme=scheme)
    y = fake_quantize(torch.tensor(values, dtype=torch.float32).sort().values, params)
    assert bool((y.diff() >= 0).all())
    assert torch.equal(fake_quantize(y, params), y)


@given(values=st.lists(moderate, min_size=1), lo=moderate, hi=moderate, format=integers, scheme=schemes)
def test_quantize_is_the_definition(
    values: list[float], lo: float, hi: float, format: Format, scheme: Scheme
) -> None:
    assume(max(-lo, hi) > 1e-30)
    params = params_from_range(lo, hi, format, PerTensor(), scheme=scheme)
    assert isinstance(params.format, IntFormat)
    scale, zero = np.float32(params.scale.item()), int(params.zero_point)
    expected = []
    for value in values:
        code = round(float(np.float32(value) / scale)) + zero
        expected.append(min(max(code, params.format.qmin), params.format.qmax))
    codes = quantize(torch.tensor(values, dtype=torch.float32), params)
    assert codes.dtype == params.format.storage
    assert codes.tolist() == expected


def test_the_zero_point_is_added_after_rounding() -> None:
    params = QuantParams(
        scale=torch.tensor(1.0),
        zero_point=torch.tensor(1, dtype=torch.int32),
        format=parse_format("int8"),
        granularity=PerTensor(),
    )
    assert quantize(torch.tensor([0.5, 1.5]), params).tolist() == [1, 3]  # rne(x + z) would give 2, 2


def test_division_is_true_division() -> None:
    x, scale = torch.tensor([45.5]), torch.tensor(7.0)  # 45.5 / 7 is the tie 6.5
    params = QuantParams(
        scale=scale,
        zero_point=torch.tensor(0, dtype=torch.int32),
        format=parse_format("int8"),
        granularity=PerTensor(),
    )
    assert torch.round(x * (1 / scale)).item() == 7
    assert quantize(x, params).item() == 6


@pytest.mark.parametrize(
    ("format", "qmin", "qmax"), [("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535)]
)
def test_special_values_follow_onnx_runtime(format: str, qmin: int, qmax: int) -> None:
    params = per_tensor(-1.0, 1.0, format, "asymmetric")
    codes = quantize(torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38]), params)
    assert codes.tolist() == [qmax, qmin, qmin, qmax, qmin]


def test_a_bias_uses_all_32_bits() -> None:
    params = QuantParams(
        scale=torch.tensor(1.0),
        zero_point=torch.tensor(0, dtype=torch.int32),
        format=parse_format("int32"),
        granularity=PerTensor(),
    )
    codes = quantize(torch.tensor([2.0**30 + 128, 1e20, -1e20, torch.nan]), params)
    assert codes.tolist() == [2**30 + 128, 2**31 - 1, -(2**31), -(2**31)]
    assert dequantize(codes[:1], params).item() == 2**30 + 128


@pytest.mark.parametrize("granularity", [PerChannel(axis=0), PerChannel(axis=1), PerGroup(axis=1, size=4)])
@pytest.mark.parametrize("format", ["int8", "uint4", "e4m3"])
def test_finer_granularity_is_per_tensor_on_each_part(
    granularity: PerChannel | PerGroup, format: str
) -> None:
    x = torch.randn(6, 10)
    lo, hi = reduce_range(x, granularity)
    params = params_from_range(lo, hi, parse_format(format), granularity, scheme="asymmetric")
    whole = fake_quantize(x, params)
    if isinstance(granularity, PerChannel):
        parts, results = x.unbind(granularity.axis), whole.unbind(granularity.axis)
    else:
        parts = tuple(part for row in x for part in row.split(granularity.size))
        results = tuple(part for row in whole for part in row.split(granularity.size))
    for part, result in zip(parts, results, strict=True):
        alone = per_tensor(part.min().item(), part.max().item(), format, "asymmetric")
        assert torch.equal(fake_quantize(part, alone), result)


def test_stochastic_quantization_is_unbiased() -> None:
    params = per_tensor(-4.0, 4.0, "int4", "symmetric")
    x = torch.full((100_000,), 1.0)
    noise = uniform(x.numel(), noise_key(0), tensor=0, purpose=0)
    error = fake_quantize(x, params, "stochastic", noise).double().mean().item() - 1.0
    # a Bernoulli step of one scale: five standard deviations of the mean
    assert abs(error) < 5 * params.scale.item() * 0.5 / math.sqrt(x.numel())


def test_parameters_are_values() -> None:
    first, second = (per_tensor(-1.0, 1.0, "int8", "symmetric") for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert first != per_tensor(-1.0, 2.0, "int8", "symmetric")
    assert first != per_tensor(-1.0, 1.0, "int7", "symmetric")


@pytest.mark.parametrize(
    ("scale", "zero"),
    [
        (torch.tensor(0.0), torch.tensor(0, dtype=torch.int32)),
        (torch.tensor(-1.0), torch.tensor(0, dtype=torch.int32)),
        (torch.tensor(torch.nan), torch.tensor(0, dtype=torch.int32)),
        (torch.tensor(1e-40), torch.tensor(0, dtype=torch.int32)),
        (torch.tensor(1.0), torch.tensor(128, dtype=torch.int32)),
        (torch.tensor(1.0), torch.tensor([0], dtype=torch.int32)),
        (torch.tensor(1.0), torch.tensor(0)),
        (torch.tensor(1.0, dtype=torch.float64), torch.tensor(0, dtype=torch.int32)),
    ],
)
def test_invalid_parameters_are_refused(scale: torch.Tensor, zero: torch.Tensor) -> None:
    with pytest.raises(RecipeError):
        QuantParams(scale=scale, zero_point=zero, format=parse_format("int8"), granularity=PerTensor())

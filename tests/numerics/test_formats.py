"""Formats: their limits, their names, and the published tables of codes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import RecipeError
from qcompiler.numerics import FORMATS, FloatFormat, IntFormat, parse_format

# name: largest, smallest normal, smallest subnormal. OCP OFP8 and MX 1.0; fnuz from arXiv 2206.02915.
LIMITS = {
    "e4m3": (448, 2**-6, 2**-9),
    "e5m2": (57344, 2**-14, 2**-16),
    "e4m3fnuz": (240, 2**-7, 2**-10),
    "e5m2fnuz": (57344, 2**-15, 2**-17),
    "e3m4": (30, 2**-2, 2**-6),
    "e2m5": (7.75, 1, 2**-5),
    "e3m2": (28, 2**-2, 2**-4),
    "e2m3": (7.5, 1, 2**-3),
    "e2m1": (6, 1, 0.5),
}
ORACLES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e4m3": ml_dtypes.float8_e4m3,
    "float8_e3m4": ml_dtypes.float8_e3m4,
    "float8_e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
NAMES = {
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e4m3fnuz": "float8_e4m3fnuz",
    "e3m4": "float8_e3m4fn",
    "e3m2": "float6_e3m2",
    "e2m1": "float4_e2m1",
    "e5m10": "float16_e5m10",
    "e2m2": "float5_e2m2",
    "e2m2fn": "float5_e2m2fn",
}


def minifloat(name: str) -> FloatFormat:
    format = parse_format(name)
    assert isinstance(format, FloatFormat)
    return format


MINIFLOATS = sorted(set(LIMITS) | set(ORACLES) | set(NAMES) | {"e1m2", "e4m0", "e2m5ieee"})


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_the_published_ones(name: str) -> None:
    format = minifloat(name)
    assert (format.max, format.min_normal, format.min_subnormal) == LIMITS[name]


@pytest.mark.parametrize("name", ORACLES)
def test_all_codes_decode_as_published(name: str) -> None:
    format = minifloat(name)
    codes = np.arange(2**format.bits, dtype=np.uint8)
    expected = codes.view(ORACLES[name]).astype(np.float64)
    np.testing.assert_array_equal(format.decode_table().numpy(), expected)
    np.testing.assert_array_equal(format.decode(torch.from_numpy(codes)).numpy(), expected.astype(np.float32))


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_all_codes_decode_as_in_torch(name: str, dtype: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    assert torch.equal(minifloat(name).decode_table().nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))


@pytest.mark.parametrize("name", ORACLES)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_is_nearest_even_within_the_range(name: str, values: list[float]) -> None:
    format = minifloat(name)
    x = torch.tensor(values, dtype=torch.float32).clamp(-format.max, format.max)
    expected = x.numpy().astype(ORACLES[name]).astype(np.float32)
    np.testing.assert_array_equal(format.round(x).numpy(), expected)


@pytest.mark.parametrize("name", MINIFLOATS)
def test_codes_round_trip(name: str) -> None:
    format = minifloat(name)
    codes = torch.arange(2**format.bits).to(format.storage)
    finite = format.decode_table().isfinite()
    assert torch.equal(format.encode(format.decode(codes))[finite], codes[finite])


@pytest.mark.parametrize("name", MINIFLOATS)
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=2))
def test_encode_is_the_code_of_round_and_round_is_monotone_and_odd(name: str, values: list[float]) -> None:
    format = minifloat(name)
    x = torch.tensor(values, dtype=torch.float32).sort().values
    rounded = format.round(x)
    assert torch.equal(format.decode(format.encode(x)), rounded)
    assert torch.equal(format.round(rounded), rounded)
    assert torch.equal(format.round(-x), -rounded)
    assert bool((rounded.diff() >= 0).all())


@pytest.mark.parametrize("name", MINIFLOATS)
def test_infinity_saturates_and_nan_is_kept_or_lowest(name: str) -> None:
    format = minifloat(name)
    plus, minus, nan = format.decode(format.encode(torch.tensor([torch.inf, -torch.inf, torch.nan]))).tolist()
    assert (plus, minus) == (format.max, -format.max)
    assert nan == -format.max if format.specials == "none" else np.isnan(nan)


@pytest.mark.parametrize(
    ("name", "qmin", "qmax", "storage"),
    [
        ("int2", -2, 1, torch.int8),
        ("uint4", 0, 15, torch.uint8),
        ("int8", -128, 127, torch.int8),
        ("uint8", 0, 255, torch.uint8),
        ("uint15", 0, 32767, torch.int16),
        ("int16", -32768, 32767, torch.int16),
        ("uint16", 0, 65535, torch.int32),
        ("int32", -(2**31), 2**31 - 1, torch.int32),
    ],
)
def test_integer_formats(name: str, qmin: int, qmax: int, storage: torch.dtype) -> None:
    format = parse_format(name)
    assert isinstance(format, IntFormat)
    assert (format.name, format.qmin, format.qmax, format.storage) == (name, qmin, qmax, storage)


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
def test_a_restricted_format_is_closed_under_negation_and_keeps_its_name(bits: int) -> None:
    format = IntFormat(bits=bits, signed=True, restricted=True)
    assert format.qmin == -format.qmax
    assert format.name == f"int{bits}"


def test_every_storage_holds_every_code() -> None:
    for format in FORMATS.values():
        info = torch.iinfo(format.storage)
        lowest, highest = (
            (format.qmin, format.qmax) if isinstance(format, IntFormat) else (0, 2**format.bits - 1)
        )
        assert info.min <= lowest and highest <= info.max, format


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert parse_format(name).name == NAMES[name]


@given(
    exponent_bits=st.integers(2, 5),
    mantissa_bits=st.integers(0, 4),
    bias=st.integers(-20, 20),
    specials=st.sampled_from(["ieee", "fn", "fnuz", "none"]),
)
def test_a_name_says_everything(exponent_bits: int, mantissa_bits: int, bias: int, specials: str) -> None:
    format = FloatFormat(
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=bias,
        specials=specials,  # type: ignore[arg-type]
    )
    assert parse_format(format.name) == format


def test_every_row_of_the_table_can_be_named() -> None:
    assert all(parse_format(format.name) == format for format in FORMATS.values())


@pytest.mark.parametrize(
    "name", ["int1", "int17", "uint32", "float7_e4m3", "e4m3x", "posit8", "", "e9m1", "e0m7"]
)
def test_unknown_formats_are_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        parse_format(name)


def test_the_refusal_lists_what_is_known() -> None:
    with pytest.raises(RecipeError, match=r"posit8.*int8.*e4m3"):
        parse_format("posit8")


@pytest.mark.parametrize("name", ["e2m1", "e4m3", "e5m2", "e3m2"])
def test_stochastic_rounding_takes_a_neighbour_in_proportion(name: str) -> None:
    format = minifloat(name)
    values = format.decode_table()
    values = values[values.isfinite()].sort().values
    values = values[torch.cat((values.diff() > 0, torch.tensor([True])))]  # of the two zeros one
    lo, hi = values[:-1, None], values[1:, None]
    for share in (0.125, 0.5, 0.8125):
        x = lo + (hi - lo) * share
        # the noise in even steps: exactly `share` of them lie below it
        noise = torch.arange(16)[None] / 16
        rounded = format.round(x.float().expand(-1, 16), noise.expand(len(x), -1)).double()
        assert bool(((rounded == lo) | (rounded == hi)).all())
        assert torch.equal(rounded.mean(1, keepdim=True), x)
        assert torch.equal(format.decode(format.encode(x.float(), noise)), rounded.float())


def test_stochastic_rounding_leaves_the_ends_and_the_numbers_of_a_format_alone() -> None:
    format, noise = minifloat("e2m1"), torch.tensor([0.0, 0.5, 1 - 2**-24])[:, None]
    values = format.decode_table().float()
    assert torch.equal(format.round(values, noise), values.expand(3, -1))
    beyond = torch.tensor([7.0, -1e9, torch.inf])
    assert format.round(beyond, noise).tolist() == [[6.0, -6.0, 6.0]] * 3
    assert format.round(torch.tensor(torch.nan), noise).tolist() == [[-6.0]] * 3
    assert bool(minifloat("e4m3").round(torch.tensor(torch.nan), noise).isnan().all())

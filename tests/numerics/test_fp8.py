"""FP8 casts: one table of special inputs, every midpoint, and tensors that come back from their scales."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from qcompiler.errors import RecipeError
from qcompiler.numerics import (
    FP8,
    ROW_BLOCK,
    SQUARE_BLOCK,
    FloatFormat,
    Granularity,
    Infinity,
    PerGroup,
    PerTensor,
    cast_fp8,
    from_fp8,
    parse_format,
    to_fp8,
)

# input: what E4M3 and E5M2 make of it; signs and infinities are told apart below
SPECIAL = {
    0.0: (0.0, 0.0),
    2**-9: (2**-9, 2**-9),  # the smallest subnormal of E4M3
    2**-10: (0.0, 2**-10),  # a tie with 0
    2**-10 * (1 + 2**-7): (2**-9, 2**-10),
    7 * 2**-9: (7 * 2**-9, 7 * 2**-9),  # its largest
    2**-6: (2**-6, 2**-6),
    2**-16: (0.0, 2**-16),  # the smallest subnormal of E5M2
    2**-17: (0.0, 0.0),
    3 * 2**-16: (0.0, 3 * 2**-16),  # its largest
    2**-14: (0.0, 2**-14),
    1e-40: (0.0, 0.0),
    1.0625: (1.0, 1.0),  # ties go to the even neighbour
    1.1875: (1.25, 1.25),
    448.0: (448.0, 448.0),
    449.0: (448.0, 448.0),
    464.0: (448.0, 448.0),
    465.0: (448.0, 448.0),
    57344.0: (448.0, 57344.0),
    57345.0: (448.0, 57344.0),
    61439.0: (448.0, 57344.0),
    61440.0: (448.0, 57344.0),  # where torch's own cast to E5M2 becomes infinite
    1e9: (448.0, 57344.0),
    3.4e38: (448.0, 57344.0),
}
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def minifloat(name: str) -> FloatFormat:
    format = parse_format(name)
    assert isinstance(format, FloatFormat)
    return format


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("column", [0, 1])
def test_special_inputs(column: int, sign: int) -> None:
    format = list(FP8)[column]
    x = torch.tensor(list(SPECIAL), dtype=torch.float32) * sign
    wanted = torch.tensor([row[column] for row in SPECIAL.values()]) * sign
    found = cast_fp8(x, format).float()
    assert torch.equal(found, wanted)
    assert torch.equal(torch.signbit(found), torch.signbit(x))  # -0 stays -0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("format", FP8)
@pytest.mark.parametrize("infinity", get_args(Infinity))
def test_infinities_are_as_asked_and_nan_is_kept(format: str, dtype: torch.dtype, infinity: Infinity) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0] * 9, dtype=dtype)  # long enough for vector code
    plus, minus, nan, one = cast_fp8(x, format, infinity).float().view(9, 4).unbind(1)
    for found in (plus, -minus):
        assert bool((found == minifloat(format).max).all() if infinity == "saturate" else found.isnan().all())
    assert bool(nan.isnan().all()) and bool((one == 1).all())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("format", FP8)
def test_every_midpoint_and_its_neighbours_round_as_the_definition(format: str, dtype: torch.dtype) -> None:
    values = minifloat(format).decode_table()
    values = values[values.isfinite()].sort().values
    midpoints = ((values[1:] + values[:-1]) / 2).float()
    around = [torch.nextafter(midpoints, torch.full_like(midpoints, end)) for end in (-torch.inf, torch.inf)]
    x = torch.cat((values.float(), midpoints, *around)).to(dtype)
    assert torch.equal(cast_fp8(x, format).float(), minifloat(format).round(x))


@pytest.mark.parametrize(
    ("format", "infinity"), [("e3m4", "nan"), ("int8", "nan"), ("e4m3", "inf"), ("e5m2", "")]
)
def test_unknown_casts_are_refused(format: str, infinity: Infinity) -> None:
    with pytest.raises(RecipeError):
        cast_fp8(torch.ones(1), format, infinity)


ROWS, COLUMNS = PerGroup(axis=-1, size=300), PerGroup(axis=0, size=200)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), ROWS, COLUMNS, ROW_BLOCK, SQUARE_BLOCK], ids=str)
@pytest.mark.parametrize(("format", "bits"), [("e4m3", 3), ("e5m2", 2)])
def test_no_element_is_off_by_more_than_half_a_step(
    format: str, bits: int, granularity: Granularity, power_of_two: bool
) -> None:
    x = torch.randn(200, 300) * torch.logspace(-3, 3, 300)
    codes, scale = to_fp8(x, format, granularity, power_of_two=power_of_two)
    assert codes.dtype == FP8[format]
    y = from_fp8(codes, scale, granularity)
    smallest = minifloat(format).min_subnormal * from_fp8(torch.ones_like(codes), scale, granularity)
    half_steps = torch.maximum(x.abs() * 2.0 ** -(bits + 1), smallest / 2)
    assert bool(((y - x).abs() <= half_steps * (1 + 1e-6)).all())
    if power_of_two:
        assert bool((torch.frexp(scale).mantissa == 0.5).all())


def test_finer_scales_cost_less_where_magnitudes_differ() -> None:
    x = torch.randn(256, 256) * torch.exp(4 * torch.randn(256, 1))

    def error(granularity: Granularity) -> float:
        y = from_fp8(*to_fp8(x, "e4m3", granularity), granularity)
        # each row for itself, as a product takes them
        return float(((y - x).norm(dim=1) / x.norm(dim=1)).mean())

    whole, squares, rows = (error(granularity) for granularity in (PerTensor(), SQUARE_BLOCK, ROW_BLOCK))
    assert rows < squares < whole


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_what_shares_its_scale(poison: float) -> None:
    x = torch.randn(4, 256)
    x[2, 3] = poison
    y = from_fp8(*to_fp8(x, "e4m3", ROW_BLOCK), ROW_BLOCK)
    spoiled = torch.zeros(4, 256, dtype=torch.bool)
    spoiled[2, :128] = True
    assert torch.equal(~y.isfinite(), spoiled)


def bytes_of(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8)


def test_square_blocks_serve_both_directions() -> None:
    w = torch.randn(256, 384)
    direct, transposed = to_fp8(w, "e4m3", SQUARE_BLOCK), to_fp8(w.T, "e4m3", SQUARE_BLOCK)
    assert torch.equal(bytes_of(direct[0].T.contiguous()), bytes_of(transposed[0].contiguous()))
    assert torch.equal(direct[1].T, transposed[1])

"""Linears whose results go on in codes, and codes by scales that are known before, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops import (
    int8_linear,
    linear_amax,
    linear_codes,
    quantize_by_amax,
    quantize_by_scale,
    quantize_rows,
)
from qcompiler.errors import InputError

K = 48
FORMATS = ("int8", "e4m3")


def layer(format: str, M: int = 6, N: int = 21) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, s = quantize_rows(torch.randn(M, K), format)
    b, t = quantize_rows(torch.randn(N, K), format)
    return a, s, b, t


@pytest.mark.parametrize("format", FORMATS)
def test_codes_that_are_handed_on_are_those_of_the_floats(format: str) -> None:
    """In float32, and with zeros up to whole sixteens: the next product reads them as they are."""
    a, s, b, t = layer(format)
    bias, residual, scale = torch.randn(21), torch.randn(6, 21), torch.tensor([0.5])
    given = (a, s, b, t, bias, residual, "silu")
    y, _ = linear_amax(*given, torch.float32)
    codes = linear_codes(*given, scale)
    assert codes.shape == (6, 32) and codes.dtype == a.dtype and not codes.float()[:, 21:].any()
    assert torch.equal(codes.float(), quantize_by_scale(y, scale, format).float())
    assert ((codes.float()[:, :21] * scale - y).abs() <= y.abs() * 2**-4 + scale / 2).all()
    w, u = quantize_rows(torch.randn(5, 21), format)
    again = linear_codes(codes, None, w, u * scale, None, None, "none", scale)
    assert again.shape == (6, 16)


def test_one_scale_of_all_rows_is_a_factor_of_the_weight() -> None:
    """float32(acc) (s t), not (float32(acc) s) t: one rounding less."""
    a, _, b, t = layer("int8")
    one = torch.tensor(0.0371)
    found = int8_linear(a, None, b, one * t, None, None, "none", torch.float32)
    assert torch.equal(found, (a.long() @ b.long().t()).float() * (one * t))


def test_what_is_beyond_the_codes_saturates_and_nan_is_the_lowest_where_there_is_none() -> None:
    x = torch.tensor([[0.5, 1.5, -2.5, 500.0, -500.0, torch.inf, -torch.inf, torch.nan]])
    one = torch.ones(1)
    assert quantize_by_scale(x, one, "int8")[0, :8].tolist() == [0, 2, -2, 127, -128, 127, -128, -128]
    floats = quantize_by_scale(x, one, "e4m3").float()[0, :8]
    assert floats[:7].tolist() == [0.5, 1.5, -2.5, 448, -448, 448, -448] and floats[7].isnan()
    zero, wide = torch.zeros((), dtype=torch.int8), torch.randn(9, 40)
    wanted = torch.ops.qcompiler.quantize(wide, torch.tensor(0.02), zero, "int8")
    assert torch.equal(quantize_by_scale(wide, torch.tensor([0.02]), "int8")[:, :40], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_maxima_make_the_codes_of_the_plain_way(format: str, dtype: torch.dtype) -> None:
    """Also of rows of zeros and of what is not finite."""
    a, s, b, t = layer(format)
    s[1], s[2] = torch.nan, 0.0
    y, amax = linear_amax(a, s, b, t, None, None, "gelu", dtype)
    assert amax.dtype == torch.float32 and amax[1] == torch.inf and amax[2] == 0
    found, wanted = quantize_by_amax(y, amax, format), quantize_rows(y, format)
    assert torch.equal(found[0].float(), wanted[0].float())
    assert torch.equal(found[1].nan_to_num(), wanted[1].nan_to_num()) and found[1][1].isnan()


def arguments(op: str) -> tuple[Any, ...]:
    bias, scale = torch.randn(21), torch.tensor([0.05])
    return {
        "codes": (*layer("int8"), bias, None, "relu", scale),
        "codes by one scale": (layer("int8")[0], None, *layer("int8")[2:], bias, None, "none", scale),
        "amax": (*layer("int8"), bias, torch.randn(6, 21), "none", torch.bfloat16),
        "by amax": (torch.randn(4, 33), torch.ones(4), "int8"),
        "by scale": (torch.randn(4, 33), scale, "e4m3"),
    }[op]


OPS = {
    "codes": linear_codes, "codes by one scale": linear_codes, "amax": linear_amax,
    "by amax": quantize_by_amax, "by scale": quantize_by_scale,
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_an_op_says_the_truth_about_itself(op: str) -> None:
    checks = ("test_faketensor",) if op == "by scale" else ("test_schema", "test_faketensor")
    torch.library.opcheck(
        OPS[op], arguments(op), test_utils=checks
    )  # of a schema, torch checks none with FP8


@pytest.mark.parametrize(
    ("op", "place", "value", "sentence"),
    [
        ("codes", 7, torch.ones(()), r"a scale torch.float32 \[\]"),
        ("codes", 7, torch.ones(1).half(), "a scale in float32"),
        ("codes", 1, torch.ones(5), r"scales torch.float32 \[5\]"),
        ("amax", 6, "tanh", "use one of none, relu, gelu, silu"),
        ("by amax", 1, torch.ones(5), r"maxima torch.float32 \[5\]"),
        ("by amax", 2, "int3", 'rows in "int3"'),
        ("by scale", 1, torch.ones(4), r"a scale torch.float32 \[4\]"),
    ],
)
def test_what_does_not_fit_is_refused(op: str, place: int, value: Any, sentence: str) -> None:
    given = [*arguments(op)]
    given[place] = value
    with pytest.raises(InputError, match=sentence):
        OPS[op](*given)

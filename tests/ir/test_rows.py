"""Codes by row: they decode, travel as text, and are those that kernels for GPUs make."""

from __future__ import annotations

import pytest
import torch

from qcompiler.backends.triton.ops import quantize_rows as on_device
from qcompiler.numerics.row_codes import CODES

qc = torch.ops.qcompiler
FORMATS = {"int8": "int8", "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}


@pytest.mark.parametrize("format", FORMATS)
def test_codes_decode_as_groups_of_whole_rows(format: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 24) * 10.0 ** torch.arange(-2, 3)[:, None]
    codes, scale, zero = qc.quantize_rows(x, format)
    assert codes.shape == x.shape and scale.shape == zero.shape == (2, 5, 1)
    assert codes.dtype == zero.dtype == CODES[FORMATS[format]][0] and not zero.double().any()
    found = qc.dequantize(codes, scale, zero, format, -1, 24)
    share = {"int8": 0.5 / 127, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}[format]
    largest = x.abs().amax(-1, keepdim=True)
    assert ((found - x).abs() <= share * (1 + 2**-20) * largest).all()
    half = qc.dequantize(codes, scale, zero, format, -1, 24, dtype=torch.bfloat16)
    assert torch.equal(half, found.bfloat16())


@pytest.mark.parametrize(("format", "short"), FORMATS.items())
def test_they_are_those_of_the_ops_for_gpus(format: str, short: str) -> None:
    x = torch.randn(6, 20).bfloat16()
    x[1], x[2, 3], x[3, 4] = 0, torch.nan, torch.inf
    codes, scale, _ = qc.quantize_rows(x, format)
    wide, scales = on_device(x, short)
    assert torch.equal(codes.float(), wide[:, :20].float())
    assert torch.equal(scale[:, 0].nan_to_num(-1), scales.nan_to_num(-1))


def test_shapes_are_known_without_numbers() -> None:
    torch.library.opcheck(qc.quantize_rows.default, (torch.randn(2, 3, 8), "int8"))
    given = qc.quantize_rows(torch.randn(4, 8), "int8")
    torch.library.opcheck(
        qc.dequantize.default, (*given, "int8", -1, 8), {"dtype": torch.float16},
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip

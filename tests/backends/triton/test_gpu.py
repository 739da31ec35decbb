"""The ops where they are meant to run, against the same ops on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.backends.triton.ops import fp8_linear, int8_linear, quantize_rows, weight_only_linear
from qcompiler.backends.triton.ops.device import capability
from tests.backends.triton.cases.base import same
from tests.backends.triton.cases.products import operands
from tests.backends.triton.cases.rows import hard_rows
from tests.backends.triton.cases.weight_only import weight, whole_numbers

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.cuda() for x in tensors]


def needs_fp8() -> None:
    if capability(torch.device("cuda", 0)) != 90:
        pytest.skip("FP8 products have configurations for 9.0 only")


@pytest.mark.parametrize("columns", [256, 100, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("format", ["int8", "e4m3"])
def test_codes_and_scales_are_those_of_the_cpu(format: str, dtype: torch.dtype, columns: int) -> None:
    if format == "e4m3":
        needs_fp8()
    x = hard_rows(columns, dtype)
    for found, wanted in zip(quantize_rows(x.cuda(), format), quantize_rows(x, format), strict=True):
        assert same(found.cpu(), wanted)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144), (5, 24, 16)])
def test_integer_products_are_those_of_the_cpu(M: int, N: int, K: int, beside: bool) -> None:
    a, s, b, t = operands(M, N, K, torch.int8)
    bias, residual = (torch.randn(N), torch.randn(M, N).bfloat16()) if beside else (None, None)
    wanted = int8_linear(a, s, b, t, bias, residual, "none", torch.bfloat16)
    found = int8_linear(*on_gpu(a, s, b, t, bias, residual), "none", torch.bfloat16)
    assert torch.equal(found.cpu().nan_to_num(), wanted.nan_to_num())


@pytest.mark.parametrize("mode", ["fast", "promote128"])
@pytest.mark.parametrize(("M", "N", "K"), [(256, 512, 1024), (300, 200, 144)])
def test_fp8_products_are_near_float64(M: int, N: int, K: int, mode: str) -> None:
    """ "fast" is held to 1e-2, since what tensor cores keep of a sum is not stated; its error is recorded."""
    needs_fp8()
    (a, s), (b, t) = quantize_rows(torch.randn(M, K), "e4m3"), quantize_rows(torch.randn(N, K), "e4m3")
    exact = (a.double() * s[:, None]) @ (b.double() * t[:, None]).t()
    found = fp8_linear(*on_gpu(a, s, b, t, None, None), "none", mode, torch.float16)
    error = ((found.cpu().double() - exact).norm() / exact.norm()).item()
    floor = ((exact.half().double() - exact).norm() / exact.norm()).item()
    assert error <= (1e-2 if mode == "fast" else 1.5 * floor), error


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layout", ["w4h_g128", "w4h_g32", "w2h_g64", "w8_g128"])
@pytest.mark.parametrize("M", [1, 9, 50, 200])
def test_products_with_weights_of_few_bits_are_those_of_the_cpu(M: int, layout: str, gated: bool) -> None:
    """Sums of groups are exact; K is split into parts."""
    x, (codes, scales, zeros) = whole_numbers(M, 2048, 8), weight(192 * (1 + gated), 2048, layout, True)
    bias, residual = torch.randn(len(codes)), torch.randn(M, 192).bfloat16()
    given = (codes, scales.bfloat16(), zeros, bias, residual)
    after = (layout, gated, "none", torch.float32)
    wanted = weight_only_linear(x.bfloat16(), *given, *after)
    assert same(weight_only_linear(*on_gpu(x.bfloat16(), *given), *after).cpu(), wanted)

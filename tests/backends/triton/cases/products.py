"""Products of codes of 8 bits, one program for each tile, or as `kernels.product` has it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import chosen
from qcompiler.backends.triton.ops import (
    accumulate,
    fp8_linear,
    int8_linear,
    linear,
    linear_amax,
    linear_codes,
    onward,
    quantize_rows,
)
from qcompiler.backends.triton.ops.linear import ACTIVATIONS
from qcompiler.backends.triton.ops.quantize import padded
from tests.backends.triton.cases.base import (
    as_on_a_device,
    guarded,
    margin_is_untouched,
    memory_of_others,
    poisoned,
    same,
)

TILE = {"BM": 32, "BN": 64, "BK": 64, "GROUP": 2}
TOTAL = {"BM": 32, "BN": 64}


def operands(M: int, N: int, K: int, kind: torch.dtype) -> list[Tensor]:
    """Codes and scales; row 2 has a scale of NaN, row 3 codes of zero."""
    if kind == torch.int8:
        a, b = (torch.randint(-127, 128, shape).to(kind) for shape in ((M, K), (N, K)))
    else:  # small integers, so that every sum is exact in whatever order
        a, b = (torch.randint(-16, 17, shape).float().to(kind) for shape in ((M, K), (N, K)))
    s, t = torch.rand(M) / 64 + 0.01, torch.rand(N) + 0.1
    s[2], a[2], a[3] = torch.nan, torch.zeros(()).to(kind), torch.zeros(()).to(kind)
    return [a, s, b, t]


def product(
    a: Tensor, s: Tensor | None, b: Tensor, t: Tensor, bias: Tensor | None, residual: Tensor | None,
    activation: str, dtype: torch.dtype, constants: dict[str, Any], *, scale: Tensor | None = None,
    amax: Tensor | None = None,
) -> Tensor:  # fmt: skip
    from qcompiler.backends.triton.kernels.fp8_matmul import fp8_matmul
    from qcompiler.backends.triton.kernels.int8_matmul import int8_matmul
    from qcompiler.backends.triton.kernels.launching import launch_product

    out, whole = poisoned(len(a), len(b) if scale is None else padded(len(b)), dtype)
    kernel = int8_matmul if a.dtype == torch.int8 else fp8_matmul
    a, b, t = (guarded(x) for x in (a, b, t))
    s, bias, residual, scale = (x if x is None else guarded(x) for x in (s, bias, residual, scale))
    constants = {**TILE, **constants}
    with mock.patch.object(torch, "empty", memory_of_others):
        launch_product(
            kernel, a, b, out, s, t, bias, residual, activation, constants, {}, scale=scale, amax=amax,
            total=(TOTAL, {}),
        )  # fmt: skip
    assert margin_is_untouched(whole, *out.shape)
    return out


def int8(M: int, N: int, K: int, dtype: torch.dtype, descriptors: bool, **way: int) -> None:
    """Exact: products, scales, bias and residual, and the one cast."""
    a, s, b, t = operands(M, N, K, torch.int8)
    bias, residual = torch.randn(N), torch.randn(M, N).to(dtype)
    given: list[tuple[Tensor | None, Tensor | None]] = [(bias, residual)]
    given += [] if way else [(None, None)]
    for beside in given:
        found = product(a, s, b, t, *beside, "none", dtype, {"DESCRIPTORS": descriptors, **way})
        assert same(found, int8_linear(a, s, b, t, *beside, "none", dtype))
        assert found.isnan().all(1).nonzero().flatten().tolist() == [2] and not found[3:].isnan().any()


def fp8(M: int, N: int, K: int, promote: int | None, descriptors: bool, **way: int) -> None:
    """Exact where sums are."""
    a, s, b, t = operands(M, N, K, torch.float8_e4m3fn)
    bias, residual = torch.randn(N), torch.randn(M, N)
    constants = {"BK": 128, "PROMOTE": promote, "DESCRIPTORS": descriptors, **way}
    mode = "promote128" if promote else "fast"
    found = product(a, s, b, t, bias, residual, "none", torch.float32, constants)
    assert same(found, fp8_linear(a, s, b, t, bias, residual, "none", mode, torch.float32))
    assert found.isnan().all(1).nonzero().flatten().tolist() == [2]


def fp8_of_any_numbers() -> None:
    """The error is that of rounding to the result's type, and less than half as much again."""
    x, w = torch.randn(40, 320), torch.randn(48, 320) / 320**0.5
    (a, s), (b, t) = quantize_rows(x, "e4m3"), quantize_rows(w, "e4m3")
    exact = (a.double() * s[:, None]) @ (b.double() * t[:, None]).t()
    floor = (exact.half().double() - exact).norm()
    for promote in (None, 128):
        constants = {"BK": 128, "PROMOTE": promote, "DESCRIPTORS": False}
        found = product(a, s, b, t, None, None, "none", torch.float16, constants)
        assert (found.double() - exact).norm() <= 1.5 * floor


def fp8_parts_in_order() -> None:
    """What each part sums by itself, added in float32 one after the other: another order has other bits."""
    (a, _), (b, _) = quantize_rows(torch.randn(40, 320), "e4m3"), quantize_rows(torch.randn(48, 320), "e4m3")
    ones = torch.ones(40), torch.ones(48)
    constants = {"BK": 64, "PROMOTE": None, "DESCRIPTORS": False}

    def whole(k: slice, **way: int) -> Tensor:
        left, right = a[:, k].contiguous(), b[:, k].contiguous()
        given = (left, ones[0], right, ones[1], None, None, "none", torch.float32)
        return product(*given, {**constants, **way})

    first, second, third = (whole(slice(start, start + 128)) for start in (0, 128, 256))
    found = whole(slice(None), SPLIT=3)  # 5 steps of 64: two, two and one
    assert torch.equal(found, (first + second) + third)
    assert not torch.equal(found, first + (second + third))
    assert torch.equal(found, whole(slice(None), SPLIT=4)), "the fourth has nothing to add"


def added(M: int, N: int, K: int, kind: torch.dtype, descriptors: bool, **way: int) -> None:
    """out += A B^T in place, in float32."""
    from qcompiler.backends.triton.kernels.fp8_matmul import fp8_matmul
    from qcompiler.backends.triton.kernels.int8_matmul import int8_matmul
    from qcompiler.backends.triton.kernels.launching import launch_product

    a, s, b, t = operands(M, N, K, kind)
    out, whole = poisoned(M, N, torch.float32)
    out.normal_()
    wanted = out.clone()
    accumulate(wanted, a, s, b, t, "promote128")
    kernel, promote = (int8_matmul, {}) if kind == torch.int8 else (fp8_matmul, {"BK": 128, "PROMOTE": 128})
    constants = {**TILE, **promote, "DESCRIPTORS": descriptors, **way}
    launch_product(kernel, a, b, out, s, t, None, out, "none", constants, {}, total=(TOTAL, {}))
    assert same(out, wanted) and margin_is_untouched(whole, M, N)


def activation(name: str) -> None:
    """Within |y| 2^-21 of float64, where y is what is activated: exponentials are good to a few units."""
    a, s, b, t = operands(40, 48, 64, torch.int8)
    s, t = torch.rand(40) * 0.02, torch.rand(48) * 0.02
    y = int8_linear(a, s, b, t, None, None, "none", torch.float32)
    found = product(a, s, b, t, None, None, name, torch.float32, {"DESCRIPTORS": False})
    wanted = ACTIVATIONS[name](y.double())
    assert y.abs().max() > 4 and y.std() > 0.5
    assert ((found.double() - wanted).abs() <= y.abs().double() * 2**-21).all()


def however_launched() -> None:
    """The ops, with rows that were measured: floats, codes, and floats with maxima, to the bit."""
    a, s, b, t = operands(36, 75, 80, torch.int8)
    given = (a, s, b, t, torch.randn(75), torch.randn(36, 75), "relu")
    scale = torch.tensor([4.0])
    plain = int8_linear(*given, torch.float32)
    codes, (floats, amax) = linear_codes(*given, scale), linear_amax(*given, torch.float16)
    row = chosen("int8_matmul", 90, heavy=True)
    for way in ({"SPLIT": 2}, {"PERSISTENT": 1}):
        constants = {**row.constants, **TILE, **way}
        with as_on_a_device(linear, replace(row, constants=constants)):
            assert same(linear.int8_on_cuda(*given, torch.float32), plain)
            assert same(onward.codes_on_cuda(*given, scale), codes)
            found, largest = onward.amax_on_cuda(*given, torch.float16)
        assert same(found, floats) and torch.equal(largest, amax)


PRODUCTS: Mapping[str, Callable[[], None]] = {
    "int8 product, aligned": lambda: int8(64, 128, 128, torch.float32, False),
    "int8 product, aligned, by descriptors": lambda: int8(64, 128, 128, torch.float32, True),
    "int8 product, ragged": lambda: int8(70, 75, 80, torch.float16, False),
    "int8 product, ragged, by descriptors": lambda: int8(70, 75, 80, torch.float16, True),
    "int8 product in parts, aligned": lambda: int8(32, 128, 128, torch.float32, False, SPLIT=2),
    "int8 product in parts, ragged": lambda: int8(40, 75, 144, torch.float16, False, SPLIT=2),
    "int8 product in parts, of which two are empty, by descriptors": lambda: int8(
        40, 75, 80, torch.float32, True, SPLIT=4
    ),
    "int8 product, walking, aligned": lambda: int8(64, 128, 128, torch.float32, False, PERSISTENT=1),
    "int8 product, walking, ragged, by descriptors": lambda: int8(
        70, 140, 80, torch.float16, True, PERSISTENT=2
    ),
    "fp8 product fast, ragged": lambda: fp8(40, 75, 144, None, False),
    "fp8 product fast, aligned, by descriptors": lambda: fp8(64, 64, 128, None, True),
    "fp8 product promote128, ragged, by descriptors": lambda: fp8(40, 75, 272, 128, True),
    "fp8 product promote128, aligned": lambda: fp8(64, 64, 256, 128, False),
    "fp8 product fast in parts, ragged": lambda: fp8(40, 75, 272, None, False, SPLIT=2),
    "fp8 product promote128 in parts, aligned, by descriptors": lambda: fp8(64, 64, 512, 128, True, SPLIT=2),
    "fp8 product promote128, walking, ragged": lambda: fp8(40, 75, 272, 128, False, PERSISTENT=1),
    "fp8 product fast, walking, ragged, by descriptors": lambda: fp8(40, 75, 144, None, True, PERSISTENT=2),
    "fp8 product of any numbers": fp8_of_any_numbers,
    "fp8 parts are added in order": fp8_parts_in_order,
    "int8 product added, ragged": lambda: added(70, 75, 80, torch.int8, False),
    "int8 product in parts added, ragged": lambda: added(70, 75, 80, torch.int8, False, SPLIT=2),
    "fp8 product added, aligned, by descriptors": lambda: added(64, 64, 256, torch.float8_e4m3fn, True),
    "gelu": lambda: activation("gelu"),
    "silu": lambda: activation("silu"),
    "products in parts and walking, by the ops": however_launched,
}

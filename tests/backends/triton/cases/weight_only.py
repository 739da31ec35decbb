"""Products of floats and weights of few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.triton.layouts import Weight, layout_named, pack, restored
from qcompiler.backends.triton.ops import weight_only_linear
from qcompiler.backends.triton.ops.linear import ACTIVATIONS
from qcompiler.backends.triton.ops.weight_only import RUN, parts_of
from tests.backends.triton.cases.base import guarded, margin_is_untouched, poisoned, same

TILE = {"BN": 16}  # of one row
SMALL, LARGE = {"BM": 16, "BN": 32, "GROUP": 2}, {"BM": 32, "BN": 128, "GROUP": 2}


def weight(rows: int, K: int, layout: str, zeros: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of all values, scales of as many bits as their type has, zero points of all values or None."""
    kind = layout_named(layout)
    codes = pack(torch.randint(0, 1 << kind.bits, (rows, K), dtype=torch.uint8), kind)
    shape = (rows, K // kind.group)
    z = torch.randint(0, 1 << kind.bits, shape, dtype=torch.uint8) if zeros else None
    return codes, (torch.rand(shape) / 64 + 0.01).half(), z


def whole_numbers(M: int, K: int, bits: int) -> Tensor:
    """So small that sums of groups are exact in whatever order, so large that they are not once scaled.

    128 (2^8 - 1) 255 and 128 (2^4 - 1) 2047 are below 2^24. Row 0 is zero, the last has a NaN.
    """
    largest = 255 if bits == 8 else 2047
    x = torch.randint(-largest, largest + 1, (M, K)).half()
    if M > 1:
        x[0], x[-1, 3] = 0.0, torch.nan
    return x


def product(
    x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, layout: str, gated: bool, activation: str, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    from qcompiler.backends.triton.kernels.weight_only import launch

    kind, M, N = layout_named(layout), len(x), len(codes) // (1 + gated)
    out, whole = poisoned(M, N, dtype)
    tile = TILE if M == 1 else SMALL if M <= 64 else LARGE
    x, codes, scales = (guarded(one) for one in (x, codes, scales))
    zeros, bias, residual = (one if one is None else guarded(one) for one in (zeros, bias, residual))
    launch(
        x, codes, scales, zeros, bias, residual, out, bits=kind.bits, group=kind.group, gated=gated,
        activation=activation, run=RUN, parts=parts_of(M, N, x.shape[1], kind), product=(tile, {}),
        total=({"BN": 64}, {}),
    )  # fmt: skip
    assert margin_is_untouched(whole, M, N)
    return out


def exact(
    M: int, N: int, K: int, layout: str, *, zeros: bool = False, gated: bool = False, parts: int = 1,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Sums of groups are exact; all after them is rounded in the order stated, and once more at the end."""
    rows = 2 * N if gated else N
    x = whole_numbers(M, K, layout_named(layout).bits)
    codes, scales, z = weight(rows, K, layout, zeros)
    bias, residual = torch.randn(rows), torch.randn(M, N).to(dtype)
    assert parts_of(M, N, K, layout_named(layout)) == parts
    given: tuple[Any, ...] = (x, codes, scales, z, bias, residual, layout, gated, "none", dtype)
    found = product(*given)
    assert same(found, weight_only_linear(*given))
    if M > 1:
        assert found.isnan().all(1).nonzero().flatten().tolist() == [M - 1]
        assert not found[:-1].isnan().any()


def alone(value: float) -> None:
    """One row of zeros is its bias, one with NaN is NaN."""
    x, (codes, scales, z) = torch.zeros(1, 128).half(), weight(64, 128, "w4h_g64", True)
    x[0, 77], bias = value, torch.randn(64)
    found = product(x, codes, scales, z, bias, None, "w4h_g64", False, "none", torch.float32)
    assert same(found, (bias + value)[None])


def near(M: int, layout: str) -> None:
    """The error is that of rounding to the result's type, and less than half as much again."""
    x, (codes, scales, z) = torch.randn(M, 512).half(), weight(64, 512, layout, True)
    kept = restored(Weight(codes=codes, scales=scales, zeros=z, layout=layout))
    wanted = x.double() @ kept.double().t()
    found = product(x, codes, scales, z, None, None, layout, False, "none", torch.float16).double()
    assert (found - wanted).norm() <= 1.5 * (wanted.half().double() - wanted).norm()


def gate(M: int) -> None:
    """SiLU of one sum times another: within |g u| 2^-21 of float64, as the activation by itself."""
    x, (codes, scales, z) = torch.randint(-8, 9, (M, 128)).half() / 16, weight(128, 128, "w4h_g32", False)
    bias = torch.randn(128)
    sums = weight_only_linear(
        x, codes, scales, z, bias, None, "w4h_g32", False, "none", torch.float32
    ).double()
    found = product(x, codes, scales, z, bias, None, "w4h_g32", True, "silu", torch.float32)
    g, u = sums.chunk(2, 1)
    wanted = ACTIVATIONS["silu"](g) * u
    assert g.std() > 0.5
    assert ((found.double() - wanted).abs() <= (g * u).abs() * 2**-21).all()


def bfloat16_counts() -> None:
    """What the interpreter cannot: u - z in bfloat16 is exact for all codes of 4 bits, as torch subtracts."""
    from qcompiler.backends.triton.kernels import weight_only as kernels

    codes = torch.arange(16, dtype=torch.int16)
    for bits, units, kind in (
        (kernels.BFLOAT16, kernels.UNITS_BFLOAT16, torch.bfloat16),
        (kernels.FLOAT16, kernels.UNITS_FLOAT16, torch.float16),
    ):
        number = (codes | bits.value).view(kind)
        steps = number[:, None] - number[None, :]
        assert steps.dtype == kind and torch.equal(steps.short(), codes[:, None] - codes[None, :])
        assert torch.equal(number.float(), units.value + codes)


def reads_bfloat16() -> None:
    """One row is multiplied in float32: bfloat16 is only loaded."""
    codes, scales, z = weight(64, 256, "w4h_g64", True)
    x, bias = torch.randint(-255, 256, (1, 256)).bfloat16(), torch.randn(64).bfloat16()
    given: tuple[Any, ...] = (
        x, codes, scales.bfloat16(), z, bias, None, "w4h_g64", False, "none", torch.float32,
    )  # fmt: skip
    assert same(product(*given), weight_only_linear(*given))


WEIGHT_ONLY: Mapping[str, Callable[[], None]] = {
    "weight only, one row, 4 bits": lambda: exact(1, 64, 1024, "w4h_g128"),
    "weight only, one row, 4 bits with zeros, ragged": lambda: exact(1, 64, 1056, "w4h_g32", zeros=True),
    "weight only, one row, 2 bits": lambda: exact(1, 64, 1024, "w2h_g64", dtype=torch.float16),
    "weight only, one row, 8 bits with zeros": lambda: exact(1, 64, 256, "w8_g128", zeros=True),
    "weight only, one row in parts": lambda: exact(1, 64, 2176, "w4h_g128", zeros=True, parts=2),
    "weight only, one row of pairs in parts": lambda: exact(
        1, 64, 2048, "w4h_g128", zeros=True, gated=True, parts=2
    ),
    "weight only, one row of bfloat16": reads_bfloat16,
    "weight only, one row of zeros": lambda: alone(0.0),
    "weight only, one row with NaN": lambda: alone(torch.nan),
    "weight only, few rows, 4 bits": lambda: exact(16, 64, 256, "w4h_g128"),
    "weight only, few rows, 4 bits with zeros": lambda: exact(5, 64, 96, "w4h_g32", zeros=True),
    "weight only, few rows, 2 bits with zeros": lambda: exact(3, 64, 128, "w2h_g64", zeros=True),
    "weight only, few rows, 8 bits with zeros": lambda: exact(3, 64, 128, "w8_g64", zeros=True),
    "weight only, few rows in parts": lambda: exact(3, 64, 2176, "w8_g128", parts=2, dtype=torch.float16),
    "weight only, pairs of rows in parts": lambda: exact(
        3, 64, 2048, "w4h_g128", zeros=True, gated=True, parts=2
    ),
    "weight only, many rows, ragged": lambda: exact(70, 192, 128, "w4h_g64", zeros=True, dtype=torch.float16),
    "weight only, many rows of pairs, ragged": lambda: exact(70, 192, 128, "w4h_g128", gated=True),
    "weight only, one row of any numbers": lambda: near(1, "w4h_g64"),
    "weight only, few rows of any numbers": lambda: near(7, "w8_g128"),
    "weight only, one row through a gate": lambda: gate(1),
    "weight only, few rows through a gate": lambda: gate(5),
    "weight only, codes of bfloat16": bfloat16_counts,
}

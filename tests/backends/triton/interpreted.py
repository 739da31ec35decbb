"""Kernels step by step on the CPU: what each case claims, for a process in which Triton interprets.

`python -m tests.backends.triton.interpreted` prints a line of JSON for each case: its name and what failed.

Outputs begin as poison, with a margin around them that must stay as it was. Behind every operand lies a page
that nobody may read: what a GPU calls an illegal access ends the process. Results are those of the ops'
references on the CPU: to the last bit where the numbers are stated to the last bit.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qcompiler.backends.triton.ops import fp8_linear, int8_linear, quantize_rows
from qcompiler.backends.triton.ops.linear import ACTIVATIONS
from qcompiler.backends.triton.ops.quantize import CODES, padded

POISON = 77
TILE = {"BM": 32, "BN": 64, "BK": 64, "GROUP": 2}
MARGIN = 16
NOBODY = 0  # PROT_NONE of mprotect(2)


def poisoned(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix, and the larger one that it lies in."""
    whole = torch.full((rows + 1, columns + MARGIN), POISON, dtype=torch.float32).to(dtype)
    return whole[:rows, :columns], whole


def guarded(x: Tensor) -> Tensor:
    """A copy whose last byte is the last before a page that may not be touched."""
    size = x.numel() * x.itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    behind = ctypes.addressof(ctypes.c_char.from_buffer(memory, pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(behind), mmap.PAGESIZE, NOBODY) == 0
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=pages - size).view(x.shape)
    return copy.copy_(x)


def margin_is_untouched(whole: Tensor, rows: int, columns: int) -> bool:
    outside = torch.ones(whole.shape, dtype=torch.bool)
    outside[:rows, :columns] = False
    return bool((whole.float()[outside] == POISON_OF[whole.dtype]).all())


POISON_OF = {
    dtype: torch.tensor(float(POISON)).to(dtype).float().item()
    for dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float32)
}


def bits(x: Tensor) -> Tensor:
    """Bits, but of NaN, of which there are many that mean the same."""
    sized = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.itemsize]
    return x.contiguous().view(sized).masked_fill(x.float().isnan(), 0)


def same(found: Tensor, wanted: Tensor) -> bool:
    return bool(
        torch.equal(found.float().isnan(), wanted.float().isnan()) and torch.equal(bits(found), bits(wanted))
    )


# ---------------------------------------------------------------- rows


def hard_rows(columns: int, dtype: torch.dtype) -> Tensor:
    """Usual rows, and one each of NaN, an infinity, zeros, the smallest numbers, the largest, ties, outliers.

    The smallest are subnormal but for bfloat16, of which the interpreter reads subnormal numbers wrong.
    """
    x = torch.randn(12, columns)
    x[1, 5], x[2, 7], x[3] = torch.nan, -torch.inf, 0.0
    x[4] = torch.finfo(dtype).smallest_normal * (torch.rand(columns) + int(dtype == torch.bfloat16))
    x[5] = torch.finfo(dtype).max * (2 * torch.rand(columns) - 1)
    x[6], x[6, 0] = torch.arange(columns) % 254 - 127 + 0.5, 127.0
    x[7, 0] = 1000.0
    x[7, 1], x[7, 2] = -0.0, -1e-4
    x[8] = x[8].sign() * 2 ** (-14 * torch.rand(columns))  # down to where codes of floats have fewer bits
    return x.to(dtype)


def rows(format: str, columns: int, dtype: torch.dtype, block: int) -> None:
    from qcompiler.backends.triton.kernels.quantize import launch

    x = hard_rows(columns, dtype)
    codes, whole = poisoned(len(x), padded(columns), CODES[format][0])
    scales = torch.full((len(x),), float(POISON))
    launch(guarded(x), codes, scales, format, block, {})
    wanted, wanted_scales = quantize_rows(x, format)
    assert same(scales, wanted_scales), "scales differ"
    assert same(codes, wanted), f"{int((bits(codes) != bits(wanted)).sum())} codes differ"
    assert scales.isnan().nonzero().flatten().tolist() == [1, 2] and scales[3] == 1
    assert margin_is_untouched(whole, len(x), padded(columns))


# ---------------------------------------------------------------- products


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
    a: Tensor, s: Tensor, b: Tensor, t: Tensor, bias: Tensor | None, residual: Tensor | None,
    activation: str, dtype: torch.dtype, constants: dict[str, Any],
) -> Tensor:  # fmt: skip
    from qcompiler.backends.triton.kernels.fp8_matmul import fp8_matmul
    from qcompiler.backends.triton.kernels.int8_matmul import int8_matmul
    from qcompiler.backends.triton.kernels.launching import launch_product

    out, whole = poisoned(len(a), len(b), dtype)
    kernel = int8_matmul if a.dtype == torch.int8 else fp8_matmul
    a, b, s, t = (guarded(x) for x in (a, b, s, t))
    bias, residual = (x if x is None else guarded(x) for x in (bias, residual))
    launch_product(kernel, a, b, out, s, t, bias, residual, activation, {**TILE, **constants}, {})
    assert margin_is_untouched(whole, *out.shape)
    return out


def int8(M: int, N: int, K: int, dtype: torch.dtype, descriptors: bool) -> None:
    """Exact: products, scales, bias and residual, and the one cast."""
    a, s, b, t = operands(M, N, K, torch.int8)
    bias, residual = torch.randn(N), torch.randn(M, N).to(dtype)
    given: list[tuple[Tensor | None, Tensor | None]] = [(None, None), (bias, residual)]
    for beside in given:
        found = product(a, s, b, t, *beside, "none", dtype, {"DESCRIPTORS": descriptors})
        assert same(found, int8_linear(a, s, b, t, *beside, "none", dtype))
        assert found.isnan().all(1).nonzero().flatten().tolist() == [2] and not found[3:].isnan().any()


def fp8(M: int, N: int, K: int, promote: int | None, descriptors: bool) -> None:
    """Exact where sums are."""
    a, s, b, t = operands(M, N, K, torch.float8_e4m3fn)
    bias, residual = torch.randn(N), torch.randn(M, N)
    constants = {"BK": 128, "PROMOTE": promote, "DESCRIPTORS": descriptors}
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


def activation(name: str) -> None:
    """Within |y| 2^-21 of float64, where y is what is activated: exponentials are good to a few units."""
    a, s, b, t = operands(40, 48, 64, torch.int8)
    s, t = torch.rand(40) * 0.02, torch.rand(48) * 0.02
    y = int8_linear(a, s, b, t, None, None, "none", torch.float32)
    found = product(a, s, b, t, None, None, name, torch.float32, {"DESCRIPTORS": False})
    wanted = ACTIVATIONS[name](y.double())
    assert y.abs().max() > 4 and y.std() > 0.5
    assert ((found.double() - wanted).abs() <= y.abs().double() * 2**-21).all()


CASES: dict[str, Callable[[], None]] = {
    "rows int8, aligned": lambda: rows("int8", 256, torch.float16, 256),
    "rows int8, ragged": lambda: rows("int8", 100, torch.float32, 128),
    "rows int8 of bfloat16": lambda: rows("int8", 256, torch.bfloat16, 256),
    "rows e4m3, aligned": lambda: rows("e4m3", 256, torch.float16, 256),
    "rows e4m3, ragged": lambda: rows("e4m3", 100, torch.float32, 128),
    "rows e5m2, ragged": lambda: rows("e5m2", 100, torch.float32, 128),
    "long rows int8, ragged": lambda: rows("int8", 300, torch.float32, 64),
    "long rows e4m3, aligned": lambda: rows("e4m3", 256, torch.float16, 64),
    "int8 product, aligned": lambda: int8(64, 128, 128, torch.float32, False),
    "int8 product, aligned, by descriptors": lambda: int8(64, 128, 128, torch.float32, True),
    "int8 product, ragged": lambda: int8(70, 75, 80, torch.float16, False),
    "int8 product, ragged, by descriptors": lambda: int8(70, 75, 80, torch.float16, True),
    "fp8 product fast, ragged": lambda: fp8(40, 75, 144, None, False),
    "fp8 product fast, aligned, by descriptors": lambda: fp8(64, 64, 128, None, True),
    "fp8 product promote128, ragged, by descriptors": lambda: fp8(40, 75, 272, 128, True),
    "fp8 product promote128, aligned": lambda: fp8(64, 64, 256, 128, False),
    "fp8 product of any numbers": fp8_of_any_numbers,
    "gelu": lambda: activation("gelu"),
    "silu": lambda: activation("silu"),
}
"""What is claimed, by name."""


def main() -> None:
    torch.set_num_threads(1)
    for name, claim in CASES.items():
        torch.manual_seed(0)
        start = time.thread_time()
        try:
            claim()
            failure = ""
        except Exception:
            failure = traceback.format_exc()
        print(
            json.dumps({"case": name, "failure": failure, "seconds": time.thread_time() - start}), flush=True
        )


if __name__ == "__main__":
    main()

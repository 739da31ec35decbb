"""FP8 with a scale for each block of 128: codes, and products."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qcompiler.backends.triton.ops import blocks as ops
from qcompiler.backends.triton.ops import fp8_block_linear, linear, quantize_blocks, quantize_tiles
from qcompiler.backends.triton.ops.blocks import SIDE, blocks_of
from qcompiler.backends.triton.ops.quantize import padded
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.numerics import ROW_BLOCK, SQUARE_BLOCK
from qcompiler.numerics.block_codes import decoded
from tests.backends.triton.cases.base import POISON, guarded, margin_is_untouched, poisoned, same
from tests.backends.triton.cases.rows import hard_rows
from tests.backends.triton.cases.schedules import all_candidates

TILE = {"BM": 32, "BN": 64, "BK": SIDE, "GROUP": 2}
CODE = torch.float8_e4m3fn


def codes(columns: int, dtype: torch.dtype, rows: int) -> None:
    """Every bit; what is not finite has a scale of NaN in its own block."""
    from qcompiler.backends.triton.kernels.blocks import launch

    x = hard_rows(columns, dtype)
    M = len(x)
    found, whole = poisoned(M, padded(columns), CODE)
    flat = torch.full((blocks_of(columns) * M + 1,), float(POISON))
    scales = flat[:-1].view(-1, M)
    launch(guarded(x), found, scales, rows, {})
    wanted, wanted_scales = quantize_blocks(x)
    assert same(scales, wanted_scales), "scales differ"
    assert same(found, wanted), "codes differ"
    assert scales.isnan().nonzero().tolist() == [[0, 1], [0, 2]] and (scales[:, 3] == 1).all()
    assert margin_is_untouched(whole, M, padded(columns)) and flat[-1] == POISON


def operands(M: int, N: int, K: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Small integers and scales of few bits: every sum is exact, in whatever order.

    Row 2 has a block with a scale of NaN, row 3 codes of zero.
    """
    a, b = (torch.randint(-8, 9, shape).float().to(CODE) for shape in ((M, K), (N, K)))
    s, t = (torch.randint(2, 6, shape) / 4 for shape in ((blocks_of(K), M), (blocks_of(N), blocks_of(K))))
    s[-1, 2] = torch.nan
    a[2, -K % SIDE - SIDE :], a[3] = torch.zeros(()).to(CODE), torch.zeros(()).to(CODE)
    return a, s, b, t


def launched(
    a: Tensor, s: Tensor, b: Tensor, t: Tensor, bias: Tensor | None, residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    from qcompiler.backends.triton.kernels.blocks import fp8_block_matmul
    from qcompiler.backends.triton.kernels.launching import launch_product

    out, whole = poisoned(len(a), len(b), dtype)
    a, b, s, t = (guarded(x) for x in (a, b, s, t))
    bias, residual = (x if x is None else guarded(x) for x in (bias, residual))
    launch_product(fp8_block_matmul, a, b, out, s, t, bias, residual, "none", TILE, {})
    assert margin_is_untouched(whole, *out.shape)
    return out


def product(M: int, N: int, K: int, dtype: torch.dtype, *, beside: bool) -> None:
    """Exact where sums are."""
    a, s, b, t = operands(M, N, K)
    bias, residual = (torch.randn(N), torch.randn(M, N).to(dtype)) if beside else (None, None)
    found = launched(a, s, b, t, bias, residual, dtype)
    assert same(found, fp8_block_linear(a, s, b, t, bias, residual, "none", dtype))
    assert found.isnan().all(1).nonzero().flatten().tolist() == [2] and not found[3:].isnan().any()


def spoilt_weight() -> None:
    """One square of the weight that is not finite: 128 columns are NaN, no others."""
    a, s, b, t = operands(33, 200, 272)
    s[-1, 2] = 1.0
    t[0, 1] = torch.nan
    found = launched(a, s, b, t, None, None, torch.float32)
    assert found[:, :SIDE].isnan().all() and not found[:, SIDE:].isnan().any()
    assert same(found, fp8_block_linear(a, s, b, t, None, None, "none", torch.float32))


def any_numbers() -> None:
    """u = 2^-24. A sum of 128 is off by 127 u at most, a factor by u, a product by u, and a sum of blocks
    by u for each: of S = sum |a s| |b t|. (The interpreter rounds the product, which a GPU does not.)
    """
    x, w = torch.randn(24, 320), torch.randn(72, 320)
    (a, s), (b, t) = quantize_blocks(x), quantize_tiles(w)
    left, right = decoded(a, s.t(), ROW_BLOCK), decoded(b, t, SQUARE_BLOCK)
    found = launched(a, s, b, t, None, None, torch.float32)
    bound = (127 + 1 + 1 + 3) * 2.0**-24 * (left.abs() @ right.abs().t())
    assert ((found.double() - left @ right.t()).abs() <= bound * (1 + 2**-10)).all()


def scheduled_codes() -> None:
    x = hard_rows(140, torch.float32)
    problem = Problem(op="quantize_blocks", scheme="e4m3", M=16, N=0, K=140, out="fp32")
    all_candidates(problem, ops, lambda: ops.quantize_on_cuda(x), lambda: quantize_blocks(x))


def scheduled_products() -> None:
    given = (*operands(5, 7, 144), None, None, "none", torch.float32)
    problem = Problem(op="fp8_block_linear", scheme="e4m3", M=8, N=7, K=144, out="fp32")
    all_candidates(problem, linear, lambda: ops.on_cuda(*given), lambda: fp8_block_linear(*given))


BLOCKS: Mapping[str, Callable[[], None]] = {
    "blocks e4m3, aligned": lambda: codes(256, torch.float16, 4),
    "blocks e4m3, ragged": lambda: codes(150, torch.float32, 8),
    "blocks e4m3 of bfloat16": lambda: codes(128, torch.bfloat16, 16),
    "block product, aligned": lambda: product(64, 128, 256, torch.float32, beside=False),
    "block product, ragged": lambda: product(40, 150, 272, torch.float16, beside=True),
    "block product, one short block": lambda: product(5, 24, 16, torch.float32, beside=False),
    "block product, a spoilt weight": spoilt_weight,
    "block product of any numbers": any_numbers,
    "blocks, however scheduled": scheduled_codes,
    "block products, however scheduled": scheduled_products,
}

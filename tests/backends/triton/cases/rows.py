"""Rows of floats to codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qcompiler.backends.triton.ops import quantize_rows
from qcompiler.backends.triton.ops.quantize import CODES, padded
from tests.backends.triton.cases.base import POISON, bits, guarded, margin_is_untouched, poisoned, same


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


ROWS: Mapping[str, Callable[[], None]] = {
    "rows int8, aligned": lambda: rows("int8", 256, torch.float16, 256),
    "rows int8, ragged": lambda: rows("int8", 100, torch.float32, 128),
    "rows int8 of bfloat16": lambda: rows("int8", 256, torch.bfloat16, 256),
    "rows e4m3, aligned": lambda: rows("e4m3", 256, torch.float16, 256),
    "rows e4m3, ragged": lambda: rows("e4m3", 100, torch.float32, 128),
    "rows e5m2, ragged": lambda: rows("e5m2", 100, torch.float32, 128),
    "long rows int8, ragged": lambda: rows("int8", 300, torch.float32, 64),
    "long rows e4m3, aligned": lambda: rows("e4m3", 256, torch.float16, 64),
}

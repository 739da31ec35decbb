"""Floats to codes by scales that are known before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcompiler.backends.triton.ops import quantize_by_scale, quantize_rows
from qcompiler.backends.triton.ops.quantize import CODES, padded
from tests.backends.triton.cases.base import (
    POISON,
    but_for_nan,
    guarded,
    margin_is_untouched,
    poisoned,
    same,
)
from tests.backends.triton.cases.rows import hard_rows


def by_amax(format: str, columns: int, dtype: torch.dtype, block: int) -> None:
    """The bits of codes whose maxima are sought first."""
    from qcompiler.backends.triton.kernels.known import launch

    x = hard_rows(columns, dtype)
    amax = x.float().abs().amax(1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    codes, whole = poisoned(len(x), padded(columns), CODES[format][0])
    scales = torch.full((len(x),), float(POISON))
    launch(guarded(x), guarded(amax), None, codes, scales, format, block, {})
    wanted, wanted_scales = quantize_rows(x, format)
    assert same(scales, wanted_scales) and same(codes, wanted)
    assert scales.isnan().nonzero().flatten().tolist() == [1, 2]
    assert margin_is_untouched(whole, len(x), padded(columns))


def by_scale(format: str, columns: int, dtype: torch.dtype, block: int, scale: float) -> None:
    """Numbers beyond the codes, ties and what is not finite are among them."""
    from qcompiler.backends.triton.kernels.known import launch

    x, given = hard_rows(columns, dtype), torch.tensor([scale])
    codes, whole = poisoned(len(x), padded(columns), CODES[format][0])
    launch(guarded(x), None, guarded(given), codes, None, format, block, {})
    wanted = quantize_by_scale(x, given, format)
    assert same(but_for_nan(codes, wanted), wanted)
    assert wanted.float().nan_to_num().amin() == {"int8": -128, "e4m3": -448}[format]
    assert margin_is_untouched(whole, len(x), padded(columns))


KNOWN: Mapping[str, Callable[[], None]] = {
    "rows int8 by their maxima, aligned": lambda: by_amax("int8", 256, torch.float16, 128),
    "rows e4m3 by their maxima, ragged": lambda: by_amax("e4m3", 100, torch.float32, 64),
    "rows int8 by one scale, ragged": lambda: by_scale("int8", 100, torch.float32, 64, 1.0),
    "rows int8 by one scale, aligned": lambda: by_scale("int8", 256, torch.float16, 256, 0.03),
    "rows e4m3 by one scale, aligned": lambda: by_scale("e4m3", 128, torch.float32, 128, 0.01),
}

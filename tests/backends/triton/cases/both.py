"""A matrix to codes in both orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qcompiler.backends.triton.ops import quantize_both
from qcompiler.backends.triton.ops.quantize import CODES, padded
from qcompiler.backends.triton.ops.quantize_both import PURPOSES
from qcompiler.numerics import noise_key
from tests.backends.triton.cases.base import POISON, guarded, margin_is_untouched, poisoned, same
from tests.backends.triton.cases.rows import hard_rows


def hard_matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Usual rows and hard ones; what is not finite, and zeros, come in the rows and in the columns."""
    x = torch.cat((hard_rows(columns, dtype), torch.randn(rows - 12, columns).to(dtype)))
    x[:, 9] = 0.0
    return x


def both(
    format: str, M: int, K: int, dtype: torch.dtype, tile: tuple[int, int], *, drawn: bool = False
) -> None:
    from qcompiler.backends.triton.kernels.quantize_both import launch

    x = hard_matrix(M, K, dtype)
    codes, whole = poisoned(M, padded(K), CODES[format][0])
    turned, turned_whole = poisoned(K, padded(M), CODES[format][0])
    scales, turned_scales = torch.full((M,), float(POISON)), torch.full((K,), float(POISON))
    peaks = dict(zip(("BM", "BK"), tile, strict=True))
    constants = {**peaks, "EVEN": M % 4 == K % 4 == 0}
    key, tensor = noise_key(2**40 + 5, 7, 3) if drawn else None, 2**31 + 9
    launch(guarded(x), codes, scales, turned, turned_scales, format, key, tensor, PURPOSES, peaks, constants)
    found = (codes, scales, turned, turned_scales)
    names = ("codes", "scales", "turned codes", "turned scales")
    for name, one, wanted in zip(names, found, quantize_both(x, format, key, tensor), strict=True):
        assert same(one, wanted), f"{name} differ"
    assert scales.isnan().nonzero().flatten().tolist() == [1, 2] and scales[3] == 1
    assert turned_scales.isnan().nonzero().flatten().tolist() == [5, 7] and turned_scales[9] == 1
    assert margin_is_untouched(whole, M, padded(K)) and margin_is_untouched(turned_whole, K, padded(M))


BOTH: Mapping[str, Callable[[], None]] = {
    "both orders int8, aligned": lambda: both("int8", 64, 96, torch.float16, (32, 32)),
    "both orders int8, ragged": lambda: both("int8", 37, 70, torch.float32, (32, 64)),
    "both orders e4m3, aligned": lambda: both("e4m3", 64, 64, torch.float16, (32, 32)),
    "both orders e4m3, ragged": lambda: both("e4m3", 37, 70, torch.float32, (16, 32)),
    "both orders e5m2, ragged": lambda: both("e5m2", 21, 33, torch.float32, (32, 16)),
    "both orders int8 drawn, aligned": lambda: both("int8", 64, 48, torch.float16, (32, 32), drawn=True),
    "both orders int8 drawn, ragged": lambda: both("int8", 21, 33, torch.float32, (16, 32), drawn=True),
    "both orders e4m3 drawn, aligned": lambda: both("e4m3", 32, 36, torch.float32, (32, 32), drawn=True),
}

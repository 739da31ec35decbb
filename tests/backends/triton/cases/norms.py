"""Rows normalised, to codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qcompiler.backends.triton.configurations.norms import block
from qcompiler.backends.triton.ops import norm_quantize
from qcompiler.backends.triton.ops.quantize import CODES, padded
from tests.backends.triton.cases.base import POISON, guarded, margin_is_untouched, poisoned, same
from tests.backends.triton.cases.rows import hard_rows

EPS = 1e-5


def norm(
    name: str,
    format: str,
    columns: int,
    dtype: torch.dtype,
    levels: int,
    *,
    beside: bool,
    static: bool = False,
) -> None:
    """beside: with a residual, and with the float result. Every bit is that of the reference."""
    from qcompiler.backends.triton.kernels.norm import launch

    x = hard_rows(columns, dtype)
    M = len(x)
    x[9] = -0.0
    residual = torch.randn(M, columns).to(dtype) if beside else None
    weight, bias = torch.randn(columns).to(dtype), torch.randn(columns) if name == "layer" else None
    scale = torch.tensor([0.02]) if static else None
    codes, whole = poisoned(M, padded(columns), CODES[format][0])
    stream, stream_whole = poisoned(M, columns, dtype)
    floats, floats_whole = poisoned(M, columns, dtype)
    scales = torch.full((M,), float(POISON))
    residual, bias, scale = (one if one is None else guarded(one) for one in (residual, bias, scale))
    launch(
        guarded(x), residual, guarded(weight), bias, scale, codes, scales, stream if beside else None,
        floats if beside else None, EPS, name == "layer", format, block(levels), {},
    )  # fmt: skip
    found = (codes, scales, stream, floats) if beside else (codes, scales)
    wanted = norm_quantize(x, residual, weight, bias, scale, name, EPS, format, beside)
    for what, one, other in zip(("codes", "scales", "stream", "floats"), found, wanted, strict=False):
        assert same(one, other), f"{what} differ"
    assert {1, 2} <= {*scales.isnan().nonzero().flatten().tolist()}
    assert margin_is_untouched(whole, M, padded(columns))
    for other in (stream_whole, floats_whole):
        assert margin_is_untouched(other, M if beside else 0, columns)


NORMS: Mapping[str, Callable[[], None]] = {
    "rms norm int8, aligned": lambda: norm("rms", "int8", 128, torch.float16, 7, beside=False),
    "rms norm int8 with a residual, ragged": lambda: norm("rms", "int8", 100, torch.float16, 7, beside=True),
    "rms norm e4m3 with a residual, aligned": lambda: norm("rms", "e4m3", 64, torch.float32, 6, beside=True),
    "rms norm int8 by a given scale": lambda: norm(
        "rms", "int8", 70, torch.float32, 8, beside=False, static=True
    ),
    "layer norm int8, aligned": lambda: norm("layer", "int8", 128, torch.float32, 7, beside=False),
    "layer norm e4m3, aligned": lambda: norm("layer", "e4m3", 128, torch.float32, 7, beside=False),
    "layer norm e4m3 with a residual, ragged": lambda: norm(
        "layer", "e4m3", 100, torch.float16, 8, beside=True
    ),
    "layer norm e5m2 by a given scale": lambda: norm(
        "layer", "e5m2", 33, torch.float32, 6, beside=False, static=True
    ),
}

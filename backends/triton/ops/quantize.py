"""Rows of floats to codes of 8 bits, `torch.ops.qcompiler.triton_quantize_rows`.

s = max |x| / L        q = clamp(rne(x / s), -L, L)        x ~ q s        L = 127, 448 or 57344
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qcompiler.backends.triton.configurations import Configuration, chosen
from qcompiler.backends.triton.ops.device import capability
from qcompiler.backends.triton.ops.schedule import of_rows, scheduled
from qcompiler.errors import InputError
from qcompiler.numerics.formats import parse_format
from qcompiler.numerics.fp8 import cast_fp8
from qcompiler.numerics.minifloat import FloatFormat
from qcompiler.numerics.rounding import stochastic

MULTIPLE = 16  # codes of a row: tensor cores and the copy engine take 16 bytes at a time

CODES: Mapping[str, tuple[torch.dtype, float]] = {
    "int8": (torch.int8, 127.0),
    "e4m3": (torch.float8_e4m3fn, 448.0),
    "e5m2": (torch.float8_e5m2, 57344.0),
}
"""How codes of a format are held, and the largest."""


@torch.library.custom_op("qcompiler::triton_quantize_rows", mutates_args=(), device_types="cpu")
def quantize_rows(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """[M, K]  -->  codes [M, K rounded up to 16], zeros behind the K-th, and scales float32 [M].

    Divisions are those of float32. A row of zeros has scale 1; one with NaN or an infinity has scale NaN and
    codes 0, so that what it is multiplied into is NaN and no other row is. No scale is below 2^-126.
    """
    checked(x, format)
    wide = x.float()
    scale = scale_of(wide, format)
    return codes_of(wide, scale, format), scale


@quantize_rows.register_fake
def _(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    return empty(x, format)


@quantize_rows.register_kernel("cuda")
def on_cuda(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    checked(x, format)
    row = configuration(padded(x.shape[1]), capability(x.device))
    return launched(x, format, scheduled(of_rows("quantize_rows", format, x), x.device, row))


def launched(x: Tensor, format: str, row: Configuration) -> tuple[Tensor, Tensor]:
    """The same by a kernel, compiled as a row says."""
    from qcompiler.backends.triton.kernels.quantize import launch

    codes, scale = empty(x, format)
    with torch.cuda.device(x.device):
        launch(x, codes, scale, format, row.constants["BLOCK"], row.options)
    return codes, scale


def configuration(width: int, capability: int) -> Configuration:
    """The one that holds a row of codes, or else the one that reads it twice."""
    whole = chosen("quantize_rows", capability)
    return whole if width <= whole.constants["BLOCK"] else chosen("quantize_long_rows", capability)


def scale_of(x: Tensor, format: str) -> Tensor:
    """Of each row of x [M, K] in float32: [M]."""
    amax = x.abs().amax(1)
    scale = (amax / CODES[format][1]).clamp(min=torch.finfo(torch.float32).tiny)
    return scale.masked_fill(amax == 0, 1.0).masked_fill(~amax.isfinite(), torch.nan)


def codes_of(x: Tensor, scale: Tensor, format: str, noise: Tensor | None = None) -> Tensor:
    """Of x [M, K] in float32 with scales [M], zeros where a scale is NaN: [M, K rounded up to 16].

    With noise from [0, 1), [M, K], they are drawn, and their mean is x.
    """
    kind, largest = CODES[format]
    ratio = (x / scale[:, None]).masked_fill(scale.isnan()[:, None], 0.0).clamp(-largest, largest)
    codes = x.new_zeros((len(x), padded(x.shape[1])), dtype=kind)
    if noise is not None:
        grid = parse_format(format)
        ratio = grid.round(ratio, noise) if isinstance(grid, FloatFormat) else stochastic(ratio, noise)
    codes[:, : x.shape[1]] = ratio.round().to(kind) if format == "int8" else cast_fp8(ratio, format)
    return codes


def empty(x: Tensor, format: str) -> tuple[Tensor, Tensor]:
    codes = x.new_empty((x.shape[0], padded(x.shape[1])), dtype=CODES[format][0])
    return codes, x.new_empty((x.shape[0],), dtype=torch.float32)


def padded(columns: int) -> int:
    return (columns + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def checked(x: Tensor, format: str) -> None:
    if format not in CODES:
        raise InputError(f'rows in "{format}"', fix=f"use one of {', '.join(CODES)}")
    if x.dim() != 2 or not x.is_floating_point() or x.shape[1] == 0 or x.stride(1) != 1:
        raise InputError(
            f"rows of {x.dtype} {[*x.shape]} with strides {x.stride()}",
            why="floats [rows, columns] are wanted, the columns of a row side by side",
            fix="flatten what comes before the last axis, and make it contiguous",
        )
